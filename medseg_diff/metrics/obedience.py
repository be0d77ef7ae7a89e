"""Whether synthetic scans are as they were asked for: every value asked for beside the measured one, and how they agree."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from medseg_diff.metrics.realism import correlation

Of = Literal["drawn", "real"]


class Line(NamedTuple):
    """A covariate of a scan as asked for (of a real one as the table has it) and as measured: a row of audit.csv."""

    scan: str
    of: Of
    guidance: float | None
    covariate: str
    number: int
    asked: float
    by: str
    measured: float


def obedience(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Pearson's r of asked and measured, with its interval: a row for each guidance, covariate, and way of measuring, of
    the `n` scans that could be measured."""
    rows = []
    for kind in dict.fromkeys((line.of, line.guidance, line.covariate, line.by) for line in lines):
        alike = [line for line in lines if (line.of, line.guidance, line.covariate, line.by) == kind]
        alike = [line for line in alike if np.isfinite(line.measured)]  # a scan without a brain has no volume
        estimate = correlation(np.array([line.asked for line in alike]), np.array([line.measured for line in alike]))
        values = (round(float(value), 5) if np.isfinite(value) else None for value in estimate)
        of, guidance, covariate, by = kind
        known = {"of": of, "guidance": guidance, "covariate": covariate, "by": by, "n": len(alike)}
        rows.append(known | dict(zip(("r", "r_low", "r_high"), values, strict=True)))
    return rows
