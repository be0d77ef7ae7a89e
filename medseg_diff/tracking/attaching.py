"""Evaluations and pages shown with the run that they are about, in MLflow too if that knows the run; nothing raises."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medseg_diff.console import log
from medseg_diff.errors import MedsegError
from medseg_diff.files import read_facts
from medseg_diff.run import Run
from medseg_diff.studies import STUDY, FoldStudy
from medseg_diff.tracking.entry import Entry
from medseg_diff.tracking.evaluations import FOLDER, PAGE, keep, name_of, owner_of, record_evaluation
from medseg_diff.tracking.store import make_client, read_ticket
from medseg_diff.tracking.sync import complete_study, describe, send_evaluation
from medseg_diff.tracking.trials import SWEEP, send_trials, trials_of

PAGES = "pages"  # of folders that were not evaluated


def attach_to_run(
    summary: Mapping[str, Any], per_case: Path, predictions: Path, *, runs: Path, mlflow: bool = True
) -> Run | None:
    """Keep an evaluation with the run (or the study) below `runs` that made `predictions`; returns it, None where there is
    none. Best effort: never raises."""
    run = owner_of(predictions, runs)
    if run is not None:
        shown = attach_evaluation(run, summary, per_case, store=runs, mlflow=mlflow)
        log.info("kept with the run %s%s", run.folder, " and shown in MLflow" if shown else "")
    return run


def attach_evaluation(
    run: Run, summary: Mapping[str, Any], per_case: Path, *, store: Path, mlflow: bool = True
) -> bool:
    """Keep an evaluation in the run folder, and show it in MLflow if that knows the run; returns whether it does.

    Never raises and costs seconds at most: an evaluation is complete without it, and `runs sync` makes up for it.
    """
    try:
        evaluation = record_evaluation(run, summary, per_case)
    except MedsegError as error:
        log.warning("the run folder cannot keep this evaluation: %s", error.line)
        return False
    return mlflow and _told(run, store, lambda entry: send_evaluation(entry, evaluation))


def attach_page(folder: Path, *, runs: Path, mlflow: bool = True) -> Run | None:
    """Show FOLDER/report.html among the artifacts of the run that it is about, where MLflow opens it: of a run or a study
    its own, of evaluated predictions beside their evaluation; returns the run, None where there is none or no page.

    Called by whoever wrote the page; `evaluate` takes along one that is there. Best effort: never raises.
    """
    page = folder / PAGE
    if not page.is_file():
        return None
    if (folder / "run.json").is_file() or (folder / STUDY).is_file():
        run, place = Run(folder), None
    elif (owner := owner_of(folder, runs)) is None:
        return None
    else:
        run, place = owner, f"{PAGES}/{folder.name}"
        evaluation = run.folder / FOLDER / name_of(read_facts(folder / "metrics.json"))
        if (evaluation / "metrics.json").is_file():
            place = f"{FOLDER}/{evaluation.name}"
            try:
                keep(page, evaluation / PAGE)
            except MedsegError as error:
                log.warning("the run folder cannot keep this page: %s", error.line)
    if mlflow:
        _told(run, runs, lambda entry: entry.file(page, place))
    return run


def attach_trials(run: Run, *, store: Path, sweep: Path | None = None) -> None:
    """Show the settings that were tried with a run, or a study, below it: those of its tuned.json and of `sweep`, the table
    of a sweep, of which its folder keeps a copy. Best effort: never raises."""
    try:
        if sweep is not None:
            keep(sweep, run.folder / SWEEP)
    except MedsegError as error:
        log.warning("the run folder cannot keep this sweep: %s", error.line)
    _told(run, store, lambda entry: send_trials(entry, trials_of(run)))


def attach_study(study: FoldStudy, *, store: Path) -> None:
    """Show what a study of folds, now finished, came to. Best effort: never raises."""
    try:
        complete_study(study, store)
    except Exception as error:  # mlflow and its transports fail in many ways
        log.warning(
            "%s was not sent to MLflow (%s); send it later: medseg-diff runs sync", study.name, type(error).__name__
        )


def _told(run: Run, store: Path, what: Callable[[Entry], None]) -> bool:
    """Tell the run's entry in MLflow, and have its description say so; whether MLflow knows the run and answered."""
    ticket = read_ticket(run.folder)
    if ticket is None or ticket.run_id is None:
        return False
    try:
        entry = Entry(make_client(store), ticket.run_id, known=True)
        what(entry)
        describe(run, entry)
    except Exception as error:  # mlflow and its transports fail in many ways
        log.warning(
            "not sent to MLflow (%s); send it later: medseg-diff runs sync %s",
            type(error).__name__,
            run.name,
        )
        return False
    return True
