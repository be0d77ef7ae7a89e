"""What a scanner makes of a phantom: tissue relaxation and the signal equations of four sequences, with their faults."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg_diff.phantoms.anatomy import Anatomy
from medseg_diff.phantoms.geometry import FloatArray
from medseg_diff.phantoms.lesion import Glioma

CHANNELS = ("t1", "t1ce", "t2", "flair")


@dataclass(frozen=True)
class Tissue:
    """Relaxation at about 2 T; `enhanced_t1_ms` is the T1 after contrast medium."""

    t1_ms: float
    t2_ms: float
    proton_density: float
    enhanced_t1_ms: float | None = None


TISSUES = {
    "csf": Tissue(4000, 1800, 1.00),
    "grey": Tissue(1370, 100, 0.83),
    "deep_grey": Tissue(1170, 88, 0.80),
    "white": Tissue(840, 80, 0.71),
    "hyperintensity": Tissue(1350, 128, 0.82),
    "oedema": Tissue(1830, 180, 0.89),
    "enhancing": Tissue(1500, 118, 0.84, enhanced_t1_ms=420),
    "necrosis": Tissue(3100, 600, 0.96, enhanced_t1_ms=2700),
    "plexus": Tissue(1700, 250, 0.90, enhanced_t1_ms=500),
}


def spoiled_gradient_echo(tissue: Tissue, *, repetition_ms: float, flip_degrees: float, enhanced: bool) -> float:
    """T1-weighted signal: PD sin(a) (1 - E1) / (1 - cos(a) E1), E1 = exp(-TR/T1) (Ernst and Anderson 1966)."""
    t1 = tissue.enhanced_t1_ms if enhanced and tissue.enhanced_t1_ms else tissue.t1_ms
    decay = np.exp(-repetition_ms / t1)
    angle = np.deg2rad(flip_degrees)
    return float(tissue.proton_density * np.sin(angle) * (1 - decay) / (1 - np.cos(angle) * decay))


def spin_echo(tissue: Tissue, *, repetition_ms: float, echo_ms: float) -> float:
    """T2-weighted signal: PD (1 - exp(-TR/T1)) exp(-TE/T2)."""
    recovery = 1 - np.exp(-repetition_ms / tissue.t1_ms)
    return float(tissue.proton_density * recovery * np.exp(-echo_ms / tissue.t2_ms))


def inversion_recovery(tissue: Tissue, *, repetition_ms: float, inversion_ms: float, echo_ms: float) -> float:
    """FLAIR signal: PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2); TI is chosen so that fluid gives none."""
    recovery = abs(1 - 2 * np.exp(-inversion_ms / tissue.t1_ms) + np.exp(-repetition_ms / tissue.t1_ms))
    return float(tissue.proton_density * recovery * np.exp(-echo_ms / tissue.t2_ms))


def draw_protocol(rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Signal of every tissue in every channel, relative to white matter, for one scanner's times and flip angle."""
    repetition, flip = rng.uniform(22, 28), rng.uniform(25, 32)
    t2_echo = rng.uniform(85, 105)
    flair_inversion, flair_echo = rng.uniform(2350, 2550), rng.uniform(105, 130)
    signals: dict[str, dict[str, float]] = {channel: {} for channel in CHANNELS}
    for name, tissue in TISSUES.items():
        for channel in ("t1", "t1ce"):
            signals[channel][name] = spoiled_gradient_echo(
                tissue, repetition_ms=repetition, flip_degrees=flip, enhanced=channel == "t1ce"
            )
        signals["t2"][name] = spin_echo(tissue, repetition_ms=5000, echo_ms=t2_echo)
        signals["flair"][name] = inversion_recovery(
            tissue, repetition_ms=9000, inversion_ms=flair_inversion, echo_ms=flair_echo
        )
    return {channel: {name: s / of["white"] for name, s in of.items()} for channel, of in signals.items()}


def tissue_shares(anatomy: Anatomy, hyperintensity: FloatArray, glioma: Glioma | None) -> dict[str, FloatArray]:
    """Shares of every tissue in each brain voxel; they sum to 1. Oedema lies in tissue, a tumour core replaces it."""
    shares = {name: getattr(anatomy, name) for name in ("csf", "grey", "deep_grey", "white")}
    shares["csf"] = shares["csf"] - anatomy.plexus
    shares["plexus"] = anatomy.plexus
    shares["hyperintensity"] = hyperintensity
    shares["white"] = shares["white"] - np.minimum(hyperintensity, shares["white"])
    if glioma is None:
        return shares
    solid = ("grey", "deep_grey", "white", "hyperintensity")
    soaked = sum((shares[name] for name in solid), np.zeros_like(glioma.oedema)) * glioma.oedema
    shares |= {name: shares[name] * (1 - glioma.oedema) for name in solid} | {"oedema": soaked}
    rest = 1 - glioma.enhancing - glioma.necrosis
    shares = {name: share * rest for name, share in shares.items()}
    return shares | {"enhancing": glioma.enhancing, "necrosis": glioma.necrosis}


def acquire(
    shares: dict[str, FloatArray], anatomy: Anatomy, rng: np.random.Generator, *, noise: float
) -> dict[str, NDArray[np.int16]]:
    """Scan: [X, Y, Z] int16 for each channel, exactly 0 outside the brain and at least 1 inside.

    Voxels mix the signals of their tissues (partial volume), which vary from place to place; then come the coil's
    bias field, Rician noise of `noise` times white matter's signal, and an arbitrary gain.
    """
    signals, grid, mask = draw_protocol(rng), anatomy.grid, anatomy.mask
    texture = {name: 0.03 * grid.noise(rng, 14.0)[mask] for name in ("grey", "white")}
    coil = 0.08 * grid.noise(rng, 80.0)[mask]
    images = {}
    for channel in CHANNELS:
        flair = channel == "flair"  # the long sequence: noisiest, and least even
        clean = np.zeros_like(anatomy.white)
        for name, share in shares.items():
            clean += share * np.float32(signals[channel][name]) * (1 + texture.get(name, np.float32(0)))
        bias = np.exp(coil + (0.18 if flair else 0.05) * grid.noise(rng, 60.0)[mask])
        gain = float(rng.uniform(250, 700))
        level = noise * (1.6 if flair else 1.0)
        real, imaginary = rng.standard_normal((2, clean.size), dtype=np.float32) * np.float32(level)
        measured = gain * np.hypot(clean * bias + real, imaginary)  # Gudbjartsson and Patz 1995
        image = np.zeros(grid.shape, np.int16)
        image[mask] = np.clip(np.rint(measured), 1, np.iinfo(np.int16).max)
        images[channel] = image
    return images
