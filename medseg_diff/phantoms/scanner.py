"""Scanners: what they make of a phantom, with their faults. The usual one differs little, `any_scanner` as hospitals' do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg_diff.phantoms.anatomy import Anatomy
from medseg_diff.phantoms.geometry import FloatArray
from medseg_diff.phantoms.signal import (
    CHANNELS,
    TISSUES,
    Tissue,
    inversion_recovery,
    spin_echo,
    spoiled_gradient_echo,
)

Sequence = Callable[[Tissue], float]
FWHM = 2.3548  # of a Gaussian, in standard deviations
DURA = Tissue(1000, 60, 0.60, enhanced_t1_ms=450)  # what skull stripping may leave on


@dataclass(frozen=True)
class Scanner:
    """One scanner and its protocol. `signals` [channel][tissue] are relative to white matter, as are the noise's deviations.

    coil, bias: log-amplitudes of the uneven field over 80 mm (all channels alike) and 60 mm. voxel_mm, slice_mm: full
    widths at half maximum of the blur in the plane and across it. stripped_mm: what skull stripping took of the brain's
    surface; negative: what it left of the skull.
    """

    signals: Mapping[str, Mapping[str, float]]
    noise: Mapping[str, float]
    bias: Mapping[str, float]
    coil: float = 0.08
    voxel_mm: float = 0.0
    slice_mm: Mapping[str, float] = field(default_factory=dict)
    stripped_mm: float = 0.0


def usual_scanner(rng: np.random.Generator, *, noise: float) -> Scanner:
    """One among scanners of a kind: times and flip angle differ a little. FLAIR, the long sequence, is noisiest and least
    even."""
    repetition, flip = rng.uniform(22, 28), rng.uniform(25, 32)
    t2_echo = rng.uniform(85, 105)
    flair_inversion, flair_echo = rng.uniform(2350, 2550), rng.uniform(105, 130)
    t1 = partial(spoiled_gradient_echo, repetition_ms=repetition, flip_degrees=flip)
    t2 = partial(spin_echo, repetition_ms=5000, echo_ms=t2_echo)
    flair = partial(inversion_recovery, repetition_ms=9000, inversion_ms=flair_inversion, echo_ms=flair_echo)
    return Scanner(
        _signals({"t1": t1, "t1ce": t1, "t2": t2, "flair": flair}, TISSUES),
        noise={channel: noise * (1.6 if channel == "flair" else 1.0) for channel in CHANNELS},
        bias={channel: 0.18 if channel == "flair" else 0.05 for channel in CHANNELS},
    )


def any_scanner(rng: np.random.Generator, *, noise: float, oedema: Tissue = TISSUES["oedema"]) -> Scanner:
    """One among all scanners: 1.5 or 3 T, one of three T1-weighted sequences, thick or thin slices of each channel, half to
    one and a half doses of contrast medium, even or uneven coils, more or less noise, skull stripped tightly or not."""
    tesla = float(rng.choice([1.5, 3.0]))
    repetition = rng.uniform(8000, 11000)
    fluid = TISSUES["csf"].t1_ms
    nulling = fluid * np.log(2 / (1 + np.exp(-repetition / fluid)))
    flair = partial(
        inversion_recovery,
        repetition_ms=repetition,
        inversion_ms=nulling * rng.uniform(0.94, 1.04),
        echo_ms=rng.uniform(105, 150),
    )
    t2 = partial(spin_echo, repetition_ms=rng.uniform(2500, 7000), echo_ms=rng.uniform(75, 125))
    thick = {channel: float(rng.choice([1.0, 3.0, 5.0, 6.5])) for channel in ("t1", "t2", "flair")}
    return Scanner(
        _signals(
            {"t1": _any_t1(rng), "t1ce": _any_t1(rng), "t2": t2, "flair": flair},
            TISSUES | {"oedema": oedema},
            tesla=tesla,
            dose=rng.uniform(0.5, 1.5),
        ),
        noise={channel: noise * rng.uniform(0.4, 1.5) for channel in CHANNELS},
        bias={channel: rng.uniform(0.03, 0.2) for channel in CHANNELS},
        coil=rng.uniform(0.03, 0.2),
        voxel_mm=rng.uniform(0.5, 3.5),
        slice_mm=thick | {"t1ce": float(rng.choice([1.0, thick["t1"]]))},
        stripped_mm=rng.uniform(-2.0, 3.0),
    )


def _any_t1(rng: np.random.Generator) -> Sequence:
    """A spoiled gradient echo, a spin echo or a gradient echo prepared by an inversion."""
    kind = rng.integers(3)
    if kind == 0:
        repetition, flip = rng.uniform(8, 30), rng.uniform(15, 35)
        return partial(spoiled_gradient_echo, repetition_ms=repetition, flip_degrees=flip)
    if kind == 1:
        return partial(spin_echo, repetition_ms=rng.uniform(400, 800), echo_ms=rng.uniform(8, 18))
    inversion = rng.uniform(800, 1100)
    return partial(inversion_recovery, repetition_ms=rng.uniform(1800, 2400), inversion_ms=inversion, echo_ms=3.0)


def _signals(
    sequences: Mapping[str, Sequence],
    tissues: Mapping[str, Tissue],
    *,
    tesla: float | None = None,
    dose: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Every tissue's signal in every channel, relative to white matter; `t1ce` follows the contrast medium."""
    tissues = {**tissues, "dura": DURA}
    if tesla:
        tissues = {name: tissue.at_field(tesla) for name, tissue in tissues.items()}
    signals = {
        channel: {
            name: sequence(tissue.with_agent(dose) if channel == "t1ce" else tissue) for name, tissue in tissues.items()
        }
        for channel, sequence in sequences.items()
    }
    return {channel: {name: s / of["white"] for name, s in of.items()} for channel, of in signals.items()}


