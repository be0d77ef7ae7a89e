"""What a validation set may still change: where a mean is cut, and how sharp it is. Threshold and temperature.

Temperature: Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599, for one probability a voxel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_diff.metrics.calibration import tally

Floats = npt.NDArray[np.float64]

CANDIDATES = np.arange(5, 96) / 100
LEAST_GAIN = 0.005  # Dice; less is not worth another number to explain
FEWEST_GROUPS = 5
RESAMPLES = 1000
SURE = 0.025  # the gain's bootstrap quantile that must be above 0
FAINTEST = 1e-6  # probabilities are kept this far from 0 and 1 where their logarithm is taken
TEMPERATURES = (0.2, 10.0)


class Threshold(NamedTuple):
    """`chosen` is one half unless `best` is clearly better; `dice_at_half` and `dice_at_best` are over all voxels."""

    chosen: float
    best: float
    dice_at_half: float
    dice_at_best: float


def choose_threshold(probability: Sequence[npt.ArrayLike], reference: Sequence[npt.ArrayLike]) -> Threshold:
    """The threshold of the highest Dice, or one half where that is not clearly worse.

    One array of probabilities and one boolean reference for each group (a patient). Dice is of all groups' voxels
    together. Another threshold than one half is chosen only with five groups or more, where it gains at least 0.005
    and the 2.5 % quantile of the gain over 1000 bootstrap draws of groups is above 0 (seeded). Of equals the one
    closest to one half is best.
    """
    common, size = (np.zeros((len(probability), len(CANDIDATES))) for _ in range(2))
    truth = np.zeros(len(probability))
    for group, (values, events) in enumerate(zip(probability, reference, strict=True)):
        groups = tally(values, events)
        truth[group] = groups.events.sum()
        # Groups before it are not above, as where a mask is cut: both in float32.
        above = np.searchsorted(groups.scores, CANDIDATES.astype(np.float32).astype(np.float64), side="right")
        voxels, _, marked = groups.cumulative
        common[group], size[group] = marked[-1] - marked[above], voxels[-1] - voxels[above]
    dice = _dice(common.sum(0), size.sum(0), truth.sum())
    half = int(np.argmin(np.abs(CANDIDATES - 0.5)))
    order = np.argsort(np.abs(np.arange(len(CANDIDATES)) - half), kind="stable")
    best = int(order[np.argmax(dice[order])])
    drawn = np.random.default_rng(0).integers(len(truth), size=(RESAMPLES, len(truth)))
    gains = [
        _dice(common[:, place][drawn].sum(1), size[:, place][drawn].sum(1), truth[drawn].sum(1))
        for place in (best, half)
    ]
    clearly = (
        len(truth) >= FEWEST_GROUPS
        and dice[best] - dice[half] >= LEAST_GAIN
        and np.quantile(gains[0] - gains[1], SURE) > 0
    )
    chosen = CANDIDATES[best] if clearly else 0.5
    return Threshold(float(chosen), float(CANDIDATES[best]), float(dice[half]), float(dice[best]))


def _dice(common: Floats, size: Floats, truth: Floats | float) -> Floats:
    """Dice where a mask of `size` voxels shares `common` with a reference of `truth`; both empty: 1."""
    total = np.asarray(size + truth, dtype=np.float64)
    return np.divide(2 * common, total, out=np.ones_like(total), where=total > 0)


def fit_temperature(probability: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """The temperature between 0.2 and 10 of least negative log-likelihood; above 1: the probability was too sure of itself.

    1 where the reference is all of one kind, because then nothing can be learned from it.
    """
    from scipy.optimize import minimize_scalar

    groups = tally(probability, reference)
    if groups.events.sum() in (0, groups.voxels.sum()):
        return 1.0
    kept = np.clip(groups.scores, FAINTEST, 1 - FAINTEST)
    logit = np.log(kept) - np.log1p(-kept)

    def loss(log_temperature: float) -> float:
        scaled = logit / np.exp(log_temperature)
        right, wrong = np.logaddexp(0, -scaled), np.logaddexp(0, scaled)
        return float((groups.events * right + (groups.voxels - groups.events) * wrong).sum())

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def log_loss(probability: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Mean negative log-likelihood of a boolean reference, in nats; probabilities are kept 1e-6 from 0 and 1."""
    groups = tally(probability, reference)
    kept = np.clip(groups.scores, FAINTEST, 1 - FAINTEST)
    total = groups.events * np.log(kept) + (groups.voxels - groups.events) * np.log1p(-kept)
    return float(-total.sum() / groups.voxels.sum())


def tempered(probability: npt.NDArray[np.floating], temperature: float) -> npt.NDArray[np.float32]:
    """sigmoid(logit(p) / temperature), written so that 0 stays 0, one half one half and 1 one; float32, shape as given."""
    values = np.asarray(probability, dtype=np.float64)
    power = 1 / temperature
    yes, no = values**power, (1 - values) ** power
    return np.asarray(yes / (yes + no), dtype=np.float32)
