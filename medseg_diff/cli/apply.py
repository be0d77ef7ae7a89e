"""What a trained run does: `segment`, `anomaly` and `enhance` with scans, `tune` for itself, `synthesise` out of nothing.

Their options: `tasks/options.py`, `tasks/synthesis_options.py`.
"""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg_diff.cli.options import AsJson, Data, DataRoot, Device, root_of, said
from medseg_diff.errors import UsageError
from medseg_diff.tasks.options import (
    Compute,
    EnsembleOptions,
    MapOrSweep,
    Model,
    ResultFolder,
    Source,
)
from medseg_diff.tasks.synthesis_options import EnhancementOptions, SynthesisOptions
from medseg_diff.tasks.tuning_options import TuningOptions

if TYPE_CHECKING:
    from medseg_diff.recipes.tuned import Tuned


def segment(
    results: ResultFolder,
    source: Source,
    model: Model,
    ensemble: EnsembleOptions,
    compute: Compute,
    as_json: AsJson = False,
) -> None:
    """Segment scans: mask, probability and uncertainty on the scan's own grid. Without a model of your own it uses the
    included `starter`, which is for trying things out, not for clinical use."""
    from medseg_diff.tasks.apply.segment import segment as run

    folders = run(results=results, source=source, model=model, ensemble=ensemble, compute=compute)
    _show(folders, results, source, as_json)


def anomaly(
    results: ResultFolder, source: Source, model: Model, maps: MapOrSweep, compute: Compute, as_json: AsJson = False
) -> None:
    """Map anomalies: score, mask, lesions and the healthy-looking brain on the scan's own grid."""
    from medseg_diff.tasks.apply.anomaly import anomaly as run

    if maps.sweep and as_json:
        raise UsageError("--json lists cases, and --sweep writes none", fix="leave --json out, and read OUT/sweep.csv")
    folders = run(results=results, source=source, model=model, maps=maps, compute=compute)
    if maps.sweep:
        typer.echo((results.out / "recommended.txt").read_text(encoding="utf-8").strip())
    else:
        _show(folders, results, source, as_json)


def _show(folders: list[Path], results: ResultFolder, source: Source, as_json: bool) -> None:
    """The rows of the cases of this call, or what is next."""
    from medseg_diff.tasks.apply.summary import rows_of

    if as_json:
        typer.echo(json.dumps(rows_of(folders), indent=2, ensure_ascii=False))
    elif source.data is not None and not results.pseudonymise:  # the table has the cases' own names
        words = f"--predictions {shlex.quote(str(results.out))} --data {shlex.quote(str(source.data))}"
        typer.echo(f"next: medseg-diff evaluate {words}{root_of(source.data_root)}")
    elif folders:
        typer.echo(folders[0])


def synthesise(
    out: Annotated[Path, said("Result", "Where scans go, a folder for each.", "-o", "--out", metavar="FOLDER")],
    model: Model,
    options: SynthesisOptions,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw synthetic scans for given covariates, or into masks; OUT/cases.csv lists them."""
    from medseg_diff.tasks.apply.synthesise import synthesise as run

    folders = run(out=out, model=model, options=options, device=device)
    _show_drawn(folders, out, as_json)


def enhance(
    results: ResultFolder,
    source: Source,
    model: Model,
    drawing: EnhancementOptions,
    compute: Compute,
    as_json: AsJson = False,
) -> None:
    """Draw scans at a finer resolution: smaller voxels, the same field of view and orientation."""
    from medseg_diff.tasks.apply.enhance import enhance as run

    folders = run(results=results, source=source, model=model, drawing=drawing, compute=compute)
    _show_drawn(folders, results.out, as_json)


def _show_drawn(folders: list[Path], out: Path, as_json: bool) -> None:
    """The rows of the scans of this call, or where they are and what is next."""
    from medseg_diff.tasks.apply.summary import rows_of

    if as_json:
        typer.echo(json.dumps(rows_of(folders), indent=2, ensure_ascii=False))
        return
    typer.echo("\n".join(map(str, folders)))
    typer.echo(f"next: medseg-diff report {shlex.quote(str(out))}")


def tune(
    data: Data,
    model: Model,
    tuning: TuningOptions,
    device: Device = "auto",
    network_batch: Annotated[
        int | None, said("Compute", "Samples per network pass.", min=1, usual="the recipe's")
    ] = None,
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Find out on cases with a reference how few steps and members are as good as many; `segment` then draws these."""
    from medseg_diff.tasks.apply.tune import tune as run

    tuned = run(data=data, model=model, tuning=tuning, device=device, network_batch=network_batch, data_root=data_root)
    if as_json:
        typer.echo(json.dumps(tuned.model_dump(mode="json"), indent=2, ensure_ascii=False))
        return
    typer.echo("\n".join(_rows_of(tuned)))
    named = f"--model {shlex.quote(str(model.model))} " if model.model else ""
    typer.echo(f"next: medseg-diff segment {named}--data {shlex.quote(str(data))} --split test --out results")


def _rows_of(tuned: "Tuned") -> list[str]:
    """The table in a terminal's columns; an arrow stands at what was chosen."""
    names = {"dice": "Dice", "ged2": "GED²", "ece_band": "ECE"}
    rows = [["", "steps", "members", "s per case", *names.values(), *(f"{name} lost" for name in names.values()), ""]]
    for row in tuned.table:
        numbers = [row.mean(name) for name in names] + [row.lost.get(name) for name in names]
        cells = ["-" if number is None else f"{number:.4f}" for number in numbers]
        mark, note = "→" if row is tuned.chosen else "", "no volume intervals" if row.unpromised else ""
        rows.append([mark, str(row.steps), str(row.members), f"{row.seconds:.3g}", *cells, note])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    allowed = ", ".join(f"{said} {getattr(tuned.allowed, name):g}" for name, said in names.items())
    several = "; means over regions, lost: the worst region" if len(tuned.table[0].values) > 1 else ""
    return [
        *lines,
        f"lost: compared with the best, at most {allowed} is allowed; ECE: calibration error in doubt{several}",
    ]
