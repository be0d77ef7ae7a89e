"""Which of two prediction folders is better? The same cases paired: mean differences, intervals, Wilcoxon's test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg_diff import files
from medseg_diff.errors import UsageError, counted
from medseg_diff.evaluation.catalogue import METRICS, direction_of
from medseg_diff.evaluation.summary import OURS
from medseg_diff.metrics.intervals import mean_interval

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
SIGNIFICANT = 0.05  # above it a table does not say which is better
IDENTITY = ("case", "patient", "split", "region", "label", "reference_ml", "low90_ml", "high90_ml")  # of no metric
CONVENTIONS = {
    "difference": "mean over cases of second minus first; cases where either is undefined are left out",
    "interval": "95 %, percentile bootstrap of the differences, patients drawn with replacement",
    "p": "Wilcoxon's signed-rank test on the patients' mean differences, two-sided; null where none differs",
    "better": "which folder's mean is the better one, whether or not that could be chance",
    "several": "p is of each metric by itself: of twenty metrics one is below 0.05 by chance",
}


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
    one, two = _read(first), _read(second)
    paired = one.index.intersection(two.index, sort=False)
    if paired.empty:
        raise UsageError("no case was measured in both folders", fix="evaluate both on the same --data and --split")
    cases, others = (set(table.index.get_level_values("case")) for table in (one, two))
    summary = {
        "schema": SCHEMA,
        "first": names[0] if names else _name(first),
        "second": names[1] if names else _name(second),
        "cases": paired.get_level_values("case").nunique(),
        "patients": one.loc[paired, "patient"].nunique(),
        "regions": list(paired.unique("region")),
        "only_in_first": sorted(cases - others),
        "only_in_second": sorted(others - cases),
        "metrics": _metrics(one.loc[paired], two.loc[paired]),
        "conventions": CONVENTIONS,
    }
    if out is not None:
        files.write_json(out / "comparison.json", summary)
    return summary


def lines_of(comparison: Mapping[str, Any]) -> list[str]:
    """A comparison as a table to read: a line for each metric."""
    lines = [
        f"{comparison['second']} against {comparison['first']}: {counted(comparison['cases'], 'case')} of "
        f"{counted(comparison['patients'], 'patient')}, difference with its 95 % interval, Wilcoxon's p"
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


def _metrics(one: "pd.DataFrame", two: "pd.DataFrame") -> dict[str, dict[str, Any]]:
    """Every metric that both tables, whose rows are the same cases, have in some case, of each region."""
    regions = one.index.unique("region")
    columns = [name for name in one.columns if name not in IDENTITY and name in two.columns]
    with_lesion = one["reference_ml"].map(_number) != 0
    found = {}
    for region in regions:
        for name in columns:
            values = one[["patient"]].assign(first=one[name].map(_number), second=two[name].map(_number))
            lesion_only = name in METRICS and METRICS[name].lesion_only
            counted = values[with_lesion] if lesion_only else values
            compared = _paired(name, counted[counted.index.get_level_values("region") == region].dropna())
            if compared is not None:
                found[f"{region}_{name}" if len(regions) > 1 else name] = compared
    return found


def _paired(name: str, values: "pd.DataFrame") -> dict[str, Any] | None:
    """One metric's row, of the cases that have it in both: `patient`, `first`, `second`; None where none has."""
    if values.empty:
        return None
    patients, differences = values["patient"].tolist(), (values["second"] - values["first"]).tolist()
    interval = mean_interval(differences, patients=patients)
    assert interval.value is not None
    return {
        "first": float(values["first"].to_numpy().mean()),
        "second": float(values["second"].to_numpy().mean()),
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "p": wilcoxon_p(differences, patients=patients),
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


def _read(place: Path) -> "pd.DataFrame":
    """The rows of a per_case.csv as text by case and region, without those of baselines; each with a patient.

    Raises: UsageError.
    """
    import pandas as pd

    path = place if place.suffix == ".csv" else place / "per_case.csv"
    try:
        # Text as it stands: a case may be called 001 or NA.
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8").fillna("")
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("more cells than columns")
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    except (OSError, ValueError):  # pandas' own errors of the parser among them
        raise UsageError(
            "has no readable per_case.csv", fix="run `medseg-diff evaluate` on it", file=_name(place)
        ) from None
    if table.empty or "case" not in table.columns:
        raise UsageError("holds no cases", fix="run `medseg-diff evaluate` again", file=f"{_name(place)}/per_case.csv")
    if "map" in table.columns:
        table = table[table["map"] == OURS].drop(columns="map")
    table = table.assign(**{name: "" for name in IDENTITY if name not in table.columns})
    table["patient"] = table["patient"].where(table["patient"] != "", table["case"])
    return table.drop_duplicates(["case", "region"], keep="last").set_index(["case", "region"])


def _name(place: Path) -> str:
    return place.parent.name if place.suffix == ".csv" else place.name


def _number(cell: str) -> float:
    """A cell as a number; NaN where it is empty or text."""
    try:
        value = float(cell or "nan")
    except ValueError:
        return np.nan
    return value if np.isfinite(value) else np.nan
