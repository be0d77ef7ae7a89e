"""A run folder told to MLflow as a whole: after an outage, or for a run that MLflow never heard of."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from medseg_diff.run import Run
from medseg_diff.settings import read_yaml
from medseg_diff.tracking.evaluations import recorded, send_evaluation
from medseg_diff.tracking.store import Point, make_client, open_entry, ticket_of, write_ticket

STRIPS = "strips"  # below figures/: SERIES-STEP.png


class Completed(NamedTuple):
    """What MLflow had not known: numbers and pictures; and its id of the run."""

    run_id: str
    numbers: int
    pictures: int


def complete(run: Run, store: Path) -> Completed:
    """Send what MLflow lacks: settings, numbers by name and step, pictures, files, evaluations and how the run ended.

    A second call changes nothing. Raises: CheckpointError where the folder is no run; mlflow's own errors.
    """
    facts, client, ticket = run.facts, make_client(store), ticket_of(run.folder)
    entry = open_entry(
        client,
        store,
        experiment=str(facts["task"]),
        name=run.name,
        ticket=ticket,
        tags={name: str(facts[fact]) for name, fact in TAGS.items() if fact in facts},
        started_ms=_milliseconds(facts.get("started")),
    )
    write_ticket(run.folder, ticket._replace(run_id=entry.run_id))
    if run.recipe_file.is_file():
        entry.parameters(read_yaml(run.recipe_file))
    if "data" in facts and "data_digest" in facts:
        entry.dataset(str(facts["data"]), str(facts["data_digest"]))
    changed = run.metrics_file.stat().st_mtime if run.metrics_file.is_file() else None
    numbers = entry.points(logged_numbers(run), at_ms=_milliseconds(changed))
    strips = sorted((run.figures / STRIPS).glob("*-*.png"))
    pictures = [entry.picture(path, key=strip_key(path)[0], step=strip_key(path)[1]) for path in strips]
    for path in files_to_show(run):
        entry.file(path)
    for evaluation in recorded(run):
        send_evaluation(entry, evaluation)
    if run.state != "running":  # else its own process will say how it ended
        entry.end("FINISHED" if run.state == "finished" else "FAILED", at_ms=_milliseconds(facts.get("ended")))
    return Completed(entry.run_id, numbers, sum(pictures))


TAGS = {"recipe": "recipe", "data_digest": "data_digest"}


def logged_numbers(run: Run) -> Iterator[Point]:
    """What metrics.csv holds; a line cut short by a crash is left out."""
    if not run.metrics_file.is_file():
        return
    with run.metrics_file.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                yield Point(int(row["step"]), str(row["name"]), float(row["value"]))
            except (KeyError, TypeError, ValueError):
                continue


def files_to_show(run: Run) -> list[Path]:
    """The files of a run folder that belong in MLflow; the model itself goes there when it is registered."""
    named = [run.recipe_file, run.folder / "environment.json", run.folder / "SHA256SUMS"]
    return [path for path in [*named, *sorted(run.figures.glob("*.png"))] if path.is_file()]


def strip_path(run: Run, series: str, step: int) -> Path:
    """Where the strip of a step lies in the run folder."""
    return run.figures / STRIPS / f"{series}-{step:07d}.png"


def strip_key(path: Path) -> tuple[str, int]:
    """What MLflow knows a strip's file by: `strips/SERIES`, which gives strips a section of their own, and the step."""
    series, _, step = path.stem.rpartition("-")
    return f"{STRIPS}/{series}", int(step)


def _milliseconds(seconds: Any) -> int | None:
    return None if seconds is None else int(float(seconds) * 1000)
