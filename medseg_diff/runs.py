"""Where runs lie: found by folder, by name or its beginning, or as the newest finished one of a task."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from medseg_diff.errors import CheckpointError, UsageError, verbs_of
from medseg_diff.run import Run

NO_RUNS, DEEPEST = ("cache", "mlflow"), 3  # folders below runs/ that are something else; how far runs may be nested


def find_run(model: Path | None, *, task: str, runs: Path) -> Run:
    """The run to use: the one that was named (`locate`), else the newest finished one of this task below `runs`.

    Raises: CheckpointError where that is no run of this task; UsageError where none was named and none is there.
    """
    if model is not None:
        run = locate(model, runs)
        if run.facts.get("task") != task:
            raise CheckpointError(
                f"is a run for `{run.facts.get('task')}`, not `{task}`", fix="name another --model", file=run.name
            )
        return run
    found = [run for run in finished_runs(runs) if run.facts.get("task") == task]
    if not found:
        raise UsageError(
            f"no finished run for `{task}` below {runs.name}/",
            fix=f"train one (medseg-diff {verbs_of(task).train} --data cases.csv) or name it with --model",
        )
    return max(found, key=lambda run: run.moment("ended") or 0.0)


def locate(named: Path, runs: Path) -> Run:
    """A run by its folder, by its name below `runs` (a path where runs are nested), or by the beginning of one name only.

    Raises: CheckpointError where there is none, UsageError where the beginning fits several.
    """
    if (named / "run.json").is_file():
        return Run(named)
    known = {run.folder.relative_to(runs).as_posix(): run for run in all_runs(runs)}
    if named.as_posix() in known:
        return known[named.as_posix()]
    fitting = [name for name, run in known.items() if named.as_posix() in (run.name, name[: len(named.as_posix())])]
    if len(fitting) > 1:
        raise UsageError(
            f"`{named.as_posix()}` may be {', '.join(fitting[:5])}{' …' if len(fitting) > 5 else ''}",
            fix="write more of it",
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
