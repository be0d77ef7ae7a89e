"""The front door: words on the command line → one function of `tasks`. Heavy libraries are imported behind it."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medseg_diff import __version__, cli_runs
from medseg_diff.errors import (
    EnvironmentFault,
    ExitCode,
    MedsegError,
    Preempted,
    Problems,
    UsageError,
    is_out_of_memory,
    plain,
)

app = typer.Typer(
    name="medseg-diff",
    help="Diffusion models for brain MR: segmentation with uncertainty.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(cli_runs.app)

Data = Annotated[Path, typer.Option(help="Table of cases (CSV).")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder that paths in the table are relative to [the table's].")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
ResumeOption = Annotated[
    Literal["auto", "must"] | None,
    typer.Option(
        help="Go on with the unfinished run in --out [the newest of this recipe and data]; auto: or begin one."
    ),
]
Overwrite = Annotated[bool, typer.Option(help="Redo what is there.")]
KeepGoing = Annotated[bool, typer.Option(help="Go on past a bad case; OUT/failures.csv lists it.")]
Pseudonymise = Annotated[
    bool, typer.Option("--pseudonymise", help="Results carry pseudonyms in place of the cases' names.")
]
PseudonymKey = Annotated[
    Path | None, typer.Option(help="File of the secret that makes the pseudonyms [RUNS/pseudonym.key].")
]


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
    """Phantom data → train → segment and map anomalies → evaluate → montages; minutes on a CPU."""
    from medseg_diff.tasks.demo import demo as run

    metrics = run(out, cases=cases, seed=seed, device=device)
    if as_json:
        typer.echo(json.dumps(metrics, indent=2, ensure_ascii=False))
        return
    for task, found in metrics.items():
        typer.echo(f"{task}: ", nl=False)
        _show_metrics(found, as_json)
    typer.echo(f"\npictures: {out / 'montage.png'}, {out / 'anomaly' / 'montage.png'}")
    typer.echo("next: medseg-diff prepare YOUR_FOLDER --source brats --out cases.csv")


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
        typer.echo(f"warning: {plain(warning)}", err=True)
    if report.problems:
        raise Problems(report.problems)
    typer.echo(f"{report.cases} cases, no problem\nnext: medseg-diff train-seg --data {data}")


@app.command("train-seg")
def train_seg(
    data: Data,
    settings: Annotated[list[str] | None, typer.Argument(help="key=value laid over the recipe.")] = None,
    config: Annotated[str, typer.Option(help="Recipe by name (see `info`) or path.")] = "mask_logits",
    out: Annotated[Path | None, typer.Option(help="Run folder [runs/TIME-RECIPE].")] = None,
    resume: ResumeOption = None,
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
        resume=resume,
    )


@app.command("train-anomaly")
def train_anomaly(
    data: Data,
    settings: Annotated[list[str] | None, typer.Argument(help="key=value laid over the recipe.")] = None,
    config: Annotated[str, typer.Option(help="Recipe by name (see `info`) or path.")] = "guided",
    out: Annotated[Path | None, typer.Option(help="Run folder [runs/TIME-RECIPE].")] = None,
    resume: ResumeOption = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    runs: Annotated[Path, typer.Option(help="Folder of runs, cache and MLflow store.")] = Path("runs"),
    mlflow: Annotated[bool, typer.Option(help="Mirror the run in MLflow.")] = True,
) -> None:
    """Train an anomaly model: a denoiser and a noisy classifier, from healthy and diseased slices."""
    from medseg_diff.tasks.train_anomaly import train_anomaly as run

    run(
        data,
        config=config,
        out=out,
        overrides=settings or (),
        device=device,
        data_root=data_root,
        runs=runs,
        mlflow=mlflow,
        resume=resume,
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
    noise: Annotated[
        str | None, typer.Option(help="Of a member: independent in each slice, or shared by all [the recipe's].")
    ] = None,
    fusion: Annotated[
        str | None, typer.Option(help="What makes the mask of the members: mean, vote or staple [the recipe's].")
    ] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Also write the probability at the run's temperature.")
    ] = False,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16 [the recipe's].")] = None,
    resample_to: Annotated[str | None, typer.Option(help="Bring the other channels onto this one's grid.")] = None,
    shard: Annotated[str, typer.Option(help="K/N: every N-th case, starting with the K-th.")] = "1/1",
    save_members: Annotated[bool, typer.Option(help="Also write members/NN.nii.gz.")] = False,
    overwrite: Overwrite = False,
    keep_going: KeepGoing = False,
    pseudonymise: Pseudonymise = False,
    pseudonym_key: PseudonymKey = None,
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
        noise=noise,
        fusion=fusion,
        calibrated=calibrated,
        precision=precision,
        resample_to=resample_to,
        save_members=save_members,
        overwrite=overwrite,
        keep_going=keep_going,
        pseudonymise=pseudonymise,
        pseudonym_key=pseudonym_key,
        device=device,
        data_root=data_root,
        runs=runs,
    )
    if data is not None:
        typer.echo(f"next: medseg-diff evaluate --predictions {out} --data {data}")
    elif folders:
        typer.echo(folders[0])


@app.command()
def anomaly(
    out: Annotated[Path, typer.Option(help="Where results go, a folder for each case.")],
    volume: Annotated[
        list[str] | None, typer.Option(help="Case folder, file of a case, or channel=file (repeat).")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Table of cases (CSV).")] = None,
    split: Annotated[str | None, typer.Option(help="Only train, val or test.")] = None,
    model: Annotated[Path | None, typer.Option(help="Run folder [the newest below --runs].")] = None,
    threshold: Annotated[
        str | None, typer.Option(help="healthy (stored with the model), otsu, or a number [the recipe's].")
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="L, how deep the lesion is drowned [the recipe's].")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each way [the recipe's].")] = None,
    scale: Annotated[float | None, typer.Option(min=0, help="Of the push towards healthy [the recipe's].")] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Write no maps; try depths, steps and scales on a few slices.")
    ] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also write the maps that a method must beat, for `evaluate`.")
    ] = False,
    network_batch: Annotated[int | None, typer.Option(min=1, help="Slices in one pass of the networks.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16 [the recipe's].")] = None,
    resample_to: Annotated[str | None, typer.Option(help="Bring the other channels onto this one's grid.")] = None,
    shard: Annotated[str, typer.Option(help="K/N: every N-th case, starting with the K-th.")] = "1/1",
    overwrite: Overwrite = False,
    keep_going: KeepGoing = False,
    pseudonymise: Pseudonymise = False,
    pseudonym_key: PseudonymKey = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    runs: Annotated[Path, typer.Option(help="Where to look for the newest run.")] = Path("runs"),
) -> None:
    """Map anomalies: score, mask, lesions and the healed brain on the scan's own grid."""
    from medseg_diff.tasks.anomaly import anomaly as run

    folders = run(
        volume or (),
        data=data,
        out=out,
        model=model,
        split=split,
        shard=_shard(shard),
        threshold=_threshold(threshold),
        depth=depth,
        steps=steps,
        scale=scale,
        network_batch=network_batch,
        precision=precision,
        resample_to=resample_to,
        baselines=baselines,
        sweep=sweep,
        overwrite=overwrite,
        keep_going=keep_going,
        pseudonymise=pseudonymise,
        pseudonym_key=pseudonym_key,
        device=device,
        data_root=data_root,
        runs=runs,
    )
    if sweep:
        typer.echo((out / "recommended.txt").read_text(encoding="utf-8").strip())
    elif data is not None:
        typer.echo(f"next: medseg-diff evaluate --predictions {out} --data {data}")
    elif folders:
        typer.echo(folders[0])


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Option(help="What `segment` or `anomaly` wrote.")],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Where metrics.json goes [PREDICTIONS].")] = None,
    split: Annotated[str | None, typer.Option(help="Only train, val or test.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Another folder of the same cases, to compare with.")] = None,
    figure: Annotated[bool, typer.Option(help="Also draw evaluation.png.")] = True,
    data_root: DataRoot = None,
    runs: Annotated[Path, typer.Option(help="Where the run lies that keeps the result.")] = Path("runs"),
    mlflow: Annotated[bool, typer.Option(help="Show the result with its run in MLflow.")] = True,
    as_json: AsJson = False,
) -> None:
    """Compare results with the references of a table, and with other results."""
    common: dict[str, Any] = {"split": split, "data_root": data_root, "figure": figure, "runs": runs, "mlflow": mlflow}
    if compare is None:
        from medseg_diff.tasks.evaluate import evaluate as run

        metrics = run(predictions, data, out=out, **common)
        _show_metrics(metrics, as_json)
        return
    from medseg_diff.tasks.compare import evaluate_both, lines_of

    metrics, compared = evaluate_both(predictions, compare, data, out=out, **common)
    _show_metrics(metrics | {"comparison": compared} if as_json else metrics, as_json)
    if not as_json:
        typer.echo("\n" + "\n".join(lines_of(compared)))


