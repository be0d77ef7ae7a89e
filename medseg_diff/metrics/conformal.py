"""What holds for the next patient as often as it says, whatever the model: conformal intervals, thresholds of bounded risk.

All of it rests on one assumption: the next patient is like those that it was measured on (exchangeable with them: the same
scanners, the same disease). Barber et al., Predictive inference with the jackknife+, 2019, arXiv 1905.02928 (its CV+);
Angelopoulos et al., Conformal Risk Control, 2022, arXiv 2208.02814.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Volumes are compared as logarithms of what they are above this: one of 0 has one, and a drop is no lesion.
SMALL_ML = 1.0
LEVELS = (0.5, 0.8, 0.9, 0.95)  # of the intervals that every result states
# Where a mask of bounded risk may be cut: closer together near 0, where faint lesions lie.
THRESHOLDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, *(round(0.01 * step, 2) for step in range(1, 100)))

FALSE_POSITIVES_ML = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # that may be marked in a healthy brain


class VolumeInterval(NamedTuple):
    """Of the true volume, in ml."""

    low: float
    high: float


def fewest_patients(level: float) -> int:
    """How many have to be measured before an interval of this level can be given: 9 for 0.9, 19 for 0.95."""
    return math.ceil(round(level / (1 - level), 9))


def volume_score(found_ml: float, true_ml: float) -> float:
    """How far a volume is from the true one, as |log| of their ratio, both taken `SMALL_ML` larger."""
    return abs(math.log((true_ml + SMALL_ML) / (found_ml + SMALL_ML)))


def volume_interval(
    volumes_ml: Sequence[float], scores: Sequence[Sequence[float]], level: float
) -> VolumeInterval | None:
    """Where the true volume lies with probability `level`: CV+, of the volumes that one or several models find, each with
    the scores of the patients it never saw. None of too few scores.

    Models that differ more about a scan than about their patients widen it. Of one model it is split conformal, and holds
    for sure; of several, (2 level - 1) is sure and `level` usual.
    """
    found = np.repeat([math.log(volume + SMALL_ML) for volume in volumes_ml], [len(own) for own in scores])
    apart = np.array([score for own in scores for score in own])
    rank = math.ceil(round((len(apart) + 1) * level, 9))
    if rank > len(apart):
        return None
    low, high = np.sort(found - apart)[len(apart) - rank], np.sort(found + apart)[rank - 1]
    return VolumeInterval(max(math.exp(low) - SMALL_ML, 0.0), math.exp(high) - SMALL_ML)


def missed_shares(probability: npt.NDArray[np.float32], reference: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The share of the reference's voxels that are not above each of THRESHOLDS; 0 where nothing is marked. [N] → [T]."""
    inside = np.sort(probability[reference])
    if not len(inside):
        return np.zeros(len(THRESHOLDS))
    return np.searchsorted(inside, np.asarray(THRESHOLDS, np.float32), side="right") / len(inside)


def threshold_of_risk(mean_missed: Sequence[float], patients: int, risk: float) -> float | None:
    """The highest of THRESHOLDS at which the expected share of the next patient's lesion that is missed is at most `risk`.

    `mean_missed` is the mean of `missed_shares` over so many patients with a lesion. Risk control: (n R + 1) / (n + 1) is
    at most the risk. None where no threshold is low enough, as with fewer than 1 / risk - 1 patients.
    """
    bounded = [
        threshold
        for threshold, missed in zip(THRESHOLDS, mean_missed, strict=True)
        if (patients * missed + 1) / (patients + 1) <= risk + 1e-12
    ]
    return max(bounded, default=None)


def thresholds_of_volumes(scores: npt.NDArray[np.float32], voxel_ml: float) -> list[float]:
    """The threshold of a healthy brain's voxels [N] above which no more than each of FALSE_POSITIVES_ML lies."""
    ordered = np.sort(scores)[::-1]
    places = [min(int(volume / voxel_ml + 1e-9), len(ordered) - 1) for volume in FALSE_POSITIVES_ML]
    return [float(ordered[place]) for place in places]


def threshold_of_volume(thresholds: Sequence[Sequence[float]], volume_ml: float, level: float) -> float | None:
    """Above which no more than a volume is marked in the next healthy brain, with probability `level`.

    `thresholds` are what `thresholds_of_volumes` says of each of several brains; of the volumes listed there the largest
    that is no larger than this one counts. None of too few brains, or where the volume is smaller than all of them.
    """
    allowed = [place for place, listed in enumerate(FALSE_POSITIVES_ML) if listed <= volume_ml]
    rank = math.ceil(round((len(thresholds) + 1) * level, 9))
    if not allowed or rank > len(thresholds):
        return None
    return sorted(own[allowed[-1]] for own in thresholds)[rank - 1]
