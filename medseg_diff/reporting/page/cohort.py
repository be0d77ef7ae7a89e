"""The page of a folder of results: every case in a table that sorts, charts, the worst cases first, metrics."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff.data.results import PAGE, read_result
from medseg_diff.data.tables.case import Case
from medseg_diff.errors import counted
from medseg_diff.files import read_facts
from medseg_diff.reporting.montage import anomaly_layout, row_of, segmentation_layout
from medseg_diff.reporting.page.case import Figure, figure_of
from medseg_diff.reporting.page.charts import (
    Chart,
    curve_chart,
    distribution_chart,
    intervals_chart,
    reliability_chart,
    risk_chart,
)
from medseg_diff.reporting.page.citations import citations
from medseg_diff.reporting.page.document import TABLE, write_page
from medseg_diff.reporting.page.words import NONE, number, spoken

Facts = Mapping[str, Any]
IN_GALLERY = 6
SHOWN = {  # of per_case.csv in the table: the columns of each task, where they were measured
    "segment": ("dice", "hd95_mm", "volume_error_ml", "ged2", "ece_band", "false_positives_ml"),
    "anomaly": ("auroc", "average_precision", "dice_preset", "lesion_sensitivity", "false_positives_ml"),
}
OF_LESION = ("dice", "dice_raw", "dice_raters", "iou", "hd95_mm", "surface_dice_1mm")  # say nothing where there is none
TILES = {"segment": ("dice", "hd95_mm", "ece_band", "ged2"), "anomaly": ("auroc", "average_precision", "dice_preset")}


@dataclass(frozen=True)
class Cell:
    """What stands in a table, and what it is sorted by."""

    text: str
    sort: str


@dataclass(frozen=True)
class Row:
    """A case: its page where there is one, its cells, and whether a person was warned of it."""

    name: str
    link: str
    cells: Sequence[Cell]
    flag: bool


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` wrote of a folder: metrics.json, and the rows of per_case.csv by case; both empty where it did not."""

    summary: Facts
    rows: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls, folder: Path) -> "Evaluated":
        """Of several regions the first, of several maps the method's own; a case without a lesion has no overlap."""
        path, rows = folder / "per_case.csv", dict[str, Mapping[str, str]]()
        summary = read_facts(folder / "metrics.json")
        if path.is_file() and summary:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    rows.setdefault(
                        row["case"], row if float(row["reference_ml"]) else row | dict.fromkeys(OF_LESION, "")
                    )
        return cls(summary, rows)

    def scores(self, name: str) -> dict[str, str]:
        """The numbers of one case, by metric."""
        left_out = ("case", "patient", "split", "region", "map", "score")
        return {
            key: number(float(value)) for key, value in self.rows.get(name, {}).items() if value and key not in left_out
        }


def write_cohort_page(
    folder: Path, facts: Mapping[str, Facts], cases: Mapping[str, Case], *, papers: str = "", evaluated: Evaluated
) -> Path:
    """Write report.html for a folder of results of one task. `facts` is case.json by case, `cases` what is known of their
    files, perhaps nothing. Raises: ImageError where a file is damaged, EnvironmentFault."""
    task = next(iter(facts.values()))["task"]
    columns = list(_columns(task, facts, evaluated))
    warned = sum(bool(each["warnings"]) for each in facts.values())
    models = sorted({str(each["model"]) for each in facts.values()})
    what = "Anomaly maps" if task == "anomaly" else "Segmentations"
    gallery, gallery_title = _gallery(folder, task, facts, cases, evaluated)
    write_page(
        folder / PAGE,
        "cohort.html",
        scripts=(TABLE,),
        title=f"{what}: {counted(len(facts), 'case')}",
        lead=f"Model {', '.join(models)}; {counted(warned, 'case')} with warnings.",
        warnings=[],
        tiles=list(_tiles(task, evaluated.summary)),
        one="case",
        columns=["case", *(name for name, _ in columns)],
        rows=[
            Row(
                name,
                f"{name}/{PAGE}" if (folder / name / PAGE).is_file() else "",
                [cell(value(name)) for _, value in columns],
                bool(each["warnings"]),
            )
            for name, each in facts.items()
        ],
        charts=list(_charts(task, facts, evaluated)),
        gallery=gallery,
        gallery_title=gallery_title,
        metrics=list(metrics_of(evaluated.summary)),
        citations=citations(next(iter(facts.values())), papers),
    )
    return folder / PAGE


