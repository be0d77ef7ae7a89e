"""Does the spread of an ensemble look like the spread of human raters? Distances between two sets of masks.

The generalised energy distance as in Kohl et al., A Probabilistic U-Net for Segmentation of Ambiguous Images, 2018,
arXiv:1806.05034.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def pairwise_iou(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """IoU of every mask of `first` [n, *S] with every mask of `second` [m, *S] → [n, m]; two empty masks: 1."""
    # Counts below 2^24 are exact in float32; a volume of more voxels than that would be marked as a whole.
    one, other = (_boolean(masks).reshape(len(np.asarray(masks)), -1).astype(np.float32) for masks in (first, second))
    common = (one @ other.T).astype(np.float64)
    union = one.sum(axis=1, dtype=np.float64)[:, None] + other.sum(axis=1, dtype=np.float64)[None, :] - common
    return np.divide(common, union, out=np.ones_like(common), where=union > 0)


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


def _boolean(masks: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    array = np.asarray(masks)
    if array.dtype != bool:
        raise ValueError(f"masks must be boolean, found {array.dtype}")
    return array
