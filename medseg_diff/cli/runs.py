"""`medseg-diff runs …`: words on the command line → one function of `tasks.runs`, and its answer as a table."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_diff.cli.completion import completion_of
from medseg_diff.cli.options import AsJson
from medseg_diff.errors import VERBS, plain, printable, verbs_of

app = typer.Typer(
    name="runs",
    help="Review trained runs: list, best, compare; complete or fill MLflow: sync, register.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Runs = Annotated[Path, typer.Option(help="Folder of runs.", metavar="FOLDER")]
Task = Annotated[
    str | None,
    typer.Option(help="Only runs of this task.", metavar="|".join(VERBS), autocompletion=completion_of(tuple(VERBS))),
]
SHOWN = 8  # of what only one of two runs has
COLUMNS = ("name", "task", "recipe", "state", "best", "step", "started", "took", "data")


@app.command("list")
def list_runs(runs: Runs = Path("runs"), task: Task = None, as_json: AsJson = False) -> None:
    """Every run, the newest first."""
    from medseg_diff.tasks.runs import list_runs as run
    from medseg_diff.tasks.runs import rows_of

    found = rows_of(run(runs, task=task))
    if as_json:
        _show(found)
    elif not found:
        typer.echo(f"no runs under {runs}\nnext: medseg-diff {verbs_of(task).train} --data cases.csv")
    else:
        _table([COLUMNS, *(_row(each) for each in found)])


@app.command()
def best(
    runs: Runs = Path("runs"),
    task: Task = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Metric, such as val/dice or, of an evaluation, test/dice.", show_default="how runs chose"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The finished run with the best number: its folder, for --model "$(medseg-diff runs best --task segment)"."""
    from medseg_diff.tasks.runs import best_run as run

    found = run(runs, task=task, metric=metric)
    if as_json:
        _show(found)
        return
    typer.echo(printable(f"{found['metric']} {found['value']:.4g}, best of {found['compared']}"), err=True)
    _say(found["model"])


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Run: folder, name, or the beginning of a name.", metavar="RUN")],
    second: Annotated[Path, typer.Argument(help="The other run.", metavar="RUN")],
    predictions: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Two evaluated folders, one of each run.", metavar="FOLDER FOLDER", show_default="recorded evaluations"
        ),
    ] = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Compare two runs: what changed, and what difference it made."""
    from medseg_diff.tasks.runs import compare_runs as run

    found = run(first, second, runs=runs, predictions=predictions)
    if as_json:
        _show(found)
        return
    same = {True: "the same", False: "other weights", None: "no sealed weights"}[found["same_weights"]]
    _say(f"{found['first']} → {found['second']} ({same})")
    for title, key in (("settings", "settings"), ("data and device", "facts"), ("environment", "environment")):
        typer.echo(f"\n{title}: " + ("" if found[key] else "the same"))
        _show_both(found, key)
    typer.echo("\nmetrics at the last step of each run, as MLflow shows them:")
    _show_both(found, "numbers")
    _show_paired(found["paired"])


@app.command()
def sync(
    named: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]…", help="Which runs.", show_default="all")
    ] = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Send MLflow what it lacks, after an outage or for the first time; a second call changes nothing."""
    from medseg_diff.tasks.runs import sync_runs as run

    done = [each.__dict__ for each in run(named or (), runs=runs)]
    if as_json:
        _show(done)
        return
    for each in done:
        _say(f"{each['name']}: {each['numbers']} numbers and {each['pictures']} pictures were new")


@app.command()
def register(
    named: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    name: Annotated[str, typer.Option(help="Name in the registry.")],
    alias: Annotated[str | None, typer.Option(help="Alias: models:/NAME@ALIAS.")] = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Register a run in MLflow as the next version of a model."""
    from medseg_diff.tasks.runs import register_run as run

    uri, command = run(named, name, runs=runs, alias=alias)
    if as_json:
        _show({"model": uri})
        return
    typer.echo(f"{uri}\nnext: {command}")


def _row(each: Mapping[str, Any]) -> tuple[str, ...]:
    best = "" if each["best"] is None else f"{each['metric']} {each['best']:.4g}"
    started = "" if each["started"] is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(each["started"]))
    took = "" if each["seconds"] is None else _duration(each["seconds"])
    cells = (each["name"], each["task"], each["recipe"], each["state"], best, each["step"], started, took, each["data"])
    return tuple("" if cell is None else str(cell) for cell in cells)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _table(rows: list[tuple[str, ...]]) -> None:
    rows = [tuple(map(plain, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _show_both(found: Mapping[str, Any], key: str) -> None:
    """What both have as rows; in a line each what only one has."""
    rows = found[key]
    both = {name: pair for name, pair in rows.items() if None not in pair}
    numbers = key == "numbers"
    _table([("", name, _word(a), "→", _word(b), _change(a, b) if numbers else "") for name, (a, b) in both.items()])
    for which, other in ((0, 1), (1, 0)):
        alone = [
            f"{name} {_word(pair[which])}"
            for name, pair in rows.items()
            if pair[which] is not None and pair[other] is None
        ]
        if alone:
            more = [f"and {len(alone) - SHOWN} more (--json)"] if len(alone) > SHOWN else []
            _say(f"  only {found[('first', 'second')[which]]}: {', '.join([*alone[:SHOWN], *more])}")


def _word(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _change(first: float, second: float) -> str:
    return f"{second - first:+.4g}"


def _show_paired(paired: Mapping[str, Any]) -> None:
    if not paired:
        typer.echo(
            "\ncase by case: no common evaluation; evaluate both, or name two evaluated folders: --predictions A B"
        )
        return
    from medseg_diff.evaluation.comparison import lines_of

    for name, compared in paired.items():
        _say("", f"case by case, {name}:", *lines_of(compared))


def _say(*lines: str) -> None:
    """Names of runs and what they say of themselves come from files."""
    typer.echo("\n".join(map(printable, lines)))


def _show(answer: Any) -> None:
    typer.echo(json.dumps(answer, indent=2))  # what is no ASCII is spelled out
