"""Does the spread of an ensemble look like the spread of human raters? Distances between two sets of masks.

The generalised energy distance as in Kohl et al., A Probabilistic U-Net for Segmentation of Ambiguous Images, 2018,
arXiv:1806.05034.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


def pairwise_iou(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """IoU of every mask of `first` [n, *S] with every mask of `second` [m, *S] → [n, m]; two empty masks: 1."""
    # Counts below 2^24 are exact in float32; a volume of more voxels than that would be marked as a whole.
    one, other = (_boolean(masks).reshape(len(np.asarray(masks)), -1).astype(np.float32) for masks in (first, second))
    common = (one @ other.T).astype(np.float64)
    union = one.sum(axis=1, dtype=np.float64)[:, None] + other.sum(axis=1, dtype=np.float64)[None, :] - common
    return np.divide(common, union, out=np.ones_like(common), where=union > 0)


class Distances(NamedTuple):
    """Mean distances 1 - IoU between `n` members and `raters` masks of raters: of every member to every rater, and of every
    two members, every two raters; None where there are no two. Two empty masks have distance 0."""

    between: float
    among_members: float | None
    among_raters: float | None
    n: int
    raters: int

    @property
    def ged2(self) -> float:
        """Squared generalised energy distance, 0 is best: 2 E d(S, Y) - E d(S, S') - E d(Y, Y') (Kohl et al.).

        Every expectation over all pairs, a mask with itself included: the V-statistic, never negative. The fewer masks there
        are, the higher it is, even for members drawn just as the raters are.
        """
        among = [
            (among or 0.0) * (n - 1) / n
            for among, n in ((self.among_members, self.n), (self.among_raters, self.raters))
        ]
        return 2 * self.between - sum(among)

    @property
    def ged2_unbiased(self) -> float | None:
        """The same over pairs of different masks: the U-statistic, 0 on average for members drawn as the raters are, however
        few. It may be negative; None where there are no two members or no two raters."""
        if self.among_members is None or self.among_raters is None:
            return None
        return 2 * self.between - self.among_members - self.among_raters


def distances(members: npt.ArrayLike, raters: npt.ArrayLike) -> Distances:
    """Of members [n, *S] and raters [R, *S], both boolean."""
    of_members, of_raters = (_among(1 - pairwise_iou(masks, masks)) for masks in (members, raters))
    between = float(1 - pairwise_iou(members, raters).mean())
    return Distances(between, of_members, of_raters, len(np.asarray(members)), len(np.asarray(raters)))


def distances_of_slices(members: npt.ArrayLike, raters: npt.ArrayLike) -> Iterator[tuple[int, Distances]]:
    """(slice, distances) of members [n, D, H, W] and raters [R, D, H, W] for each slice in which a rater marked a lesion.

    One slice at a time, each cut to what is marked in it: memory does not grow with D.
    """
    marked_by_members, marked_by_raters = _boolean(members), _boolean(raters)
    for index in np.flatnonzero(marked_by_raters.any(axis=(0, 2, 3))):
        here, truth = marked_by_members[:, index], marked_by_raters[:, index]
        either = here.any(axis=0) | truth.any(axis=0)
        yield int(index), distances(here[:, either], truth[:, either])


def _among(matrix: npt.NDArray[np.float64]) -> float | None:
    """Mean of a symmetric matrix [n, n] with zeros on its diagonal over the pairs that are not on it."""
    n = len(matrix)
    return float(matrix.sum() / (n * (n - 1))) if n > 1 else None


def _boolean(masks: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    array = np.asarray(masks)
    if array.dtype != bool:
        raise ValueError(f"masks must be boolean, found {array.dtype}")
    return array
