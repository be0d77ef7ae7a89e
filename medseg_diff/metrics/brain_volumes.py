"""Volumes of brain and ventricles from a T1 image alone, by how dark a voxel is beside what surrounds it, and where it lies.

For scans without a segmentation, real or synthetic. Chosen on phantoms of one kind of scanner: what they measure follows the
truth, and is not the truth. It differs between scanners, and with the size and sharpness of voxels, because fluid narrower
than a voxel counts differently in each: compare images of one kind.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Where ventricles lie, in half sides of the brain's box from its centre: (to either side, forwards, upwards), and radii.
# Bodies and frontal horns; atria with what is next to them of the other horns; third ventricle. Not the horns' tips and not
# the fourth: fissures and cisterns are too near.
REGION = (
    ((0.0, 0.05, 0.14), (0.33, 0.45, 0.26)),
    ((0.38, -0.42, 0.05), (0.36, 0.42, 0.32)),
    ((0.0, -0.05, -0.15), (0.14, 0.27, 0.22)),
)
SOFT_EDGE = 0.3  # of a radius: across it a voxel's weight falls from 1 to 0, so that none jumps in or out
OUTERMOST = 2.0  # percent of the brain's voxels at either end that its box leaves out: no voxel sets it alone
DARKEST, BRIGHTEST = 0.5, 90.0  # percentiles: the mean below the first is fluid, the second is white matter
EVEN_MM, ROUNDS = 25.0, 3  # over this the level of tissue is evened out, so many times
SOLID = 0.5  # of the way from fluid to white matter: brighter is tissue
GREY = 0.75  # of that way lies grey matter, in most T1-weighted sequences
EMPTY, FULL = 0.35, 0.8  # of the way from tissue down to fluid: a voxel without any, and a full one


class BrainVolumes(NamedTuple):
    """In millilitres: lateral and third ventricles without the tips of their horns, and the brain without any fluid."""

    ventricle_ml: float
    brain_ml: float


def brain_volumes(image: Image, brain: Mask, spacing_mm: Sequence[float], *, orientation: str = "RAS") -> BrainVolumes:
    """Of a T1 image [X, Y, Z] and its brain, as skull stripping leaves it; NaN where there is none or it is all alike.

    orientation: where the axes run to, as in `LPS`. What surrounds the brain is taken for no signal. Where grey matter is
    nearly as dark as fluid (an inversion recovery near its null), fluid is overestimated.
    """
    from scipy import ndimage

    brain = np.asarray(ndimage.binary_fill_holes(brain))  # fluid as dark as the background may be missing from it
    everywhere = np.asarray(image, dtype=np.float64)
    values = everywhere[brain] - (np.median(everywhere[~brain]) if not brain.all() else everywhere.min())
    nothing = BrainVolumes(float("nan"), float("nan"))
    if not values.size or np.ptp(values) == 0:
        return nothing
    even = _evened(values, brain, spacing_mm)
    fluid, white = _fluid_and_white(even)
    grey = fluid + GREY * (white - fluid)
    if not fluid < min(grey, 1):
        return nothing
    # Fluid of a fold lies beside grey matter: a voxel between the two holds of each in proportion.
    tissue = 1 - ((grey - even) / (grey - fluid)).clip(0, 1)
    # Ventricles lie in white matter and nuclei, whose level is 1; what is a little darker is cortex, or noise.
    depth = (1 - even) / (1 - fluid)
    filled = ((depth - EMPTY) / (FULL - EMPTY)).clip(0, 1) * _in_region(brain, orientation)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return BrainVolumes(float(filled.sum()) * voxel_ml, float(tissue.sum()) * voxel_ml)


def _fluid_and_white(values: Floats) -> tuple[float, float]:
    dark, white = np.percentile(values, [DARKEST, BRIGHTEST])
    return float(values[values <= dark].mean()), float(white)


def _evened(values: Floats, brain: Mask, spacing_mm: Sequence[float]) -> Floats:
    """The brain's voxels [N] in units of the mean tissue around each: without the coil's uneven field."""
    even = values
    for _ in range(ROUNDS):
        fluid, white = _fluid_and_white(even)
        solid = even > fluid + SOLID * (white - fluid)
        level = even[solid].mean() if solid.any() else 1.0
        around = _mean_around(np.where(solid, even, 0), solid, brain, spacing_mm, elsewhere=float(level))
        even = even / around
    return even


def _mean_around(
    values: Floats, counted: Mask, brain: Mask, spacing_mm: Sequence[float], *, elsewhere: float
) -> Floats:
    """Mean of the counted values near each voxel, `elsewhere` far from all. Three boxes one after another are nearly a
    Gaussian, and their time does not grow with their size."""
    from scipy import ndimage

    sides = [2 * max(1, round(EVEN_MM / step)) + 1 for step in spacing_mm]
    sums = []
    for each in (values, counted):
        volume = np.zeros(brain.shape)
        volume[brain] = each
        for _ in range(3):
            volume = ndimage.uniform_filter(volume, sides, mode="constant")
        sums.append(volume[brain])
    total, weight = sums
    return np.divide(total, weight, out=np.full_like(total, elsewhere), where=weight > 1e-6)


def _in_region(brain: Mask, orientation: str) -> Floats:
    """Weight [N] of the brain's voxels: 1 where ventricles lie, 0 elsewhere."""
    places = np.argwhere(brain).astype(np.float64)
    low, high = np.percentile(places, [OUTERMOST, 100 - OUTERMOST], axis=0)
    along = (places - (low + high) / 2) / np.maximum((high - low) / 2, 1)
    found = {axis: along[:, number] for number, axis in enumerate(orientation)}
    side, front, top = (found[ahead] if ahead in found else -found[back] for ahead, back in ("RL", "AP", "SI"))
    half = np.stack([np.abs(side), front, top], axis=1)
    away = [np.sqrt((((half - centre) / radii) ** 2).sum(axis=1)) for centre, radii in REGION]
    return np.asarray(((1 - np.min(away, axis=0)) / SOFT_EDGE + 0.5).clip(0, 1))
