"""The numbers of a run under the names that MLflow and `runs` show, in groups: train/ val/ calibration/ test/."""

import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from medseg_diff.files import read_facts
from medseg_diff.run import Point, Run
from medseg_diff.tracking.evaluations import means_of, recorded

CHOSEN = re.compile(r"(.*)best_(?!step$)(.+)")  # how run.json names the number that chose the best weights
OF_REGIONS = ("threshold", "best_threshold", "temperature", "ece_before", "ece_after")


def grouped(name: str) -> str:
    """A name in metrics.csv in its group: `loss` → `train/loss`, `classifier_val_auroc` → `val/classifier_auroc`."""
    if "/" in name:
        return name
    first, validated, last = f"_{name}".partition("_val_")
    return f"val/{first}_{last}".replace("/_", "/") if validated else f"train/{name}"


def meant(asked: str, known: Iterable[str]) -> str | None:
    """Which of the known names somebody means, who may write them as metrics.csv does or with _ in place of /."""
    listed = list(known)
    found = [name for name in listed if asked == name] or [
        name
        for name in listed
        if name in (grouped(asked), asked.replace("_", "/", 1)) or name.replace("/", "_") == asked
    ]
    return found[0] if found else None


def rounded(value: float) -> float:
    """As metrics.csv holds it, so that folder and MLflow say the same."""
    return float(f"{value:.6g}")


def chosen_by(facts: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """The number by which a run chose its weights, under the name that is shown, and its best value."""
    for key, value in facts.items():
        found = CHOSEN.fullmatch(key)
        if found and isinstance(value, int | float) and abs(value) <= sys.float_info.max:
            return grouped(found[1] + found[2]), float(value)
    return None, None


def numbers_of(run: Run) -> dict[str, float]:
    """All that the run's page in MLflow and `runs compare` show of it: the last of every number in metrics.csv, what was
    calibrated, and what evaluations of the run found."""
    last = {point.name: point.value for point in points_of(run)} | calibrated(run)
    for evaluation in recorded(run):
        last |= {name: rounded(value) for name, value in means_of(evaluation).items()}
    return last


def points_of(run: Run) -> list[Point]:
    """What metrics.csv holds, under the names that are shown."""
    return [point._replace(name=grouped(point.name)) for point in run.numbers()]


def calibrated(run: Run) -> dict[str, float]:
    """What the run measured at its end: `calibration/threshold`, where there are several regions `…/threshold_core`."""
    said = read_facts(run.calibration_file)
    parts = _named(said.get("regions"), OF_REGIONS) | _named(said.get("maps"), ("threshold",))
    for part, keys in (("screening", ("threshold", "missed")), ("round_trip", ("error", "limit"))):
        parts |= {f"{part}_{key}": value for key, value in _named({"": said.get(part)}, keys).items()}
    skill = _named({"": said.get("classifier")}, ("balanced_accuracy", "auroc"))
    parts |= {f"classifier_{key}": value for key, value in skill.items()}
    return {f"calibration/{name}": rounded(value) for name, value in parts.items()}


def _named(parts: Any, keys: Iterable[str]) -> dict[str, float]:
    """Numbers of regions or maps; with the part's name behind where there are several. Files may hold anything."""
    if not isinstance(parts, Mapping):
        return {}
    named = {part: found for part, found in parts.items() if isinstance(found, Mapping)}
    alone = len(named) == 1
    listed = [(part, key, found.get(key)) for part, found in named.items() for key in keys]
    return {
        key if alone else re.sub(r"[^\w.-]", "_", f"{key}_{part}"): float(value)
        for part, key, value in listed
        if isinstance(value, int | float) and math.isfinite(value)
    }
