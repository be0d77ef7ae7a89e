"""Is there a lesion at all? A probability that is one: of the scans of which it says 0.8, four in five have a lesion.

It holds where lesions are as frequent as among those that it was measured on. Vovk & Petej, Venn-Abers predictors, 2012,
arXiv 1211.0025: the scan is tried among them as one with a lesion and as one without, and isotonic regression says of each
trial how probable one is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LOOKED_AT_ML = 0.1
DIGITS = 5
FEWEST = 10  # patients with a lesion and as many without, before a probability is given


class Presence(NamedTuple):
    """The probability of a lesion, and those of the two trials, `low` and `high`: that of the truth, which nobody knows, is
    calibrated."""

    probability: float
    low: float
    high: float


def score(probability: npt.NDArray[np.float32], voxel_ml: float) -> float:
    """What the most probable LOOKED_AT_ML of a map [X, Y, Z] in [0, 1] all reach; rounded, as it is kept."""
    voxels = min(max(1, round(LOOKED_AT_ML / voxel_ml)), probability.size)
    above = probability[probability > 0]  # most of a map is 0, and among equal numbers a partition takes seconds
    return round(float(np.partition(above, -voxels)[-voxels]), DIGITS) if len(above) >= voxels else 0.0


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
