"""Settings that were tried with a trained model, by `tune` and `anomaly --sweep`: in MLflow runs below its run."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medseg_diff.files import read_facts
from medseg_diff.run import Run
from medseg_diff.tracking.entry import Entry
from medseg_diff.tracking.names import rounded
from medseg_diff.tracking.store import KEY

TUNED, SWEEP = "tuned.json", "sweep.csv"  # as they are called in the folder of a run or a study
MEASURED = ("nfe", "drift", "p_healthy", "contrast", "auroc", "average_precision", "dice")  # columns of a sweep
MOST = 1000


class Trial(NamedTuple):
    """One setting, and what it came to."""

    name: str
    settings: dict[str, Any]
    numbers: dict[str, float]


def trials_of(run: Run) -> list[Trial]:
    """What lies in the folder; nothing where that cannot be read."""
    return [*_tuned(run.folder / TUNED), *_swept(run.folder / SWEEP)]


def send_trials(entry: Entry, trials: Sequence[Trial]) -> None:
    """A run below that of the entry for each, found again by its name."""
    if not trials:
        return
    client = entry.client
    experiment = client.get_run(entry.run_id).info.experiment_id
    below = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{entry.run_id}'", max_results=MOST)
    there = {run.data.tags.get(KEY): run.info.run_id for run in below}
    for trial in trials:
        key = f"{entry.run_id}/{trial.name}"
        known = there.get(key)
        labels = {KEY: key, "mlflow.parentRunId": entry.run_id}
        made = known or client.create_run(experiment, run_name=trial.name, tags=labels).info.run_id
        child = Entry(client, made, known=known is not None)
        child.parameters(trial.settings)
        child.latest(trial.numbers)
        if not known:
            child.end("FINISHED")


def _tuned(path: Path) -> list[Trial]:
    """Means over the regions, of what is defined in all of them."""
    rows = read_facts(path).get("table")
    found = []
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, Mapping) or not isinstance(row.get("values"), Mapping):
            continue
        steps, members = row.get("steps"), row.get("members")
        numbers: dict[str, Any] = {"nfe": steps * members if steps and members else None, "seconds": row.get("seconds")}
        regions = [each for each in row["values"].values() if isinstance(each, Mapping)]
        for name in dict.fromkeys(name for each in regions for name in each):
            values = [each.get(name) for each in regions]
            known = [value for value in values if isinstance(value, int | float)]
            numbers[name] = sum(known) / len(known) if len(known) == len(values) else None
        settings = {"steps": steps, "members": members}
        found.append(Trial(f"tune: {steps} steps, {members} members", settings, _finite(numbers, "tune")))
    return found


def _swept(path: Path) -> list[Trial]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []
    found = []
    for row in rows:
        settings = {name: cell for name, cell in row.items() if name and name not in MEASURED}
        words = ", ".join(f"{name} {cell}" for name, cell in settings.items())
        numbers = {name: float(row[name]) for name in MEASURED if row.get(name)}
        found.append(Trial(f"sweep: {words}", settings, _finite(numbers, "sweep")))
    return found


def _finite(numbers: Mapping[str, Any], group: str) -> dict[str, float]:
    return {
        f"{group}/{name}": rounded(value)
        for name, value in numbers.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
