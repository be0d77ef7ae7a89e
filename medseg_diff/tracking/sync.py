"""A run folder told to MLflow as a whole: after an outage, or for a run that MLflow never heard of."""

from pathlib import Path
from typing import NamedTuple

from medseg_diff.run import Run
from medseg_diff.settings import read_yaml
from medseg_diff.tracking.evaluations import recorded, send_evaluation
from medseg_diff.tracking.store import Entry, make_client, open_entry, ticket_of, write_ticket


class Completed(NamedTuple):
    """What MLflow had not known: numbers and pictures; and its id of the run."""

    run_id: str
    numbers: int
    pictures: int


def complete(run: Run, store: Path) -> Completed:
    """Send what MLflow lacks: settings, numbers by name and step, pictures, files, evaluations and how the run ended.

    A second call changes nothing. Raises: CheckpointError where the folder is no run; mlflow's own errors.
    """
    entry = entry_of(run, store)
    changed = run.metrics_file.stat().st_mtime if run.metrics_file.is_file() else None
    numbers = entry.points(run.numbers(), at_ms=_milliseconds(changed))
    pictures = [entry.picture(each.path, key=each.series, step=each.step) for each in run.trajectories]
    for path in files_to_show(run):
        entry.file(path)
    for evaluation in recorded(run):
        send_evaluation(entry, evaluation)
    if run.state != "running":  # else its own process will say how it ended
        entry.end("FINISHED" if run.state == "finished" else "FAILED", at_ms=_milliseconds(run.moment("ended")))
    return Completed(entry.run_id, numbers, sum(pictures))


def entry_of(run: Run, store: Path) -> Entry:
    """The run in MLflow, found again or opened, with its settings and its table of cases.

    Raises: CheckpointError where the folder is no run; mlflow's own errors.
    """
    facts, ticket = run.facts, ticket_of(run.folder)
    entry = open_entry(
        make_client(store),
        store,
        experiment=str(facts["task"]),
        name=run.name,
        ticket=ticket,
        tags={name: str(facts[name]) for name in ("recipe", "data_digest") if name in facts},
        started_ms=_milliseconds(run.moment("started")),
    )
    write_ticket(run.folder, ticket._replace(run_id=entry.run_id))
    if run.recipe_file.is_file():
        entry.parameters(read_yaml(run.recipe_file))
    if "data" in facts and "data_digest" in facts:
        entry.dataset(str(facts["data"]), str(facts["data_digest"]))
    return entry


def files_to_show(run: Run) -> list[Path]:
    """The files of a run folder that belong in MLflow; the model itself goes there when it is registered."""
    named = [run.recipe_file, run.folder / "environment.json", run.folder / "SHA256SUMS"]
    return [path for path in [*named, *sorted(run.figures.glob("*.png"))] if path.is_file()]


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
