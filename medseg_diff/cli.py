"""The front door: words on the command line → one function of `tasks`. Heavy libraries are imported behind it."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_diff import __version__
from medseg_diff.errors import EnvironmentFault, ExitCode, MedsegError, Preempted, Problems, UsageError

app = typer.Typer(
    name="medseg-diff",
    help="Diffusion models for brain MR: segmentation with uncertainty.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[Path, typer.Option(help="Table of cases (CSV).")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder that paths in the table are relative to [the table's].")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Overwrite = Annotated[bool, typer.Option(help="Redo what is there.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medseg-diff {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Warnings and errors only.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more.")] = 0,
    progress: Annotated[bool, typer.Option(help="Progress bars, on a terminal.")] = True,
    debug: Annotated[bool, typer.Option(help="Show a traceback for an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    from medseg_diff.tasks import console

    console.configure(verbosity=-1 if quiet else verbose, progress=progress)
    if debug:
        logging.getLogger("medseg_diff").setLevel(logging.DEBUG)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo"),
    cases: Annotated[int, typer.Option(min=10, help="Phantoms to make.")] = 60,
    seed: int = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Phantom data → train → segment → evaluate → montage; minutes on a CPU."""
    from medseg_diff.tasks.demo import demo as run

    metrics = run(out, cases=cases, seed=seed, device=device)
    _show_metrics(metrics, as_json)
    if not as_json:
        typer.echo(
            f"\npicture: {out / 'montage.png'}\nnext: medseg-diff prepare YOUR_FOLDER --source brats --out cases.csv"
        )


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    cases: Annotated[int, typer.Option(min=1)],
    shape: Annotated[tuple[int, int, int], typer.Option(help="Voxels along X Y Z.")] = (64, 64, 48),
    raters: Annotated[int, typer.Option(min=0, help="Further opinions, seg_1 …")] = 0,
    healthy: Annotated[float, typer.Option(min=0, max=1, help="Share of cases without a lesion.")] = 0.25,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make brains with gliomas whose truth is known."""
    from medseg_diff.tasks.phantom import phantom as run

    table = run(out, cases=cases, shape=shape, raters=raters, healthy=healthy, seed=seed, overwrite=overwrite)
    typer.echo(f"{table}\nnext: medseg-diff train-seg --data {table} --config quick/phantom")


@app.command()
def prepare(
    folder: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    source: Annotated[str, typer.Option(help="What the folder is: brats, phantom.")],
    out: Annotated[Path, typer.Option(help="Table to write.")] = Path("cases.csv"),
    seed: Annotated[int, typer.Option(help="Draws the splits.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Folder → table of cases, split by patient."""
    from medseg_diff.tasks.prepare import prepare as run

    table = run(folder, source=source, out=out, seed=seed, overwrite=overwrite)
    typer.echo(f"{table}\nnext: medseg-diff validate --data {table}")


@app.command()
def validate(data: Data, data_root: DataRoot = None, as_json: AsJson = False) -> None:
    """Check every file that a table names; lists all problems."""
    from medseg_diff.tasks.validate import validate as run

    report = run(data, data_root=data_root)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
        raise typer.Exit(int(report.exit_code))
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if report.problems:
        raise Problems(report.problems)
    typer.echo(f"{report.cases} cases, no problem\nnext: medseg-diff train-seg --data {data}")


@app.command("train-seg")
def train_seg(
    data: Data,
    settings: Annotated[list[str] | None, typer.Argument(help="key=value laid over the recipe.")] = None,
    config: Annotated[str, typer.Option(help="Recipe by name (see `info`) or path.")] = "mask_logits",
    out: Annotated[Path | None, typer.Option(help="Run folder [runs/TIME-RECIPE].")] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs, cache and MLflow store.")] = Path("runs"),
    mlflow: Annotated[bool, typer.Option(help="Mirror the run in MLflow.")] = True,
) -> None:
    """Train a segmentation model."""
    from medseg_diff.tasks.train_seg import train_seg as run

    run(
        data,
        config=config,
        out=out,
        overrides=settings or (),
        device=device,
        data_root=data_root,
        runs=runs,
        mlflow=mlflow,
    )


