"""Does a scan look like those that a model was trained on? A distance from their mean, feature by feature, and a threshold.

With few patients nobody knows how far their features spread: a usual spread of each counts as so many patients more.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

USUAL_WEIGHT = 5  # patients that the usual spread counts as
# Spread of a feature between patients of one scanner, by the end of its name: of phantoms and of few real patients.
USUAL_SPREAD = {"sharpness": 0.4, "noise": 0.4, "brain": 0.15, "slices": 0.3}
SPREAD_OF_QUANTILES, SPREAD_OF_CORRELATIONS = 0.2, 0.35
SURE = 0.99  # of the patients trained on, each left out in turn, lie below the threshold
LOWEST_THRESHOLD = 1.3  # patients of one scanner reach it, left out among few
MOST_REASONS = 3
STRIKING = 2.0  # deviations from the mean of a feature that is named

Floats = npt.NDArray[np.float64]
Appearance = Mapping[str, float]


class Feature(NamedTuple):
    """Mean over the patients, and the deviation that one more may have."""

    mean: float
    deviation: float


class Judged(NamedTuple):
    """`score`: root mean square of the deviations of all features; `striking`: those farthest off, the farthest first."""

    score: float
    striking: tuple[str, ...]


def usual_spread(feature: str) -> float:
    """By the feature's name."""
    last = feature.rpartition(" ")[2]
    return USUAL_SPREAD.get(last, SPREAD_OF_CORRELATIONS if "~" in feature else SPREAD_OF_QUANTILES)


def features_of(patients: Sequence[Appearance]) -> dict[str, Feature]:
    """Mean and deviation of every feature that all of them have."""
    names = [name for name in (patients[0] if patients else ()) if all(name in patient for patient in patients)]
    found, n = {}, len(patients)
    for name in names:
        values = np.array([patient[name] for patient in patients])
        summed = float(((values - values.mean()) ** 2).sum()) + USUAL_WEIGHT * usual_spread(name) ** 2
        deviation = math.sqrt(summed / (n - 1 + USUAL_WEIGHT) * (1 + 1 / n))
        found[name] = Feature(round(float(values.mean()), 5), round(deviation, 5))
    return found


def judge(appearance: Appearance, features: Mapping[str, Feature]) -> Judged | None:
    """How far a scan is from the patients; None where they have no feature in common."""
    apart = {
        name: (appearance[name] - feature.mean) / feature.deviation
        for name, feature in features.items()
        if name in appearance
    }
    if not apart:
        return None
    far = sorted((name for name in apart if abs(apart[name]) > STRIKING), key=lambda name: -abs(apart[name]))
    score = math.sqrt(sum(each**2 for each in apart.values()) / len(apart))
    return Judged(score, tuple(far[:MOST_REASONS]))


def threshold_of(patients: Sequence[Appearance]) -> float:
    """What a share SURE of the patients stays below, each judged by all others, and LOWEST_THRESHOLD at least."""
    if len(patients) < 2:
        return LOWEST_THRESHOLD
    scores = []
    for place, patient in enumerate(patients):
        judged = judge(patient, features_of([*patients[:place], *patients[place + 1 :]]))
        scores += [judged.score] if judged else []
    return max(LOWEST_THRESHOLD, round(float(np.quantile(scores, SURE)), 4)) if scores else LOWEST_THRESHOLD


def in_words(name: str, value: float, feature: Feature) -> str:
    """`noise of flair is 0.12, of the training patients 0.04 to 0.07`: their mean and a deviation to both sides."""
    channel, _, kind = name.rpartition(" ")
    low, high = feature.mean - feature.deviation, feature.mean + feature.deviation
    values = [value, low, high]
    if "~" in name:
        what, values = f"the correlation of {' and '.join(name.split('~'))}", [math.tanh(each) for each in values]
    elif kind.startswith("q"):
        what = f"the value below which {kind[1:]} % of {channel} lies"
    else:
        what = {"brain": "the brain's volume in ml", "slices": "the distance of slices in mm"}.get(
            name, f"{kind} of {channel}"
        )
        values = [math.exp(each) for each in values]
    shown = [f"{each:.3g}" for each in values]
    return f"{what} is {shown[0]}, in training {shown[1]} to {shown[2]}"
