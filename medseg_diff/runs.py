"""Where runs lie: found by folder, by name or its beginning, or as the newest finished one of a task; the starter model."""

import importlib.resources
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from medseg_diff.console import log
from medseg_diff.errors import CheckpointError, UsageError, verbs_of
from medseg_diff.run import Run

STARTER, MODEL_CARD = "starter", "MODEL_CARD.md"
RUNS = Path("runs")  # where runs lie unless one says otherwise
NO_RUNS, DEEPEST = ("cache", "mlflow"), 3  # folders below runs/ that are something else; how far runs may be nested


def find_run(model: Path | None, *, task: str, runs: Path) -> Run:
    """The run to use: the one that was named (`locate`), else the newest finished one of this task below `runs`, else the
    starter model where it is of this task (not where `runs` was named and is not there). When it is that, it is said.

    Raises: CheckpointError where that is no run of this task; UsageError where none was named and none is there.
    """
    starter = starter_run()
    if model is not None:
        run = locate(model, runs)
        if run.facts.get("task") != task:
            raise CheckpointError(
                f"is a run for `{run.facts.get('task')}`, not `{task}`", fix="name another --model", file=run.name
            )
        if run == starter:
            _say("using the starter model", starter)
        return run
    found = [run for run in finished_runs(runs) if run.facts.get("task") == task]
    if not found and starter and starter.facts["task"] == task and (runs == RUNS or runs.is_dir()):
        _say(f"no finished run for `{task}` under {runs.name}/: using the starter model", starter)
        return starter
    if not found:
        raise UsageError(
            f"no finished run for `{task}` under {runs.name}/{'' if runs.is_dir() else ', which does not exist'}",
            fix=f"train one (medseg-diff {verbs_of(task).train} --data cases.csv) or name it with --model",
        )
    return max(found, key=lambda run: run.moment("ended") or 0.0)


def starter_run() -> Run | None:
    """The small model that comes with the package, to try it before training; None where it was not installed."""
    run = Run(Path(str(importlib.resources.files("medseg_diff"))) / STARTER)
    return run if (run.folder / "run.json").is_file() else None


def _say(which: str, starter: Run) -> None:
    """That it is the starter model, how little it is, and what to read and do about it."""
    log.warning(
        "%s, trained on %s patients: for trying things out, not for clinical use. Read %s; to train your own: "
        "medseg-diff %s --data cases.csv",
        which,
        starter.facts.get("patients"),
        f"medseg_diff/{STARTER}/{MODEL_CARD}",
        verbs_of(starter.facts["task"]).train,
    )


def locate(named: Path, runs: Path) -> Run:
    """A run by its folder, by its name below `runs` (a path where runs are nested), or by the beginning of one name only;
    `starter` is the package's unless a run of one's own is called so.

    Raises: CheckpointError where there is none, UsageError where the beginning fits several.
    """
    if (named / "run.json").is_file():
        return Run(named)
    known = {run.folder.relative_to(runs).as_posix(): run for run in all_runs(runs)}
    if named.as_posix() in known:
        return known[named.as_posix()]
    if named.as_posix() == STARTER and (starter := starter_run()):
        return starter
    fitting = [name for name, run in known.items() if named.as_posix() in (run.name, name[: len(named.as_posix())])]
    if len(fitting) > 1:
        raise UsageError(
            f"`{named.as_posix()}` could be {', '.join(fitting[:5])}{' …' if len(fitting) > 5 else ''}",
            fix="write more of the name",
        )
    return known[fitting[0]] if fitting else Run(named)


def all_runs(runs: Path) -> Iterator[Run]:
    """Every run below a folder, also those of studies in folders of their own (links to runs too); names in order."""
    folders = [(runs, 0)]
    while folders:
        folder, depth = folders.pop()
        inside = sorted(path for path in folder.glob("*/") if not path.name.startswith("."))
        for path in reversed(inside):
            leads_on = path.name not in NO_RUNS and not path.is_symlink() and not (path / "run.json").is_file()
            if depth < DEEPEST and leads_on:
                folders.append((path, depth + 1))
        for path in inside:
            run = Run(path)
            with suppress(CheckpointError):  # another program's run.json
                if (path / "run.json").is_file() and run.facts:
                    yield run


def finished_runs(runs: Path) -> Iterator[Run]:
    """Every finished run below a folder, wherever `all_runs` looks."""
    return (run for run in all_runs(runs) if run.facts.get("finished"))
