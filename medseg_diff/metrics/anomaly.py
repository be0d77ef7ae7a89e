"""Does a map of scores find the lesion? AUROC, average precision and Dice over thresholds, exact for one volume.

Voxels of equal score count as one group, so that nothing depends on their order.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_diff.metrics.calibration import tally

Floats = npt.NDArray[np.float64]
BIN_BITS = 20  # of a float32, counted from its sign: scores are told apart to 0.05 %


@dataclass(frozen=True)
class Ranking:
    """Voxels at or above each distinct score, highest first: `scores` [G], all of them `voxels` [G], of the lesion
    `hits` [G]; `voxels` and `hits` of the last group are totals."""

    scores: Floats
    voxels: Floats
    hits: Floats

    @property
    def misses(self) -> Floats:
        """Voxels outside the lesion at or above each score, [G]."""
        return self.voxels - self.hits

    def auroc(self) -> float | None:
        """P(a voxel of the lesion scores higher than another), ties half; None without one or the other."""
        if not (self.hits[-1] and self.misses[-1]):
            return None
        true, false = (np.concatenate([[0.0], part]) for part in (self.hits, self.misses))
        area = float((np.diff(false) * (true[1:] + true[:-1]) / 2).sum())
        return area / float(self.hits[-1] * self.misses[-1])

    def average_precision(self) -> float | None:
        """Sum over thresholds of precision times the recall gained, no interpolation; None without a lesion."""
        if not self.hits[-1]:
            return None
        gained = np.diff(self.hits, prepend=0.0) / self.hits[-1]
        return float((gained * self.hits / np.maximum(self.voxels, 1.0)).sum())

    def sensitivity_at(self, rates: npt.ArrayLike) -> Floats:
        """The ROC curve: share of the lesion found where such a share `rates` [N] of the other voxels is marked too,
        straight between groups; NaN without one or the other."""
        wanted = np.asarray(rates, dtype=np.float64)
        if not (self.hits[-1] and self.misses[-1]):
            return np.full(wanted.shape, np.nan)
        true, false = (np.concatenate([[0.0], part]) / part[-1] for part in (self.hits, self.misses))
        last = np.searchsorted(false, wanted, side="right") - 1  # the highest point above each rate
        following = np.minimum(last + 1, len(false) - 1)
        gap = false[following] - false[last]
        share = np.where(gap > 0, (wanted - false[last]) / np.where(gap > 0, gap, 1), 0.0)
        return np.asarray(true[last] + share * (true[following] - true[last]))

    def precision_at(self, recalls: npt.ArrayLike) -> Floats:
        """Precision at the first threshold that finds at least such a share `recalls` [N] of the lesion; NaN without one."""
        wanted = np.asarray(recalls, dtype=np.float64)
        if not self.hits[-1]:
            return np.full(wanted.shape, np.nan)
        first = np.searchsorted(self.hits / self.hits[-1], wanted * (1 - 1e-12), side="left")
        return np.asarray((self.hits / np.maximum(self.voxels, 1.0))[first])

    def dice_at(self, thresholds: npt.ArrayLike) -> Floats:
        """Dice of {score > threshold} against the lesion for each of `thresholds` [N]; 1 where both are empty.

        Thresholds are compared as float32, as a map is with a threshold.
        """
        cuts = np.asarray(thresholds, dtype=np.float32).astype(np.float64)
        above = np.searchsorted(-self.scores, -cuts, side="left")
        voxels, hits = (np.concatenate([[0.0], part])[above] for part in (self.voxels, self.hits))
        both = voxels + self.hits[-1]
        return np.where(both > 0, 2 * hits / np.maximum(both, 1.0), 1.0)


def rank(scores: npt.ArrayLike, lesion: npt.ArrayLike) -> Ranking:
    """Rank voxels: `scores` finite and `lesion` boolean, of one shape and not empty; pass the voxels of the brain.

    Raises: ValueError for anything else.
    """
    groups = tally(scores, lesion)
    return Ranking(groups.scores[::-1], np.cumsum(groups.voxels[::-1]), np.cumsum(groups.events[::-1]))


class Counts(NamedTuple):
    """Voxels [N] and those of them in a lesion [N] by bin [N] of nearly equal score."""

    bins: npt.NDArray[np.int64]
    voxels: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]


def counts(scores: npt.ArrayLike, lesion: npt.ArrayLike) -> Counts:
    """Count voxels: real `scores` and boolean `lesion` of one shape."""
    marked = np.asarray(lesion)
    assert marked.dtype == bool
    bins, of_voxel = np.unique(_bin_of(np.asarray(scores)), return_inverse=True)
    hits = np.bincount(of_voxel[marked.ravel()], minlength=len(bins))
    return Counts(bins, np.bincount(of_voxel, minlength=len(bins)), hits)


class Pool:
    """Voxels of any number of volumes together, in bounded memory: counted in bins of nearly equal score.

    A bin holds the scores whose leading bits agree, so the ranking needs no range beforehand; the bins are 0.05 % wide.
    """

    def __init__(self) -> None:
        self._voxels = np.zeros(2**BIN_BITS, dtype=np.int64)
        self._hits = np.zeros(2**BIN_BITS, dtype=np.int64)

    def add(self, found: Counts) -> None:
        """The voxels of one more volume."""
        self._voxels[found.bins] += found.voxels
        self._hits[found.bins] += found.hits

    def ranking(self) -> Ranking | None:
        """The ranking of all that was added, with the number of the bin for a score; None where nothing was."""
        held = np.flatnonzero(self._voxels)[::-1]
        if not len(held):
            return None
        return Ranking(
            held.astype(np.float64),
            np.cumsum(self._voxels[held], dtype=np.float64),
            np.cumsum(self._hits[held], dtype=np.float64),
        )


def _bin_of(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Leading bits of float32 numbers as integers that order as the numbers do, flat."""
    flat = np.ascontiguousarray(scores, dtype=np.float32).ravel()
    bits = (flat + np.float32(0)).view(np.uint32)  # + 0: minus zero is zero
    negative = bits >> 31 == 1
    ordered = np.where(negative, ~bits, bits | np.uint32(1 << 31))  # two's complement of the order of floats
    return (ordered >> (32 - BIN_BITS)).astype(np.int64)
