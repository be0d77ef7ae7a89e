"""Volumes of brain and ventricles from a T1 image alone, by how dark a voxel is and how deep it lies.

For scans without a segmentation, real or synthetic. Chosen on phantoms of one kind of scanner: what they measure follows the
truth, and is not the truth. Between scanners it differs; compare images of one kind.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.floating]
DEEP_MM = 25.0  # below the brain's surface fluid is that of ventricles: sulci end before
SMOOTH_VOXELS = 0.5  # noise is not to pass for fluid
FLUID, GREY, TISSUE = (
    1.0,
    35.0,
    50.0,
)  # percentiles of a brain: fluid, about where grey matter begins, tissue
SURE = 0.5  # share of fluid from which a deep voxel counts, and then as far as it lies above


class BrainVolumes(NamedTuple):
    """In millilitres: what is dark deep inside, which follows the ventricles' volume, and the brain without any fluid."""

    ventricle_ml: float
    brain_ml: float


def brain_volumes(image: Image, brain: npt.NDArray[np.bool_], spacing_mm: Sequence[float]) -> BrainVolumes:
    """Of a T1 image [X, Y, Z] and its brain, as skull stripping leaves it; NaN where there is none or it is all alike."""
    from scipy import ndimage

    if not brain.any():
        return BrainVolumes(float("nan"), float("nan"))
    weight = ndimage.gaussian_filter(brain.astype(np.float64), SMOOTH_VOXELS).clip(1e-6)
    smooth = ndimage.gaussian_filter(np.where(brain, image, 0).astype(np.float64), SMOOTH_VOXELS) / weight
    fluid, grey, tissue = np.percentile(smooth[brain], [FLUID, GREY, TISSUE])
    if fluid == grey:
        return BrainVolumes(float("nan"), float("nan"))
    whole = ndimage.binary_fill_holes(brain)
    depth = ndimage.distance_transform_edt(np.pad(whole, 1), sampling=tuple(spacing_mm))[1:-1, 1:-1, 1:-1]
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    deep = _share(smooth[(depth > DEEP_MM) & brain], fluid, grey)
    solid = 1 - _share(smooth[brain], fluid, tissue)
    return BrainVolumes(float(((deep - SURE) / (1 - SURE)).clip(0, 1).sum()) * voxel_ml, float(solid.sum()) * voxel_ml)


def _share(values: Image, fluid: float, tissue: float) -> Image:
    """How much of a voxel is fluid: 1 at its value and below, 0 at the tissue's and above, linear between."""
    return ((tissue - values) / (tissue - fluid)).clip(0, 1)
