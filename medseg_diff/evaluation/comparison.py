"""Which of two prediction folders is better? The same cases paired: mean differences, intervals, Wilcoxon's test."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg_diff import files
from medseg_diff.errors import UsageError
from medseg_diff.evaluation.catalogue import METRICS, direction_of
from medseg_diff.evaluation.summary import OURS
from medseg_diff.metrics.intervals import mean_interval

SCHEMA = 1
SIGNIFICANT = 0.05  # above it a table does not say which is better
IDENTITY = ("case", "patient", "split", "region", "label", "reference_ml")
CONVENTIONS = {
    "difference": "mean over cases of second minus first; cases where either is undefined are left out",
    "interval": "95 %, percentile bootstrap of the differences, patients drawn with replacement",
    "p": "Wilcoxon's signed-rank test on the patients' mean differences, two-sided; null where none differs",
    "better": "which folder's mean is the better one, whether or not that could be chance",
    "several": "p is of each metric by itself: of twenty metrics one is below 0.05 by chance",
}


Row = Mapping[str, str]
Key = tuple[str, str]  # case, region


def compare_predictions(
    first: Path, second: Path, *, out: Path | None = None, names: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Compare two evaluated folders (or their per_case.csv) on the cases that both measured.

    Returns {"schema", "first", "second", "cases", "patients", "regions", "only_in_first", "only_in_second", "metrics",
    "conventions"}; each metric, named REGION_metric where there are several regions, has `first` and `second` (means over
    the paired cases), `difference` (second minus first) with `low` and `high`, `p`, `better` ("first", "second" or null)
    and `cases`.
    Written to `out`/comparison.json where `out` is given. `names` stand for the folders' own.
    Raises: UsageError where a table is missing or no case is in both.
    """
    rows, others = _read(first), _read(second)
    paired = [key for key in rows if key in others]
    if not paired:
        raise UsageError("no case was measured in both folders", fix="evaluate both on the same --data and --split")
    summary = {
        "schema": SCHEMA,
        "first": names[0] if names else _name(first),
        "second": names[1] if names else _name(second),
        "cases": len({case for case, _ in paired}),
        "patients": len({rows[key].get("patient") or key[0] for key in paired}),
        "regions": list(dict.fromkeys(region for _, region in paired)),
        "only_in_first": sorted({case for case, _ in rows} - {case for case, _ in others}),
        "only_in_second": sorted({case for case, _ in others} - {case for case, _ in rows}),
        "metrics": _metrics(rows, others, paired),
        "conventions": CONVENTIONS,
    }
    if out is not None:
        files.write_json(out / "comparison.json", summary)
    return summary


def lines_of(comparison: Mapping[str, Any]) -> list[str]:
    """A comparison as a table to read: a line for each metric."""
    lines = [
        f"{comparison['second']} against {comparison['first']}: {comparison['cases']} cases of "
        f"{comparison['patients']} patients, difference with its 95 % interval, Wilcoxon's p"
    ]
    if regions := [region for region in comparison["regions"] if region]:
        lines.append(f"  regions of both: {', '.join(regions)}")
    width = max(map(len, comparison["metrics"]), default=0)
    for name, found in comparison["metrics"].items():
        interval = "" if found["low"] is None else f"  [{found['low']:+.3f}, {found['high']:+.3f}]"
        p = "" if found["p"] is None else f"  p {found['p']:.3f}"
        sure = found["p"] is not None and found["p"] < SIGNIFICANT
        better = f"  {comparison[found['better']]} is better" if found["better"] and sure else ""
        means = f"{found['first']:8.3f} → {found['second']:8.3f}  {found['difference']:+.3f}"
        lines.append(f"  {name:<{width}} {means}{interval}{p}{better}")
    return lines


def _metrics(rows: Mapping[Key, Row], others: Mapping[Key, Row], paired: Sequence[Key]) -> dict[str, dict[str, Any]]:
    regions = list(dict.fromkeys(region for _, region in paired))
    columns = [name for name in rows[paired[0]] if name not in IDENTITY and name in others[paired[0]]]
    found = {}
    for region in regions:
        keys = [key for key in paired if key[1] == region]
        for name in columns:
            lesion_only = name in METRICS and METRICS[name].lesion_only
            counted = [key for key in keys if not lesion_only or _number(rows[key].get("reference_ml")) != 0]
            pairs = [(_number(rows[key].get(name)), _number(others[key].get(name))) for key in counted]
            patients = [rows[key].get("patient") or key[0] for key in counted]
            compared = _paired(name, pairs, patients)
            if compared is not None:
                found[f"{region}_{name}" if len(regions) > 1 else name] = compared
    return found


def _paired(
    name: str, pairs: Sequence[tuple[float | None, float | None]], patients: Sequence[str]
) -> dict[str, Any] | None:
    """One metric's row; None where no case has it in both."""
    known = [
        (a, b, patient) for (a, b), patient in zip(pairs, patients, strict=True) if a is not None and b is not None
    ]
    if not known:
        return None
    one, two = (np.array([each[place] for each in known]) for place in (0, 1))
    of_patients = [patient for _, _, patient in known]
    interval = mean_interval((two - one).tolist(), patients=of_patients)
    assert interval.value is not None
    return {
        "first": float(one.mean()),
        "second": float(two.mean()),
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "p": wilcoxon_p((two - one).tolist(), patients=of_patients),
        "better": _better(name, interval.value),
        "cases": interval.cases,
    }


def wilcoxon_p(differences: Sequence[float], *, patients: Sequence[str]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test (1945) on each patient's mean difference; None where none differs.

    Exact for up to 50 patients without ties, else its normal approximation (scipy). With five patients or fewer it
    cannot be below 0.05, whatever the differences.
    """
    from scipy.stats import wilcoxon

    names = {name: number for number, name in enumerate(dict.fromkeys(patients))}
    places = np.array([names[name] for name in patients])
    means = np.bincount(places, weights=np.asarray(differences, dtype=np.float64)) / np.bincount(places)
    return float(wilcoxon(means).pvalue) if np.any(means != 0) else None


def _better(name: str, difference: float) -> str | None:
    direction = direction_of(name)
    if direction is None or difference == 0:
        return None
    return "second" if (difference > 0) == (direction == "higher") else "first"


def _read(place: Path) -> dict[Key, Row]:
    """The rows of a per_case.csv by case and region, without those of baselines. Raises: UsageError."""
    path = place if place.suffix == ".csv" else place / "per_case.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            "has no readable per_case.csv", fix="run `medseg-diff evaluate` on it", file=_name(place)
        ) from None
    if not rows or "case" not in rows[0]:
        raise UsageError("holds no cases", fix="run `medseg-diff evaluate` again", file=f"{_name(place)}/per_case.csv")
    return {(row["case"], row.get("region") or ""): row for row in rows if row.get("map", OURS) == OURS}


def _name(place: Path) -> str:
    return place.parent.name if place.suffix == ".csv" else place.name


def _number(cell: str | None) -> float | None:
    """A cell as a number; None where it is empty or text."""
    try:
        value = float(cell or "nan")
    except ValueError:
        return None
    return value if np.isfinite(value) else None
