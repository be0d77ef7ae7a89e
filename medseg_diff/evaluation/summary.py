"""What every evaluation does alike: means with intervals, axial slices, cells of a table; and what it hands back."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_diff.data.geometry import axial_axis
from medseg_diff.data.tables.manifest import Case
from medseg_diff.evaluation.catalogue import Metric
from medseg_diff.metrics.intervals import Interval, mean_interval

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Values = dict[str, float | None]  # by the metric's name; None where undefined
OURS = "anomaly"  # the method's own map in per_case.csv; the others are baselines
NAMES_SHOWN = 10
Each = Callable[
    [Callable[[Case], Any], Sequence[Case]], Iterable[Any]
]  # as `map`: measures cases, and keeps their order


class Table(NamedTuple):
    """A CSV file: names of the columns, and rows of cells; None is an empty cell, an undefined value."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | None]]


@dataclass(frozen=True)
class Evaluation:
    """All cases measured: `metrics`, `baselines`, `conventions` … as metrics.json has them, and the two tables."""

    facts: dict[str, Any]
    per_case: Table
    per_slice: Table


def summarised(metric: Metric, values: Sequence[float | None], cases: Sequence[Case]) -> dict[str, Any]:
    """The mean over the cases for which there is a value, with its interval, as metrics.json has it."""
    return entry(metric, mean_interval(values, patients=[case.patient for case in cases]))


def over_cases(name: str, metric: Metric, measured: Sequence[tuple[Case, Values]]) -> dict[str, Any]:
    """The same of one metric of cases that know their `reference_ml`: those without a lesion count where the metric
    lets them."""
    counted = [(case, values) for case, values in measured if values["reference_ml"] or not metric.lesion_only]
    return summarised(metric, [values.get(name) for _, values in counted], [case for case, _ in counted])


def entry(metric: Metric, interval: Interval) -> dict[str, Any]:
    limits = {"value": interval.value, "low": interval.low, "high": interval.high}
    return limits | {"unit": metric.unit, "over": metric.over, "cases": interval.cases}


def majority(opinions: Mapping[str, Mask]) -> Mask:
    """The reference among opinions [X, Y, Z]: `seg` where there is one, else what more than half of the raters mark."""
    return opinions["seg"] if "seg" in opinions else np.asarray(np.mean(list(opinions.values()), axis=0) > 0.5)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is defined."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def axial_slices(affine: Floats, *volumes: npt.NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    """(number, plane of each volume) for every axial slice of volumes [X, Y, Z] in any orientation."""
    stacks = [np.moveaxis(volume, axial_axis(affine), 0) for volume in volumes]
    return zip(range(len(stacks[0])), *stacks, strict=True)


def table(words: Sequence[str], numbers: Sequence[str], rows: Iterable[tuple[Sequence[str | None], Values]]) -> Table:
    """A table whose first columns are `words` and the others `numbers`, which a row has by their names."""
    filled = [[*said, *(_cell(values.get(name)) for name in numbers)] for said, values in rows]
    return Table([*words, *numbers], filled)


def _cell(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def listed(names: Sequence[Any]) -> str:
    """The first ten of them, and how many more."""
    hidden = len(names) - NAMES_SHOWN
    return ", ".join(map(str, names[:NAMES_SHOWN])) + (f" and {hidden} more" if hidden > 0 else "")
