"""How sure is a mean over few patients? Bootstrap confidence intervals."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 5000
LEVEL = 0.95


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
    names = {name: index for index, name in enumerate(dict.fromkeys(group for group, _ in known))}
    members = np.array([names[group] for group, _ in known])
    mean = float(numbers.mean())
    if len(names) < 2:
        return Interval(mean, None, None, len(known))
    sums, counts = np.bincount(members, weights=numbers), np.bincount(members)
    drawn = np.random.default_rng(seed).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), len(known))
