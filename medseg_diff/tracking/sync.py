"""A run folder told to MLflow as a whole: after an outage, or for a run that it never heard of; and studies of folds."""

from pathlib import Path
from typing import Any, NamedTuple

from medseg_diff.files import read_facts
from medseg_diff.run import Run
from medseg_diff.studies import FoldStudy, study_of
from medseg_diff.tracking.about import (
    TRAJECTORY,
    description_of_run,
    description_of_study,
    environment_of,
    newest_trajectory,
    parameters_of,
    preview_of,
    tags_of,
)
from medseg_diff.tracking.entry import Entry
from medseg_diff.tracking.evaluations import FIGURE, FOLDER, PAGE, Evaluation, means_of, recorded
from medseg_diff.tracking.names import calibrated, points_of, rounded
from medseg_diff.tracking.store import Name, experiment_of, group, make_client, open_entry, ticket_of, write_ticket
from medseg_diff.tracking.trials import send_trials, trials_of

TEXT = ("case", "patient", "split", "region", "label")  # columns that name something


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
    numbers = entry.points(points_of(run), at_ms=_milliseconds(changed))
    entry.points(run.numbers(file=run.system_file), at_ms=_milliseconds(changed))
    pictures = [entry.picture(each.path, key=each.series, step=each.step) for each in run.trajectories]
    if newest := newest_trajectory(run):
        entry.preview(newest.path, TRAJECTORY)
    for path in files_to_show(run):
        entry.file(path)
    send_measured(run, entry)
    if run.state != "running":  # else its own process will say how it ended
        entry.end("FINISHED" if run.state == "finished" else "FAILED", at_ms=_milliseconds(run.moment("ended")))
    return Completed(entry.run_id, numbers, sum(pictures))


def complete_study(study: FoldStudy, store: Path) -> str:
    """The run that the folds hang below, with what was measured of all of them; returns its id.

    Raises: CheckpointError where the folder is no study; mlflow's own errors.
    """
    entry = _entry_of_study(study, store, make_client(store))
    send_measured(study.whole, entry)
    running = any(study.run(fold).state == "running" for fold in study.unfinished if _begun(study.run(fold)))
    entry.end("FINISHED" if study.finished else "RUNNING" if running else "FAILED")
    return entry.run_id


def send_measured(run: Run, entry: Entry) -> None:
    """What stands in a folder of a run, or a study, besides the curves: calibration, evaluations, settings that were tried;
    and the description, which speaks of them."""
    entry.latest(calibrated(run))
    for evaluation in recorded(run):
        send_evaluation(entry, evaluation)
    send_trials(entry, trials_of(run))
    describe(run, entry)


def send_evaluation(entry: Entry, evaluation: Evaluation) -> None:
    """Means as `test/…` (`on_val/…` where another split was measured), cases as a table, and what a person opens."""
    entry.latest({name: rounded(value) for name, value in means_of(evaluation).items()})
    rows = evaluation.rows
    columns = {name: [_cell(name, row[name]) for row in rows] for name in (rows[0] if rows else {})}
    if columns:
        entry.table(columns, f"cases_{evaluation.name}.json")
    for path in evaluation.files:
        entry.file(path, f"{FOLDER}/{evaluation.name}")
        if path.name == FIGURE:
            entry.preview(path, preview_of(evaluation))


def describe(run: Run, entry: Entry) -> None:
    """The description of a run, or of a study by its folder, as it is now. Raises: CheckpointError; mlflow's own errors."""
    study = FoldStudy(run.folder)
    told = description_of_study(study, entry.run_id) if study.there else description_of_run(run, entry.run_id)
    entry.describe(told)


def entry_of(run: Run, store: Path) -> Entry:
    """The run in MLflow, found again or opened, with its settings and its table of cases.

    Raises: CheckpointError where the folder is no run; mlflow's own errors.
    """
    facts, ticket, client = run.facts, ticket_of(run.folder), make_client(store)
    study = study_of(run)
    if study and study.there:
        parent: str | None = _entry_of_study(study, store, client, below=ticket.parent).run_id
    else:
        parent = group(client, store, experiment_of(facts["task"]), ticket.parent) if ticket.parent else None
    named = Name(
        experiment_of(facts["task"]),
        run.name,
        tags_of(facts, environment_of(run.folder)),
        parent=parent,
        started_ms=_milliseconds(run.moment("started")),
    )
    entry = open_entry(client, store, named, ticket)
    write_ticket(run.folder, ticket._replace(run_id=entry.run_id))
    entry.parameters(parameters_of(run))
    if "data" in facts and "data_digest" in facts:
        cases = facts.get("cases")
        entry.dataset(
            str(facts["data"]),
            str(facts["data_digest"]),
            cases=sum(cases.values()) if isinstance(cases, dict) else None,
        )
    return entry


def _entry_of_study(study: FoldStudy, store: Path, client: Any, *, below: str | None = None) -> Entry:
    """The run of a study in MLflow, which hangs below the runs of a whole experiment where `below` names one."""
    facts, ticket = study.facts, ticket_of(study.folder)
    above = below if below != study.name else None
    experiment = experiment_of(facts["task"])
    first = read_facts(study.run(1).folder / "run.json")
    said = {name: facts.get(name) for name in ("task", "recipe")} | {"data": first.get("data")}
    named = Name(
        experiment,
        study.name,
        tags_of(said, environment_of(study.run(1).folder)),
        parent=group(client, store, experiment, above) if above else None,
    )
    entry = open_entry(client, store, named, ticket)
    write_ticket(study.folder, ticket._replace(run_id=entry.run_id))
    entry.parameters({"recipe": facts["recipe"], "folds": facts["folds"]})
    return entry


def files_to_show(run: Run) -> list[Path]:
    """The files of a run folder that belong in MLflow; the model itself goes there when it is registered."""
    named = [run.recipe_file, run.folder / "environment.json", run.folder / "SHA256SUMS", run.folder / PAGE]
    return [path for path in [*named, *sorted(run.figures.glob("*.png"))] if path.is_file()]


def _begun(run: Run) -> bool:
    return (run.folder / "run.json").is_file()


def _cell(column: str, text: str | None) -> float | str | None:
    """Numbers as numbers, so that the page sorts them; what names something stays text."""
    if not text:
        return None
    try:
        return text if column in TEXT else float(text)
    except ValueError:
        return text


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
