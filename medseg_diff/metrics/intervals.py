"""How sure is a mean over few patients? Bootstrap confidence intervals."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 5000
LEVEL = 0.95
Numbers = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; `low` and `high` are None for fewer than two patients, all for no value."""

    value: float | None
    low: float | None
    high: float | None
    cases: int


def mean_interval(
    values: Sequence[float | None], *, patients: Sequence[Hashable] | None = None, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Mean over cases and its percentile bootstrap interval (Efron 1979), 5000 resamples, seeded.

    `values` has one number a case; None is an undefined value and is left out. `patients` names each case's patient:
    whole patients are drawn, because two scans of one person are not two observations. Default: one patient a case.
    """
    groups = range(len(values)) if patients is None else patients
    known = [(group, value) for group, value in zip(groups, values, strict=True) if value is not None]
    if not known:
        return Interval(None, None, None, 0)
    numbers = np.array([value for _, value in known], dtype=np.float64)
    members = _numbered([group for group, _ in known])
    mean = float(numbers.mean())
    if not members.any():
        return Interval(mean, None, None, len(known))
    sums, counts = np.bincount(members, weights=numbers), np.bincount(members)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    return Interval(mean, *_limits(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), level), len(known))


def interval_together(
    statistic: Callable[[Numbers], float | None], patients: Sequence[Hashable], *, level: float = LEVEL, seed: int = 0
) -> Interval:
    """What a statistic of all cases together says of them, by their numbers [N], and its interval as `mean_interval`'s:
    whole patients are drawn. Draws that it says None of are left out."""
    members = _numbered(patients)
    value = statistic(np.arange(len(members)))
    if value is None or not members.any():
        return Interval(value, None, None, len(members))
    cases_of = [np.flatnonzero(members == patient) for patient in range(members.max() + 1)]
    drawn = np.random.default_rng(seed).integers(len(cases_of), size=(RESAMPLES, len(cases_of)))
    found = (statistic(np.concatenate([cases_of[patient] for patient in each])) for each in drawn)
    return Interval(value, *_limits([each for each in found if each is not None], level), len(members))


def _numbered(patients: Sequence[Hashable]) -> Numbers:
    """The number [N] of each case's patient, in the order of their first cases."""
    names = {name: index for index, name in enumerate(dict.fromkeys(patients))}
    return np.array([names[patient] for patient in patients])


def _limits(values: Sequence[float] | npt.NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