Value = Callable[[str], Any]


def _columns(task: str, facts: Mapping[str, Facts], evaluated: Evaluated) -> Iterator[tuple[str, Value]]:
    """Headings, and what each says of a case."""
    if task == "anomaly":
        yield "marked (ml)", lambda name: facts[name]["volume_ml"]
        yield "regions", lambda name: facts[name]["lesions"]
        yield "score", lambda name: facts[name]["score"]
    else:
        for region in next(iter(facts.values()))["volume_ml"]:
            of = "" if len(next(iter(facts.values()))["volume_ml"]) == 1 else f"{spoken(region)} "
            yield f"{of}volume (ml)", lambda name, region=region: facts[name]["volume_ml"][region]["mask"]  # type: ignore[misc]
            yield f"{of}from", lambda name, region=region: _range(facts[name]["volume_ml"][region])[0]  # type: ignore[misc]
            yield f"{of}to", lambda name, region=region: _range(facts[name]["volume_ml"][region])[1]  # type: ignore[misc]
            yield f"{of}agreement", lambda name, region=region: facts[name]["agreement"].get(region)  # type: ignore[misc]
    yield "typicality", lambda name: (facts[name].get("typicality") or {}).get("score")
    for metric in SHOWN[task]:
        if any(row.get(metric) for row in evaluated.rows.values()):
            yield spoken(metric), lambda name, metric=metric: _number(evaluated.rows.get(name, {}).get(metric))  # type: ignore[misc]
    yield "warnings", lambda name: len(facts[name]["warnings"])


def _range(volume: Facts) -> tuple[Any, Any]:
    """The calibrated interval, else the range of the members."""
    from_ = volume if volume["level"] else volume["members"]
    return from_["low"], from_["high"]


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def cell(value: Any) -> Cell:
    """A value as a table shows and sorts it."""
    return Cell(number(value), "" if value is None else str(value))


def _tiles(task: str, summary: Facts) -> Iterator[tuple[str, str, str]]:
    for name in TILES[task]:
        found = summary.get("metrics", {}).get(name)
        if found and found["value"] is not None:
            unit = "" if found["unit"] == "1" else f" {found['unit']}"
            between = "" if found["low"] is None else f"95 % {found['low']:.3g} to {found['high']:.3g}, "
            yield spoken(name), f"{found['value']:.3g}{unit}", f"{between}{counted(found['cases'], 'case')}"


def metrics_of(summary: Facts) -> Iterator[tuple[str, ...]]:
    """Name, value, interval, unit and over what, of each mean in metrics.json."""
    for name, found in summary.get("metrics", {}).items():
        if found["value"] is not None:
            between = NONE if found["low"] is None else f"{found['low']:.3g} to {found['high']:.3g}"
            yield spoken(name), f"{found['value']:.3g}", between, found["unit"].replace("1", NONE), found["over"]


