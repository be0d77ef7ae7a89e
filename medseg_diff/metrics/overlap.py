"""How well one mask covers another: Dice, IoU, surface distances and volumes of whole 3D masks."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


class Empty(NamedTuple):
    """What a measure is worth where masks are empty; None: undefined, and left out of every mean."""

    both: float
    one: float | None


CONVENTIONS = {
    "dice": Empty(both=1.0, one=0.0),
    "iou": Empty(both=1.0, one=0.0),
    "hd95_mm": Empty(both=0.0, one=None),
    "surface_dice": Empty(both=1.0, one=0.0),
}


def dice(mask: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Dice coefficient 2|A∩B| / (|A| + |B|) of two boolean masks of one shape, in [0, 1]."""
    first, second = pair_of(mask, reference)
    voxels = np.count_nonzero(first) + np.count_nonzero(second)
    return 2.0 * np.count_nonzero(first & second) / voxels if voxels else CONVENTIONS["dice"].both


def iou(mask: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Intersection over union |A∩B| / |A∪B| (Jaccard index) of two boolean masks of one shape, in [0, 1]."""
    first, second = pair_of(mask, reference)
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else CONVENTIONS["iou"].both


def hd95_mm(mask: npt.ArrayLike, reference: npt.ArrayLike, *, spacing_mm: Sequence[float]) -> float | None:
    """95th percentile of the distances between two surfaces [X, Y, Z], the larger of the two directions, in mm.

    The surface is the mask's outermost layer of voxels (MONAI's compute_hausdorff_distance, percentile=95).
    None where exactly one mask is empty: there is no distance to nothing.
    """
    first, second = pair_of(mask, reference)
    if not (first.any() and second.any()):
        return _empty("hd95_mm", first, second)
    from monai.metrics import compute_hausdorff_distance

    return _of_surfaces(compute_hausdorff_distance, first, second, percentile=95, spacing=_numbers(spacing_mm))


def surface_dice(
    mask: npt.ArrayLike, reference: npt.ArrayLike, *, spacing_mm: Sequence[float], tolerance_mm: float = 1.0
) -> float | None:
    """Share of both surfaces [X, Y, Z] that lies within `tolerance_mm` of the other one, in [0, 1].

    Surfaces are weighted by their area inside the voxel (Nikolov et al. 2018, arXiv:1809.04430; MONAI's
    compute_surface_dice with use_subvoxels=True). Distances run between lattice points, so on voxels as large as the
    tolerance the share reads high: 0.40 where two shifted spheres have 0.25, and 0.31 at half the voxel size.
    """
    first, second = pair_of(mask, reference)
    if not (first.any() and second.any()):
        return _empty("surface_dice", first, second)
    from monai.metrics import compute_surface_dice

    settings = {"class_thresholds": [tolerance_mm], "use_subvoxels": True, "spacing": _numbers(spacing_mm)}
    return _of_surfaces(compute_surface_dice, first, second, **settings)


def volume_ml(mask: npt.ArrayLike, *, voxel_ml: float) -> float:
    """Volume of a boolean mask in millilitres."""
    return np.count_nonzero(np.asarray(mask)) * voxel_ml


def volume_error_ml(mask: npt.ArrayLike, reference: npt.ArrayLike, *, voxel_ml: float) -> float:
    """Volume of `mask` less that of `reference` in millilitres: positive where too much was marked."""
    first, second = pair_of(mask, reference)
    return volume_ml(first, voxel_ml=voxel_ml) - volume_ml(second, voxel_ml=voxel_ml)


def pair_of(mask: npt.ArrayLike, reference: npt.ArrayLike) -> tuple[Mask, Mask]:
    """Both as arrays. Raises: ValueError where they are not boolean and of one shape."""
    first, second = np.asarray(mask), np.asarray(reference)
    if first.dtype != bool or second.dtype != bool or first.shape != second.shape:
        raise ValueError(
            f"masks must be boolean, of one shape; found {first.dtype} {first.shape} and {second.dtype} {second.shape}"
        )
    return first, second


def _empty(name: str, first: Mask, second: Mask) -> float | None:
    return CONVENTIONS[name].one if first.any() or second.any() else CONVENTIONS[name].both


def _of_surfaces(measure: Callable[..., Any], first: Mask, second: Mask, **settings: Any) -> float:
    """A measure of MONAI's, of the smallest box that holds both masks: a lesion is a hundredth of its volume. Along an axis
    of one voxel there is no inside: the surface of a single slice is its outline."""
    import torch
    from scipy import ndimage

    (box,) = ndimage.find_objects((first | second).view(np.uint8))
    kept = [axis for axis, voxels in enumerate(first.shape) if voxels > 1]
    if 1 < len(kept) < first.ndim:
        first, second = (mask.reshape([mask.shape[axis] for axis in kept]) for mask in (first, second))
        settings["spacing"], box = [settings["spacing"][axis] for axis in kept], tuple(box[axis] for axis in kept)
    batches = (torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (first, second))
    with warnings.catch_warnings():  # MONAI 1.6 warns about an argument that it passes to itself
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        return float(measure(*batches, include_background=True, **settings))


def _numbers(spacing_mm: Sequence[float]) -> list[float]:
    return [float(spacing) for spacing in spacing_mm]