@app.command()
def ui(
    runs: Annotated[Path, typer.Option(help="Folder of runs, cache and MLflow store.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="An address of this machine's loopback.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """MLflow's pages on the local store, for this machine only; Ctrl-C ends it."""
    from medseg_diff.tasks.ui import ui as run

    run(runs, host=host, port=port, ready=lambda link: typer.echo(f"{link}\nCtrl-C ends it"))


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
    if is_out_of_memory(error):
        return _report(EnvironmentFault("out of memory", fix="lower --network-batch or training.batch"))
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, OSError):
        name = Path(str(error.filename)).name if error.filename else None
        return _report(EnvironmentFault(error.strerror or str(error), fix="check disk and permissions", file=name))
    words = plain(f"a bug in medseg-diff: {type(error).__name__}: {error}")
    print(f"error: {words}. Fix: report it, with --debug.", file=sys.stderr)
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


def _threshold(text: str | None) -> Any:
    if text in (None, "healthy", "otsu"):
        return text
    try:
        return float(text or "")
    except ValueError:
        raise typer.BadParameter("use healthy, otsu or a number", param_hint="--threshold") from None


def _show_metrics(metrics: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(metrics, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{metrics['data']}, {metrics['cases']} cases")
    width = max(map(len, metrics["metrics"]))
    for name, found in metrics["metrics"].items():
        if found["value"] is None:
            continue
        unit = "" if found["unit"] == "1" else f" {found['unit']}"
        interval = "" if found["low"] is None else f"  [{found['low']:.3f}, {found['high']:.3f}]"
        typer.echo(f"  {name:<{width}} {found['value']:8.3f}{unit}{interval}  over {found['over']}")