def _charts(task: str, facts: Mapping[str, Facts], evaluated: Evaluated) -> Iterator[Chart]:
    metrics, curves = evaluated.summary.get("metrics", {}), evaluated.summary.get("curves", {})
    if task == "anomaly":
        truth = {name: _number(row["reference_ml"]) for name, row in evaluated.rows.items()}
        groups = {
            "with a lesion": [float(facts[name]["score"]) for name in facts if truth.get(name)],
            "without": [float(facts[name]["score"]) for name in facts if truth.get(name) == 0],
        }
        if not any(groups.values()):
            groups = {"all cases": [float(each["score"]) for each in facts.values()]}
        thresholds = {each["threshold"]["value"] for each in facts.values()} - {None}
        limit = thresholds.pop() if len(thresholds) == 1 else None
        yield distribution_chart({name: each for name, each in groups.items() if each}, "score of the scan", limit)
        if roc := curves.get("roc"):
            yield curve_chart("ROC", roc, "false_positive_rate", "sensitivity", metrics.get("auroc"), "AUROC")
        if precision := curves.get("precision_recall"):
            name = "average precision"
            yield curve_chart(
                "Precision–recall", precision, "recall", "precision", metrics.get("average_precision"), name
            )
        return
    region = next(iter(next(iter(facts.values()))["volume_ml"]))
    volumes = [(each["volume_ml"][region], _range(each["volume_ml"][region])) for each in facts.values()]
    rows = [
        {"value": volume["mask"], "low": low, "high": high, "calibrated": bool(volume["level"])}
        for volume, (low, high) in volumes
    ]
    yield intervals_chart(list(facts), rows, "ml", f"volume of {spoken(region)}")
    agreement = [float(value) for each in facts.values() if (value := each["agreement"].get(region)) is not None]
    if agreement:
        yield distribution_chart({"all cases": agreement}, "agreement among members")
    of_region = curves.get(region, {})
    prefix = f"{region}_" if len(curves) > 1 else ""
    if reliability := of_region.get("reliability"):
        yield reliability_chart(reliability, metrics.get(f"{prefix}ece_band"))
    if risk := of_region.get("risk_coverage"):
        yield risk_chart(risk, metrics.get(f"{prefix}aurc"))


def worst_first(task: str, facts: Mapping[str, Facts], evaluated: Evaluated) -> tuple[list[str], str]:
    """Cases with the worst ones first, and what orders them: Dice where there was a reference with a lesion, then the others
    and, where nothing was measured, all, by how little sure the model is."""
    measured, doubt = _measured(task, evaluated), _doubt(task, facts)
    known = sorted((name for name in facts if name in measured), key=lambda name: measured[name])
    others = sorted((name for name in facts if name not in measured), key=lambda name: doubt[name])
    return [*known, *others], "Worst first, by Dice" if known else "Least certain first"


def _gallery(
    folder: Path, task: str, facts: Mapping[str, Facts], cases: Mapping[str, Case], evaluated: Evaluated
) -> tuple[Figure | None, str]:
    """The worst cases as a sheet, where their scans are known."""
    (worst, title), measured = worst_first(task, facts, evaluated), _measured(task, evaluated)
    shown = [name for name in worst if name in cases][:IN_GALLERY]
    if not shown:
        return None, ""
    rows = [row_of(cases[name], read_result(folder / name, name)) for name in shown]
    layout = anomaly_layout if task == "anomaly" else segmentation_layout
    values = [f"{name} {measured[name]:.3f}" if name in measured else name for name in shown]
    words = f"{title}: {', '.join(values)}."
    alternative = f"{words} Each row: scans, reference and result on the slice that holds most."
    return figure_of(rows, layout, alternative, words), title


def _measured(task: str, evaluated: Evaluated) -> dict[str, float]:
    """Dice of the cases with a lesion."""
    metric = "dice" if task == "segment" else "dice_preset"
    return {name: float(row[metric]) for name, row in evaluated.rows.items() if row.get(metric)}


def _doubt(task: str, facts: Mapping[str, Facts]) -> dict[str, float]:
    """Lowest where a look is worth most: little agreement among members, or a high score."""
    if task == "anomaly":
        return {name: -float(each["score"]) for name, each in facts.items()}
    found = {name: [value for value in each["agreement"].values() if value is not None] for name, each in facts.items()}
    return {name: min(values, default=1.0) for name, values in found.items()}
