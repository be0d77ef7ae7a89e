"""Where one begins: `demo`, `phantom`, `prepare`, `validate`."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from medseg_diff.cli.options import AsJson, Data, DataRoot, Device, Overwrite, root_of, said
from medseg_diff.cli.review import show_metrics
from medseg_diff.data.tables.sources import SOURCES
from medseg_diff.errors import ExitCode, Problems, counted, plain, printable
from medseg_diff.tasks.options import DatasetOptions

PHANTOMS = "Phantoms"


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Where everything goes.", metavar="FOLDER")] = Path("demo"),
    cases: Annotated[int, typer.Option(min=10, help="Phantoms to make.")] = 100,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Phantom data → train → segment and map anomalies → evaluate → pages; minutes on a CPU."""
    from medseg_diff.tasks.demo import demo as run

    metrics = run(out, cases=cases, seed=seed, device=device)
    if as_json:
        typer.echo(json.dumps(metrics, indent=2, ensure_ascii=False))
        return
    for task, found in metrics.items():
        typer.echo(f"{task}: ", nl=False)
        show_metrics(found, as_json)
    typer.echo(f"\npages: {out / 'segment' / 'report.html'}, {out / 'anomaly' / 'report.html'}")
    typer.echo(f"pictures: {out / 'montage.png'}, {out / 'anomaly' / 'montage.png'}")
    typer.echo("next: medseg-diff prepare YOUR_FOLDER --source brats --out cases.csv")


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write.", metavar="FOLDER")],
    cases: Annotated[int, said(PHANTOMS, "Number of phantoms.", min=1)],
    shape: Annotated[tuple[int, int, int], said(PHANTOMS, "Voxels along each axis.", metavar="X Y Z")] = (64, 64, 48),
    raters: Annotated[int, said(PHANTOMS, "Further raters, seg_1 …", min=0)] = 0,
    healthy: Annotated[float, said(PHANTOMS, "Share of cases without a lesion.", min=0, max=1)] = 0.25,
    held_out: Annotated[float, said(PHANTOMS, "Share for testing; half as many for validation.")] = 0.2,
    scanners: Annotated[int, said(PHANTOMS, "Number of different scanners; 0: a single kind.", min=0)] = 0,
    twins: Annotated[bool, said(PHANTOMS, "Also each brain without its lesion, healthy_CHANNEL.", "--twins")] = False,
    seed: Annotated[int, said(PHANTOMS, "Random seed.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make brains with gliomas whose truth is known."""
    from medseg_diff.tasks.phantom import phantom as run

    settings = {"cases": cases, "shape": shape, "raters": raters, "healthy": healthy, "held_out": held_out}
    table = run(out, **settings, scanners=scanners, twins=twins, seed=seed, overwrite=overwrite)
    typer.echo(f"{table}\nnext: medseg-diff train-seg --data {table} --config quick/phantom")


def prepare(
    folder: Annotated[Path, typer.Argument(help="Folder of the dataset.", metavar="FOLDER")],
    source: Annotated[
        str, said("Source", f"What the folder is: {', '.join(SOURCES)}.", metavar="KIND", complete=tuple(SOURCES))
    ],
    dataset: DatasetOptions,
    out: Annotated[Path, said("Result", "Table to write.", "-o", "--out", metavar="CSV")] = Path("cases.csv"),
    seed: Annotated[int, said("Dataset", "Random seed of the splits.")] = 0,
    overwrite: Overwrite = False,
    register: Annotated[
        str | None, said("Dataset", "Bring the other channels onto this one, rigidly.", metavar="CHANNEL")
    ] = None,
) -> None:
    """Folder → table of cases, split by patient."""
    from medseg_diff.tasks.prepare import data_root_of
    from medseg_diff.tasks.prepare import prepare as run

    common = {"source": source, "dataset": dataset, "seed": seed, "overwrite": overwrite}
    table = run(folder=folder, out=out, register=register, **common)
    root = root_of(folder if register is None and data_root_of(folder, source, table) else None)
    typer.echo(f"{table}\nnext: medseg-diff validate --data {shlex.quote(str(table))}{root}")


def validate(
    data: Data,
    data_root: DataRoot = None,
    resample_to: Annotated[
        str | None, said("Source", "Bring the other channels onto this one's grid.", metavar="CHANNEL")
    ] = None,
    workers: Annotated[
        int | None, said("Compute", "Cases read at once.", min=1, usual="the processors, at most 8")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every file in a table: report what is there and list all problems."""
    from medseg_diff.tasks.validate import validate as run

    report = run(data, data_root=data_root, resample_to=resample_to, workers=workers)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
        raise typer.Exit(int(report.exit_code))
    if report.facts and report.exit_code != ExitCode.USAGE:  # of a table at fault the counts would mislead
        typer.echo("\n".join(map(printable, report.lines)))
    for warning in report.warnings:
        typer.echo(f"warning: {plain(warning)}", err=True)
    if report.problems:
        raise Problems(report.problems)
    typer.echo(f"{counted(report.cases, 'case')}, no problems")
    typer.echo(f"next: medseg-diff train-seg --data {shlex.quote(str(data))}{root_of(data_root)}")