def seen_by(scanner: Scanner, anatomy: Anatomy) -> NDArray[np.bool_]:
    """The part of the brain that skull stripping left, [X, Y, Z]."""
    if scanner.stripped_mm <= 0:
        return anatomy.mask
    depth = ndimage.distance_transform_edt(anatomy.mask, sampling=anatomy.grid.spacing_mm)
    return np.asarray(depth > scanner.stripped_mm + anatomy.grid.spacing_mm / 2)


def acquire(
    shares: Mapping[str, FloatArray], anatomy: Anatomy, scanner: Scanner, rng: np.random.Generator
) -> dict[str, NDArray[np.int16]]:
    """Scan: [X, Y, Z] int16 for each channel, exactly 0 outside what was stripped, and at least 1 inside.

    Voxels mix the signals of their tissues (partial volume), which vary from place to place; then come the coil's
    bias field, the blur of the voxel, Rician noise and an arbitrary gain.
    """
    grid, mask = anatomy.grid, anatomy.mask
    texture = {name: 0.03 * grid.noise(rng, 14.0)[mask] for name in ("grey", "white")}
    coil = scanner.coil * grid.noise(rng, 80.0)[mask]
    outside, left = ~seen_by(scanner, anatomy), _left_on(scanner, anatomy)
    images = {}
    for channel in CHANNELS:
        signals = scanner.signals[channel]
        clean = np.zeros_like(anatomy.white)
        for name, share in shares.items():
            clean += share * np.float32(signals[name]) * (1 + texture.get(name, np.float32(0)))
        bias = np.exp(coil + scanner.bias[channel] * grid.noise(rng, 60.0)[mask])
        gain = float(rng.uniform(250, 700))
        real, imaginary = rng.standard_normal((2, clean.size), dtype=np.float32) * np.float32(scanner.noise[channel])
        seen = _blurred(clean * bias, anatomy, (scanner.voxel_mm, scanner.voxel_mm, scanner.slice_mm.get(channel, 0.0)))
        measured = gain * np.hypot(seen + real, imaginary)  # Gudbjartsson and Patz 1995
        image = np.zeros(grid.shape, np.int16)
        image[mask] = np.clip(np.rint(measured), 1, np.iinfo(np.int16).max)
        image[outside] = 0
        if left is not None:
            skin = gain * signals["dura"] * np.exp(0.4 * grid.noise(rng, 9.0)[left])
            image[left] = np.clip(np.rint(skin), 1, np.iinfo(np.int16).max)
        images[channel] = image
    return images


def _blurred(values: FloatArray, anatomy: Anatomy, width_mm: tuple[float, float, float]) -> FloatArray:
    """Brain voxels [N] blurred among themselves by Gaussians of these full widths at half maximum; narrower than the
    grid's own voxel they do nothing."""
    spacing_mm = anatomy.grid.spacing_mm
    deviations = [np.sqrt(max(width**2 - spacing_mm**2, 0.0)) / FWHM / spacing_mm for width in width_mm]
    if not any(deviations):
        return values
    whole = np.zeros((2, *anatomy.grid.shape), np.float32)
    whole[0, anatomy.mask], whole[1, anatomy.mask] = values, 1
    whole = ndimage.gaussian_filter(whole, (0, *deviations), mode="constant")
    return whole[0, anatomy.mask] / whole[1, anatomy.mask]


def _left_on(scanner: Scanner, anatomy: Anatomy) -> NDArray[np.bool_] | None:
    """What stripping left on outside the brain, [X, Y, Z]; None where it left nothing."""
    if scanner.stripped_mm >= 0:
        return None
    away = ndimage.distance_transform_edt(~anatomy.mask, sampling=anatomy.grid.spacing_mm)
    return np.asarray((away > 0) & (away <= anatomy.grid.spacing_mm / 2 - scanner.stripped_mm))
