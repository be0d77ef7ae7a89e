"""ROC and precision–recall curves of anomaly maps: the mean over cases with a lesion, and its interval."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from medseg_diff.evaluation.summary import Floats
from medseg_diff.metrics.anomaly import Ranking
from medseg_diff.metrics.intervals import mean_interval

RATES = np.unique(np.concatenate([np.linspace(0, 0.1, 21), np.linspace(0.1, 1, 31)]))  # fine where maps are used
RECALLS = np.linspace(0.02, 1, 50)
DIGITS = 5


def points_of(ranking: Ranking) -> Floats:
    """Both curves of one case: sensitivities at RATES, then precisions at RECALLS; NaN without a lesion."""
    return np.concatenate([ranking.sensitivity_at(RATES), ranking.precision_at(RECALLS)])


def curves(points: Sequence[Floats], patients: Sequence[Hashable]) -> dict[str, dict[str, list[Any]]]:
    """What metrics.json keeps of `points_of` of each case: means with 95 % intervals; nothing where no case has a lesion."""
    known = [(each, patient) for each, patient in zip(points, patients, strict=True) if not np.isnan(each).any()]
    if not known:
        return {}
    table, names = np.stack([each for each, _ in known]), [patient for _, patient in known]
    found = [mean_interval(list(column), patients=names) for column in table.T]
    values = {
        name: [None if value is None else round(value, DIGITS) for value in column]
        for name, column in (
            ("mean", [each.value for each in found]),
            ("low", [each.low for each in found]),
            ("high", [each.high for each in found]),
        )
    }
    roc, precision = slice(None, len(RATES)), slice(len(RATES), None)
    return {
        "roc": _curve("false_positive_rate", RATES, "sensitivity", values, roc),
        "precision_recall": _curve("recall", RECALLS, "precision", values, precision),
    }


def _curve(across: str, at: Floats, up: str, values: dict[str, list[Any]], part: slice) -> dict[str, list[Any]]:
    return {
        across: [round(float(each), DIGITS) for each in at],
        up: values["mean"][part],
        "low": values["low"][part],
        "high": values["high"][part],
    }
