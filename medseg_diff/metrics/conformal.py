"""What holds for the next patient as often as it says, whatever the model: conformal intervals, thresholds of bounded risk.

All of it rests on one assumption: the next patient is like those that it was measured on (exchangeable with them: the same
scanners, the same disease). Angelopoulos & Bates, A Gentle Introduction to Conformal Prediction, 2021, arXiv 2107.07511
(2.3: scores in units of the model's own doubt); Angelopoulos et al., Conformal Risk Control, 2022, arXiv 2208.02814.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Volumes are compared as logarithms of what they are above this: one of 0 has one, and a drop is no lesion.
SMALL_ML = 1.0
# Of a volume's uncertainty, chosen on phantoms: probabilities, and |log| of a ratio that no map is surer than.
LEAST_PROBABLE, MOST_PROBABLE, LEAST_UNCERTAINTY = 0.05, 0.95, 0.2
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


def bound(scores: Sequence[float], level: float) -> float | None:
    """What the score of the next patient stays below with probability `level`; None of too few scores.

    The ceil((n + 1) level)-th smallest of n exchangeable scores.
    """
    rank = math.ceil(round((len(scores) + 1) * level, 9))
    return sorted(scores)[rank - 1] if rank <= len(scores) else None


def volume_uncertainty(probability: npt.NDArray[np.float32], voxel_ml: float) -> float:
    """How far a volume may be off by its map's own account [X, Y, Z]: |log| of the ratio of what has a probability above
    0.05 to what has one above 0.95, and 0.2 more, because a map that is sure of itself is off too."""
    widest, narrowest = (np.count_nonzero(probability > cut) * voxel_ml for cut in (LEAST_PROBABLE, MOST_PROBABLE))
    return _log_ratio(widest, narrowest) + LEAST_UNCERTAINTY


def volume_error(predicted_ml: float, true_ml: float, uncertainty: float) -> float:
    """|log| of the ratio of a volume to the true one, in units of its uncertainty."""
    return _log_ratio(predicted_ml, true_ml) / uncertainty


def _log_ratio(one_ml: float, other_ml: float) -> float:
    return abs(math.log((one_ml + SMALL_ML) / (other_ml + SMALL_ML)))


def volume_interval(
    predicted_ml: float, uncertainty: float, errors: Sequence[float], level: float
) -> VolumeInterval | None:
    """Where the true volume lies with probability `level`, by the `volume_error` of other patients; None of too few."""
    farthest = bound(errors, level)
    if farthest is None:
        return None
    ratio = math.exp(farthest * uncertainty)
    low, high = (predicted_ml + SMALL_ML) / ratio - SMALL_ML, (predicted_ml + SMALL_ML) * ratio - SMALL_ML
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
    return bound([own[allowed[-1]] for own in thresholds], level) if allowed else None
