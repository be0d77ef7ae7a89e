"""Which slices need no second look: a threshold of what one look says of each, and what is missed below it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MISSED = 0.01  # of a lesion's voxels at most lie in slices that are left out: sampling finds few of those either
HIGHEST = 0.5  # of a threshold: above it the look itself says lesion


class Screening(NamedTuple):
    """A slice is left out where the largest probability of its look stays below `threshold`. On the slices that this was
    chosen on it left out the share `left_out`, and with them the share `missed` of the reference's voxels, of the region
    where that is largest."""

    threshold: float
    missed: float
    left_out: float


def choose_screening(largest: npt.ArrayLike, lesion: npt.ArrayLike, *, missed: float = MISSED) -> Screening | None:
    """The highest threshold, up to one half, below which no more than such a share of any region's voxels lies; None where
    a region has no voxel, because then nothing can be measured.

    Of slices: the `largest` probability of a look at each [N], and how many voxels of each region's reference it holds
    [N, R].
    """
    order = np.argsort(np.asarray(largest, dtype=np.float64), kind="stable")
    values, voxels = np.asarray(largest, dtype=np.float64)[order], np.asarray(lesion, dtype=np.float64)[order]
    if not len(values) or not voxels.sum(axis=0).all():
        return None
    shares = np.cumsum(voxels, axis=0) / voxels.sum(axis=0)
    kept = int(np.argmax((shares > missed).any(axis=1)))  # the first that has to stay: there is one, shares end at 1
    threshold = min(float(values[kept]), HIGHEST)
    below = int(np.searchsorted(values, threshold, side="left"))
    return Screening(threshold, float(shares[below - 1].max()) if below else 0.0, below / len(values))
