"""How well one mask covers another: Dice, IoU, surface distances and volumes of whole 3D masks."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

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
    first, second = _pair(mask, reference)
    voxels = np.count_nonzero(first) + np.count_nonzero(second)
    return 2.0 * np.count_nonzero(first & second) / voxels if voxels else CONVENTIONS["dice"].both


def iou(mask: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Intersection over union |A∩B| / |A∪B| (Jaccard index) of two boolean masks of one shape, in [0, 1]."""
    first, second = _pair(mask, reference)
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else CONVENTIONS["iou"].both


def hd95_mm(mask: npt.ArrayLike, reference: npt.ArrayLike, *, spacing_mm: Sequence[float]) -> float | None:
    """95th percentile of the distances between two surfaces [X, Y, Z], the larger of the two directions, in mm.

    The surface is the mask's outermost layer of voxels (MONAI's compute_hausdorff_distance, percentile=95).
    None where exactly one mask is empty: there is no distance to nothing.
    """
    first, second = _pair(mask, reference)
    if not (first.any() and second.any()):
        return _empty("hd95_mm", first, second)
    from monai.metrics import compute_hausdorff_distance

    first, second = _joint_box(first, second)
    with _quiet():
        distance = compute_hausdorff_distance(
            _batch(first), _batch(second), include_background=True, percentile=95, spacing=_numbers(spacing_mm)
        )
    return float(distance)


def surface_dice(
    mask: npt.ArrayLike, reference: npt.ArrayLike, *, spacing_mm: Sequence[float], tolerance_mm: float = 1.0
) -> float | None:
    """Share of both surfaces [X, Y, Z] that lies within `tolerance_mm` of the other one, in [0, 1].

    Surfaces are weighted by their area inside the voxel (Nikolov et al. 2018, arXiv:1809.04430; MONAI's
    compute_surface_dice with use_subvoxels=True). Distances run between lattice points, so on voxels as large as the
    tolerance the share reads high: 0.40 where two shifted spheres have 0.25, and 0.31 at half the voxel size.
    """
    first, second = _pair(mask, reference)
    if not (first.any() and second.any()):
        return _empty("surface_dice", first, second)
    from monai.metrics import compute_surface_dice

    first, second = _joint_box(first, second)
    with _quiet():
        share = compute_surface_dice(
            _batch(first),
            _batch(second),
            class_thresholds=[tolerance_mm],
            include_background=True,
            spacing=_numbers(spacing_mm),
            use_subvoxels=True,
        )
    return float(share)


def volume_ml(mask: npt.ArrayLike, *, spacing_mm: Sequence[float]) -> float:
    """Volume of a boolean mask in millilitres."""
    return float(np.count_nonzero(np.asarray(mask)) * np.prod(_numbers(spacing_mm)) / 1000)


def volume_error_ml(mask: npt.ArrayLike, reference: npt.ArrayLike, *, spacing_mm: Sequence[float]) -> float:
    """Volume of `mask` less that of `reference` in millilitres: positive where too much was marked."""
    first, second = _pair(mask, reference)
    return volume_ml(first, spacing_mm=spacing_mm) - volume_ml(second, spacing_mm=spacing_mm)


def _pair(mask: npt.ArrayLike, reference: npt.ArrayLike) -> tuple[Mask, Mask]:
    first, second = np.asarray(mask), np.asarray(reference)
    if first.dtype != bool or second.dtype != bool or first.shape != second.shape:
        raise ValueError(
            f"masks must be boolean, of one shape; found {first.dtype} {first.shape} and {second.dtype} {second.shape}"
        )
    return first, second


def _empty(name: str, first: Mask, second: Mask) -> float | None:
    return CONVENTIONS[name].one if first.any() or second.any() else CONVENTIONS[name].both


def _joint_box(first: Mask, second: Mask) -> tuple[Mask, Mask]:
    """Both masks cut to the smallest box that holds them: a lesion is a hundredth of its volume."""
    either = first | second
    spans = []
    for axis in range(either.ndim):
        others = tuple(other for other in range(either.ndim) if other != axis)
        marked = np.flatnonzero(either.any(axis=others))
        spans.append(slice(int(marked[0]), int(marked[-1]) + 1))
    box = tuple(spans)
    return first[box], second[box]


def _batch(mask: Mask) -> "torch.Tensor":
    import torch

    return torch.from_numpy(np.ascontiguousarray(mask))[None, None]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MONAI 1.6's warning about an argument that it passes to itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        yield


def _numbers(spacing_mm: Sequence[float]) -> list[float]:
    return [float(spacing) for spacing in spacing_mm]
