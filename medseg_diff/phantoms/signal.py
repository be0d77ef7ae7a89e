"""Tissues of a phantom: their relaxation, the signal that each sequence makes of it, and how much of each a voxel holds."""

from dataclasses import dataclass, replace

import numpy as np

from medseg_diff.phantoms.anatomy import Anatomy
from medseg_diff.phantoms.geometry import FloatArray
from medseg_diff.phantoms.lesion import Glioma

CHANNELS = ("t1", "t1ce", "t2", "flair")
TESLA = 2.0  # of the relaxation times in TISSUES
FLUID_MS = 3500.0  # with a longer T1 a tissue is free fluid


@dataclass(frozen=True)
class Tissue:
    """Relaxation at TESLA; `enhanced_t1_ms` is the T1 after contrast medium."""

    t1_ms: float
    t2_ms: float
    proton_density: float
    enhanced_t1_ms: float | None = None

    def with_agent(self, dose: float = 1.0) -> "Tissue":
        """After contrast medium: relaxation rates add, so half a dose shortens 1/T1 by half as much."""
        if self.enhanced_t1_ms is None:
            return self
        rate = (1 - dose) / self.t1_ms + dose / self.enhanced_t1_ms
        return replace(self, t1_ms=self.enhanced_t1_ms if dose == 1 else 1 / rate)  # exactly that of the table

    def at_field(self, tesla: float) -> "Tissue":
        """In another field: T1 grows about with its cube root (Bottomley et al. 1984), free fluid's does not."""
        if self.t1_ms > FLUID_MS:
            return self
        growth = (tesla / TESLA) ** (1 / 3)
        enhanced = self.enhanced_t1_ms and self.enhanced_t1_ms * growth
        return replace(self, t1_ms=self.t1_ms * growth, enhanced_t1_ms=enhanced)


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


def any_oedema(rng: np.random.Generator) -> Tissue:
    """That of any patient: from hardly wetter than grey matter to nearly free water, in FLAIR from faint to far brighter."""
    wetness = rng.uniform(0, 1)
    return Tissue(t1_ms=1450 + 550 * wetness, t2_ms=115 * 6**wetness, proton_density=0.84 + 0.12 * wetness)


def spoiled_gradient_echo(tissue: Tissue, *, repetition_ms: float, flip_degrees: float) -> float:
    """T1-weighted signal: PD sin(a) (1 - E1) / (1 - cos(a) E1), E1 = exp(-TR/T1) (Ernst and Anderson 1966)."""
    decay = np.exp(-repetition_ms / tissue.t1_ms)
    angle = np.deg2rad(flip_degrees)
    return float(tissue.proton_density * np.sin(angle) * (1 - decay) / (1 - np.cos(angle) * decay))


def spin_echo(tissue: Tissue, *, repetition_ms: float, echo_ms: float) -> float:
    """T2-weighted signal, T1-weighted where TR and TE are short: PD (1 - exp(-TR/T1)) exp(-TE/T2)."""
    recovery = 1 - np.exp(-repetition_ms / tissue.t1_ms)
    return float(tissue.proton_density * recovery * np.exp(-echo_ms / tissue.t2_ms))


def inversion_recovery(tissue: Tissue, *, repetition_ms: float, inversion_ms: float, echo_ms: float) -> float:
    """PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2): FLAIR where TI is chosen so that fluid gives none, T1-weighted
    (a prepared gradient echo) where it is short."""
    recovery = abs(1 - 2 * np.exp(-inversion_ms / tissue.t1_ms) + np.exp(-repetition_ms / tissue.t1_ms))
    return float(tissue.proton_density * recovery * np.exp(-echo_ms / tissue.t2_ms))


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
