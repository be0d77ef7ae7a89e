"""Is there a lesion at all? A probability that is one: of so many scans with it as often as it says, one has a lesion.

Vovk & Petej, Venn-Abers predictors, 2012, arXiv 1211.0025: the scan is tried as one with and as one without a lesion
among those whose truth is known, and isotonic regression says of each what share has one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SMALLEST_ML = 0.1  # of a lesion
FEWEST = 10  # patients with a lesion and as many without, before a probability is given


class Presence(NamedTuple):
    """The probability of a lesion, and the two between which it is calibrated for sure."""

    probability: float
    low: float
    high: float


def score(probability: npt.NDArray[np.float32], voxel_ml: float) -> float:
    """What the most probable SMALLEST_ML of a map [X, Y, Z] all reach."""
    voxels = min(max(1, round(SMALLEST_ML / voxel_ml)), probability.size)
    return float(np.partition(probability, -voxels, axis=None)[-voxels])


def presence(found: float, diseased: Sequence[float], healthy: Sequence[float]) -> Presence | None:
    """By the scores of other patients, with a lesion and without; None of too few of either."""
    if min(len(diseased), len(healthy)) < FEWEST:
        return None
    from sklearn.isotonic import IsotonicRegression

    scores, truth = [*diseased, *healthy, found], [1.0] * len(diseased) + [0.0] * len(healthy)
    low, high = (
        float(IsotonicRegression(y_min=0, y_max=1).fit(scores, [*truth, tried]).predict([found])[0])
        for tried in (0.0, 1.0)
    )
    return Presence(high / (1 - low + high), low, high)  # the log loss that is least at worst