@app.command()
def segment(
    out: Annotated[Path, typer.Option(help="Where results go, a folder for each case.")],
    volume: Annotated[
        list[str] | None, typer.Option(help="Case folder, file of a case, or channel=file (repeat).")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Table of cases (CSV).")] = None,
    split: Annotated[str | None, typer.Option(help="Only train, val or test.")] = None,
    model: Annotated[Path | None, typer.Option(help="Run folder [the newest below --runs].")] = None,
    members: Annotated[int | None, typer.Option(min=1, help="Samples in the ensemble [the recipe's].")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps [the recipe's].")] = None,
    seed: int = 0,
    network_batch: Annotated[int | None, typer.Option(min=1, help="Samples in one pass of the network.")] = None,
    members_at_once: Annotated[
        int | None, typer.Option(min=1, help="Order of work; results do not depend on it.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16 [the recipe's].")] = None,
    resample_to: Annotated[str | None, typer.Option(help="Bring the other channels onto this one's grid.")] = None,
    shard: Annotated[str, typer.Option(help="K/N: every N-th case, starting with the K-th.")] = "1/1",
    save_members: Annotated[bool, typer.Option(help="Also write members/NN.nii.gz.")] = False,
    overwrite: Overwrite = False,
    keep_going: Annotated[bool, typer.Option(help="Go on past a bad case.")] = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    runs: Annotated[Path, typer.Option(help="Where to look for the newest run.")] = Path("runs"),
) -> None:
    """Segment scans: mask, probability and uncertainty on the scan's own grid."""
    from medseg_diff.tasks.segment import segment as run

    folders = run(
        volume or (),
        data=data,
        out=out,
        model=model,
        split=split,
        shard=_shard(shard),
        members=members,
        steps=steps,
        seed=seed,
        network_batch=network_batch,
        members_at_once=members_at_once,
        precision=precision,
        resample_to=resample_to,
        save_members=save_members,
        overwrite=overwrite,
        keep_going=keep_going,
        device=device,
        data_root=data_root,
        runs=runs,
    )
    if data is not None:
        typer.echo(f"next: medseg-diff evaluate --predictions {out} --data {data}")
    elif folders:
        typer.echo(folders[0])


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Option(help="What `segment` wrote.")],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Where metrics.json goes [PREDICTIONS].")] = None,
    split: Annotated[str | None, typer.Option(help="Only train, val or test.")] = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Compare results with the references of a table."""
    from medseg_diff.tasks.evaluate import evaluate as run

    _show_metrics(run(predictions, data, out=out, split=split, data_root=data_root), as_json)


@app.command()
def selftest(as_json: AsJson = False) -> None:
    """The exact-answer laws of the diffusion engine on this machine, as a table."""
    from medseg_diff.tasks.selftest import selftest as run

    verdicts = run()
    if as_json:
        rows = [{"law": v.law, "measured": v.measured, "bound": v.bound, "holds": v.holds} for v in verdicts]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for v in verdicts:
            typer.echo(f"{'ok  ' if v.holds else 'FAIL'} {v.measured:9.2e} ≤ {v.bound:7.1e}  {v.law}")
        typer.echo(f"{sum(v.holds for v in verdicts)} of {len(verdicts)} laws hold")
    if not all(v.holds for v in verdicts):
        raise typer.Exit(int(ExitCode.BUG))


@app.command()
def info(as_json: AsJson = False) -> None:
    """Recipes, versions and devices."""
    from medseg_diff.tasks.info import info as run

    found = run()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"medseg-diff {found['medseg_diff']}, Python {found['python']}, {found['system']} {found['machine']}")
    typer.echo("  " + ", ".join(f"{name} {version}" for name, version in found["packages"].items()))
    typer.echo(
        f"devices: {found['cpus']} CPUs" + "".join(f", {gpu['name']} ({gpu['memory']})" for gpu in found["gpus"])
    )
    typer.echo("recipes: " + ", ".join(found["recipes"]))


def main() -> None:
    """Run the command line and turn every error into its line and its exit code."""
    debug = "--debug" in sys.argv
    try:
        code = app(_global_words_first(sys.argv[1:]), standalone_mode=False)
    except MedsegError as error:
        if debug:
            raise
        code = _report(error)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        if debug:
            raise
        code = _report_other(error)
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)


def _global_words_first(words: list[str]) -> list[str]:
    """-q, -v, --debug, --no-progress and --version may stand anywhere, also behind the verb."""
    everywhere = {"-q", "--quiet", "-v", "-vv", "--verbose", "--debug", "--progress", "--no-progress", "--version"}
    return [word for word in words if word in everywhere] + [word for word in words if word not in everywhere]


def _report(error: MedsegError) -> int:
    for line in error.lines:
        print(f"{'stopped' if isinstance(error, Preempted) else 'error'}: {line}", file=sys.stderr)
    return int(error.exit_code)


def _report_other(error: Exception) -> int:
    """What is not ours: a wrong word on the command line, the machine's limits, or a bug."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if hasattr(error, "format_message"):  # a wrong word; the class is click's or typer's own, by version
        return _report_word(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _report(EnvironmentFault("out of memory", fix="lower --network-batch or training.batch"))
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, OSError):
        name = Path(str(error.filename)).name if error.filename else None
        return _report(EnvironmentFault(error.strerror or str(error), fix="check disk and permissions", file=name))
    print(
        f"error: a bug in medseg-diff: {type(error).__name__}: {error}. Fix: report it, with --debug.", file=sys.stderr
    )
    return int(ExitCode.BUG)


def _report_word(error: Any) -> int:
    """What typer says of a wrong word, in our form; without any word it is the help, as it stands."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(ExitCode.USAGE)
    program = context.command_path if context else "medseg-diff"
    return _report(UsageError(error.format_message(), fix=f"see {program} --help"))


def _shard(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit()):
        raise typer.BadParameter("write it as K/N, e.g. 1/2", param_hint="--shard")
    return int(first), int(second)


def _show_metrics(metrics: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(metrics, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{metrics['data']}, {metrics['cases']} cases")
    for name, found in metrics["metrics"].items():
        if found["value"] is None:
            continue
        unit = "" if found["unit"] == "1" else f" {found['unit']}"
        interval = "" if found["low"] is None else f"  [{found['low']:.3f}, {found['high']:.3f}]"
        typer.echo(f"  {name:<18} {found['value']:8.3f}{unit}{interval}  over {found['over']}")
