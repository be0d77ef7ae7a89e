"""Review of trained runs from their folders: which there are, which was best, what changed between two and what it did."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg_diff.console import log
from medseg_diff.errors import VERBS, UsageError, verbs_of
from medseg_diff.evaluation.catalogue import direction_of
from medseg_diff.files import read_facts
from medseg_diff.recipes.tuned import TUNED
from medseg_diff.run import Run
from medseg_diff.runs import all_runs, finished_runs, locate
from medseg_diff.settings import read_yaml
from medseg_diff.studies import study_of
from medseg_diff.tracking.names import chosen_by, meant, numbers_of, points_of, rounded

if TYPE_CHECKING:
    from medseg_diff.tracking.evaluations import Evaluation

TAIL_BYTES = 4096
FACTS = ("task", "recipe", "data", "data_digest", "device", "precision", "threads")


@dataclass(frozen=True)
class Listed:
    """A run as `runs list` shows it. `started` in seconds since 1970; `best` as the run chose its weights by `metric`."""

    name: str
    task: str
    recipe: str
    state: str
    metric: str | None
    best: float | None
    step: int | None
    started: float | None
    seconds: float | None
    data: str | None


def list_runs(runs: Path, *, task: str | None = None) -> list[Listed]:
    """Every run below a folder, the newest first. Raises: UsageError for a task that is none."""
    _check_task(task)
    found = [_listed(run, runs) for run in all_runs(runs) if task in (None, run.facts.get("task"))]
    return sorted(found, key=lambda listed: listed.started or 0.0, reverse=True)


def _check_task(task: str | None) -> None:
    if task is not None and task not in VERBS:
        raise UsageError(f"unknown task `{task}`", fix=f"use one of {', '.join(VERBS)}")


def best_run(runs: Path, *, task: str | None = None, metric: str | None = None) -> dict[str, Any]:
    """The finished run with the best number: {name, model, task, metric, value, compared}; `model` is its folder.

    `metric` is a name as MLflow shows it, such as `val/dice` (that of the kept weights counts) or `test/dice` of an
    evaluation, or as metrics.csv writes it; without it the number by which runs chose their weights, which must then be the
    same one for all.
    Raises: UsageError where no finished run has it, where runs chose by different numbers, or for a task that is none.
    """
    _check_task(task)
    finished = [run for run in finished_runs(runs) if task in (None, run.facts.get("task"))]
    if metric is None:
        names = sorted({name for run in finished for name in [chosen_by(run.facts)[0]] if name})
        if len(names) > 1:
            raise UsageError(
                f"these runs chose by {', '.join(names)}", fix="name one of them with --metric, or a --task"
            )
        metric = names[0] if names else ""
    scored = {run: value for run in finished if (value := _best_value(run, metric)) is not None}
    if not scored:
        known = sorted({name for run in finished for name in numbers_of(run)})
        raise UsageError(
            f"no finished run under {runs.name}/ has {metric or 'a best number'}",
            fix=f"use one of {', '.join(known)}"
            if known
            else f"train one: medseg-diff {verbs_of(task).train} --data cases.csv",
        )
    winner = (min if direction_of(metric) == "lower" else max)(scored, key=lambda run: scored[run])
    return {
        "name": winner.folder.relative_to(runs).as_posix(),
        "model": winner.folder.as_posix(),
        "task": winner.facts.get("task"),
        "metric": meant(metric, numbers_of(winner)) or metric,
        "value": scored[winner],
        "compared": len(scored),
    }


def compare_runs(
    first: Path, second: Path, *, runs: Path, predictions: tuple[Path, Path] | None = None
) -> dict[str, Any]:
    """What changed between two runs and what it did.

    Returns {"first", "second", "settings", "facts", "environment", "same_weights", "numbers", "paired"}: differing settings
    under dotted names, facts and versions, each [first, second] with null where one has none; last validation numbers
    and evaluations of both; and where both were evaluated on the same data, or `predictions` names two evaluated folders,
    the paired comparison of their cases, by the name of the data.
    Raises: CheckpointError where one is no run, UsageError where `predictions` have no case in common.
    """
    one, two = locate(first, runs), locate(second, runs)
    numbers = [numbers_of(run) for run in (one, two)]
    return {
        "first": one.name,
        "second": two.name,
        "settings": differing(*(_settings(run) for run in (one, two))),
        "facts": differing(*({name: run.facts[name] for name in FACTS if name in run.facts} for run in (one, two))),
        "environment": differing(*(_flat(read_facts(run.folder / "environment.json")) for run in (one, two))),
        "same_weights": _weights(one) == _weights(two) if _weights(one) else None,
        "numbers": {name: [part.get(name) for part in numbers] for name in dict.fromkeys([*numbers[0], *numbers[1]])},
        "paired": _paired(one, two, predictions),
    }


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """{name: [first, second]} of what is not the same in both; None where one has none."""
    names = dict.fromkeys([*first, *second])
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}


def _listed(run: Run, runs: Path) -> Listed:
    facts = run.facts
    metric, best = chosen_by(facts)
    started = run.moment("started")
    ended = run.moment("ended") or (run.metrics_file.stat().st_mtime if run.metrics_file.is_file() else None)
    return Listed(
        name=run.folder.relative_to(runs).as_posix(),
        task=str(facts.get("task", "")),
        recipe=str(facts.get("recipe", "")),
        state=run.state,
        metric=metric,
        best=best,
        step=_last_step(run),
        started=started,
        seconds=max(0.0, ended - started) if started and ended else None,
        data=str(facts["data"]) if "data" in facts else None,
    )


def _last_step(run: Run) -> int | None:
    """Of metrics.csv, read from its end."""
    step = None
    with suppress(OSError):
        for point in run.numbers(last_bytes=TAIL_BYTES):
            step = point.step
    return step


def _best_value(run: Run, metric: str) -> float | None:
    """What the kept weights have: of the number that chose them what run.json says, if it was ever measured; of every other
    the last."""
    numbers, (chosen, best) = numbers_of(run), chosen_by(run.facts)
    name = meant(metric, numbers)
    if name is None:
        return None
    if (
        best is not None
        and name == chosen
        and rounded(best) in {each.value for each in points_of(run) if each.name == name}
    ):
        return rounded(best)
    return numbers[name]


def _settings(run: Run) -> dict[str, Any]:
    return _flat(read_yaml(run.recipe_file)) if run.recipe_file.is_file() else {}


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    from medseg_diff.settings import flat

    return flat(settings)


def _weights(run: Run) -> list[str]:
    """The lines of SHA256SUMS that are about weights."""
    try:
        lines = (run.folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line for line in lines if "  weights/" in line]


def _paired(one: Run, two: Run, predictions: tuple[Path, Path] | None) -> dict[str, Any]:
    from medseg_diff.tracking.evaluations import recorded

    if predictions is not None:
        places = {"predictions": predictions}
    else:
        mine, theirs = ({each.name: each for each in recorded(run)} for run in (one, two))
        common = [name for name in mine if name in theirs and _cases(mine[name]) & _cases(theirs[name])]
        places = {name: (mine[name].folder, theirs[name].folder) for name in common}
    if not places:
        return {}
    from medseg_diff.evaluation.comparison import compare_predictions  # brings libraries that take seconds to load

    return {name: compare_predictions(*pair, names=(one.name, two.name)) for name, pair in places.items()}


def _cases(evaluation: "Evaluation") -> set[str]:
    return {row.get("case", "") for row in evaluation.rows}


@dataclass(frozen=True)
class Synced:
    """What `runs sync` told MLflow of one run that it had not known."""

    name: str
    run_id: str
    numbers: int
    pictures: int


def sync_runs(named: Sequence[Path] = (), *, runs: Path) -> list[Synced]:
    """Tell MLflow everything about the named runs, or about all below `runs`; a second call changes nothing.

    Raises: CheckpointError where one is no run, EnvironmentFault where MLflow does not answer.
    """
    from medseg_diff.tracking import complete, complete_study
    from medseg_diff.tracking.store import answering

    chosen = [locate(path, runs) for path in named] or list(all_runs(runs))
    studies = {study.folder: study for run in chosen if (study := study_of(run))}
    with answering():
        done = [Synced(run.name, *complete(run, runs)) for run in chosen]
        for study in studies.values():
            complete_study(study, runs)
    return done


def register_run(named: Path, name: str, *, runs: Path, alias: str | None = None) -> tuple[str, str]:
    """Put a run into MLflow's registry; returns the word for --model, `models:/NAME/VERSION`, and the command that uses it.

    Raises: CheckpointError, UsageError, EnvironmentFault as `tracking.registry.register`.
    """
    from medseg_diff.tracking.about import use_of
    from medseg_diff.tracking.registry import register

    run = locate(named, runs)
    if (run.folder / TUNED).is_file():
        log.info(
            "%s stays in the run's folder: registered versions do not change; pass --steps and --members to `segment`",
            TUNED,
        )
    uri = register(run, runs, name=name, alias=alias).uri
    return uri, use_of(run, uri)


def rows_of(listed: Sequence[Listed]) -> list[dict[str, Any]]:
    """Plain data of a list of runs."""
    return [asdict(each) for each in listed]
