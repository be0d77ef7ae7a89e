"""Does the spread of an ensemble look like the spread of human raters? Distances between two sets of masks.

The generalised energy distance as in Kohl et al., A Probabilistic U-Net for Segmentation of Ambiguous Images, 2018,
arXiv:1806.05034.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def pairwise_iou(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """IoU of every mask of `first` [n, *S] with every mask of `second` [m, *S] → [n, m]; two empty masks: 1."""
    common, total = _common_and_total(first, second)
    union = total - common
    return np.divide(common, union, out=np.ones_like(common), where=union > 0)


def pairwise_dice(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Dice of every mask of `first` [n, *S] with every mask of `second` [m, *S] → [n, m]; two empty masks: 1."""
    common, total = _common_and_total(first, second)
    return np.divide(2 * common, total, out=np.ones_like(common), where=total > 0)


def ged2(members: npt.ArrayLike, raters: npt.ArrayLike) -> float:
    """Squared generalised energy distance of members [n, *S] and raters [R, *S], both boolean; 0 is best.

    2 E d(S, Y) - E d(S, S') - E d(Y, Y') with d = 1 - IoU (Kohl et al.), every expectation over all pairs, a mask with
    itself included: the V-statistic, never negative. Two empty masks have distance 0.
    """
    between = 1 - pairwise_iou(members, raters).mean()
    among_members = 1 - pairwise_iou(members, members).mean()
    among_raters = 1 - pairwise_iou(raters, raters).mean()
    return float(2 * between - among_members - among_raters)


def ged2_of_slices(members: npt.ArrayLike, raters: npt.ArrayLike) -> Iterator[tuple[int, float]]:
    """(slice, GED²) of members [n, D, H, W] and raters [R, D, H, W] for each slice in which a rater marked a lesion.

    One slice at a time, each cut to what is marked in it: memory does not grow with D.
    """
    marked_by_members, marked_by_raters = _boolean(members), _boolean(raters)
    for index in np.flatnonzero(marked_by_raters.any(axis=(0, 2, 3))):
        here, truth = marked_by_members[:, index], marked_by_raters[:, index]
        either = here.any(axis=0) | truth.any(axis=0)
        yield int(index), ged2(here[:, either], truth[:, either])


def _common_and_total(
    first: npt.ArrayLike, second: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Voxels in both masks, and voxels of one plus voxels of the other, for every pair → two arrays [n, m]."""
    flat_first = _boolean(first).reshape(len(np.asarray(first)), -1).astype(np.float32)
    flat_second = _boolean(second).reshape(len(np.asarray(second)), -1).astype(np.float32)
    # Counts below 2^24 are exact in float32; a volume of more voxels than that would be marked as a whole.
    common = (flat_first @ flat_second.T).astype(np.float64)
    voxels_first = flat_first.sum(axis=1, dtype=np.float64)
    voxels_second = flat_second.sum(axis=1, dtype=np.float64)
    return common, voxels_first[:, None] + voxels_second[None, :]


def _boolean(masks: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    array = np.asarray(masks)
    if array.dtype != bool:
        raise ValueError(f"masks must be boolean, found {array.dtype}")
    return array
