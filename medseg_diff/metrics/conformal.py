"""What holds for the next patient as often as it says, whatever the model: conformal intervals, thresholds of bounded risk.

All of it rests on one assumption: the next patient is like those that it was measured on (exchangeable with them: the same
scanners, the same disease). Angelopoulos & Bates, A Gentle Introduction to Conformal Prediction, 2021, arXiv 2107.07511;
Angelopoulos et al., Conformal Risk Control, 2022, arXiv 2208.02814.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SMALL_ML = (
    1.0  # volumes are compared as logarithms of what they are above this: one of 0 has one, and a drop is no lesion
)
# Where a mask of bounded risk may be cut: closer together near 0, where faint lesions lie.
THRESHOLDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, *(round(0.01 * step, 2) for step in range(1, 100)))


class VolumeInterval(NamedTuple):
    """Of the true volume, in ml."""

    low: float
    high: float


def fewest_patients(level: float) -> int:
    """How many have to be measured before an interval of this level can be given: 9 for 0.9, 19 for 0.95."""
    return math.ceil(round(level / (1 - level), 9))


def bound(scores: Sequence[float], level: float) -> float | None:
    """What the score of the next patient stays below with probability `level`; None of too few scores.

    The ceil((n + 1) level)-th smallest of n exchangeable scores.
    """
    rank = math.ceil(round((len(scores) + 1) * level, 9))
    return sorted(scores)[rank - 1] if rank <= len(scores) else None


def volume_score(found_ml: float, true_ml: float) -> float:
    """How far a volume is from the true one, as |log| of their ratio, both taken `SMALL_ML` larger."""
    return abs(math.log((true_ml + SMALL_ML) / (found_ml + SMALL_ML)))


def volume_interval(found_ml: float, scores: Sequence[float], level: float) -> VolumeInterval | None:
    """Where the true volume lies with probability `level`, by the scores of other patients; None of too few of them."""
    farthest = bound(scores, level)
    if farthest is None:
        return None
    ratio = math.exp(farthest)
    low, high = (found_ml + SMALL_ML) / ratio - SMALL_ML, (found_ml + SMALL_ML) * ratio - SMALL_ML
    return VolumeInterval(max(low, 0.0), high)


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
