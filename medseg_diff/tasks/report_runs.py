"""`report` of trainings: a page for a run, for a study and its folds, or for every run below a folder and one for all."""

import shlex
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medseg_diff.console import bar, duration, log
from medseg_diff.errors import ConfigError, MedsegError, counted
from medseg_diff.files import check_writable
from medseg_diff.reporting.page.cohort import Cell, Row, cell
from medseg_diff.reporting.page.trained import Outcome, Tested, write_run_page, write_runs_page, write_study_page
from medseg_diff.reporting.page.words import spoken
from medseg_diff.run import Run
from medseg_diff.runs import all_runs
from medseg_diff.settings import read_yaml
from medseg_diff.studies import STUDY, FoldStudy
from medseg_diff.tasks.runs import Listed, list_runs
from medseg_diff.tracking.about import SHOWN, use_of
from medseg_diff.tracking.attaching import attach_page
from medseg_diff.tracking.evaluations import FIGURE, FOLDER, PAGE, Evaluation, means_of, recorded
from medseg_diff.tracking.names import calibrated, chosen_by

MOST_COLUMNS = 6  # of numbers, in the table of all runs


def holds_runs(folder: Path) -> bool:
    """Whether it is a run, a study, or has runs somewhere below."""
    return (folder / "run.json").is_file() or (folder / STUDY).is_file() or next(all_runs(folder), None) is not None


def report_runs(folder: Path, *, runs: Path, most: int | None = None, mlflow: bool = True) -> Path:
    """Write report.html into the folder of every run and study that `folder` is or holds (of many of at most so many, the
    newest first), and one for all into `folder`; returns the page to open first.

    Raises: CheckpointError, EnvironmentFault.
    """
    check_writable(folder)
    if (folder / "run.json").is_file():
        return _page_of_run(Run(folder), runs, mlflow=mlflow)
    if (folder / STUDY).is_file():
        for run in _begun(FoldStudy(folder)):
            _page_of_run(run, runs, mlflow=mlflow)
        return _page_of_study(FoldStudy(folder), runs, mlflow=mlflow)
    listed = list_runs(folder)
    with bar("pages", len(listed[:most])) as step:
        for each in listed[:most]:
            with _said_of(each.name):
                _page_of_run(Run(folder / each.name), runs, mlflow=mlflow)
            step()
    for path in sorted({(folder / each.name).parent for each in listed[:most]}):
        if (path / STUDY).is_file():
            with _said_of(path.name):
                _page_of_study(FoldStudy(path), runs, mlflow=mlflow)
    columns, rows = _table(folder, listed)
    return write_runs_page(folder, counted(len(listed), "run"), columns, rows)


@contextmanager
def _said_of(name: str) -> Iterator[None]:
    """One of many whose folder is damaged has no page, and the others have theirs."""
    try:
        yield
    except (MedsegError, ValueError, KeyError, TypeError, OSError, struct.error) as error:  # anyone may edit its files
        log.warning("%s has no page: a file of its folder cannot be read (%s)", name, type(error).__name__)


def _page_of_run(run: Run, runs: Path, *, mlflow: bool) -> Path:
    metric, best = chosen_by(run.facts)
    page = write_run_page(
        run, _settings(run), _outcome(run, {metric: best} if metric else {}, use_of(run, _named(run.folder, runs)))
    )
    attach_page(run.folder, runs=runs, mlflow=mlflow)
    return page


def _page_of_study(study: FoldStudy, runs: Path, *, mlflow: bool) -> Path:
    columns, rows = _table(study.folder, list_runs(study.folder))
    use = use_of(study.run(1), _named(study.folder, runs)) if study.finished else ""
    settings = next(map(_settings, _begun(study)), {})
    page = write_study_page(study, columns, rows, settings, _outcome(study.whole, {}, use))
    attach_page(study.folder, runs=runs, mlflow=mlflow)
    return page


def _begun(study: FoldStudy) -> list[Run]:
    """The folds that there is a run of."""
    folds = [study.run(fold) for fold in range(1, study.facts["folds"] + 1)]
    return [run for run in folds if (run.folder / "run.json").is_file()]


def _named(folder: Path, runs: Path) -> str:
    """The word for --model: a name below the runs folder, else the folder itself."""
    with suppress(ValueError):
        return shlex.quote(folder.absolute().relative_to(runs.absolute()).as_posix())
    return shlex.quote(folder.name)


def _outcome(run: Run, chosen: Mapping[str, Any], use: str) -> Outcome:
    measured = {name.partition("/")[2]: value for name, value in calibrated(run).items()}
    return Outcome(chosen, measured, [_tested(each) for each in recorded(run)], use)


def _tested(evaluation: Evaluation) -> Tested:
    place, page = f"{FOLDER}/{evaluation.name}/{PAGE}", evaluation.folder / PAGE
    return Tested(evaluation.name, evaluation.summary, evaluation.folder / FIGURE, place if page.is_file() else "")


def _table(folder: Path, listed: Sequence[Listed]) -> tuple[list[str], list[Row]]:
    """Headings and a row for each run; what evaluations found where the runs have it."""
    means = {each.name: _means(Run(folder / each.name)) for each in listed}
    known = list(dict.fromkeys(name for found in means.values() for name in found))[:MOST_COLUMNS]
    numbers = [f"{spoken(name.partition('/')[2])} ({name.partition('/')[0].replace('_', ' ')})" for name in known]
    columns = ["run", "task", "recipe", "state", "chosen by", "best", *numbers, "step", "took", "started (UTC)"]
    rows = []
    for each in sorted(listed, key=lambda each: each.name):
        cells = [cell(value) for value in (each.task, each.recipe, each.state, each.metric, each.best)]
        cells += [cell(means[each.name].get(name)) for name in known]
        took = Cell(duration(each.seconds), str(each.seconds)) if each.seconds is not None else cell(None)
        cells += [cell(each.step), took, cell(_moment(each.started))]
        page = f"{each.name}/{PAGE}" if (folder / each.name / PAGE).is_file() else ""
        rows.append(Row(each.name, page, cells, each.state == "stopped"))
    return columns, rows


def _means(run: Run) -> dict[str, float]:
    """Of all its evaluations, those that are compared by."""
    found = {name: value for each in recorded(run) for name, value in means_of(each).items()}
    return {name: value for name, value in found.items() if name.partition("/")[2] in SHOWN}


def _moment(seconds: float | None) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) if seconds is not None else None


def _settings(run: Run) -> dict[str, Any]:
    with suppress(ConfigError):
        return read_yaml(run.recipe_file)
    return {}
