"""A trained run and scans → results on the scans' own grids: `segment`, `anomaly`. Their options: `tasks/options.py`."""

import json
from pathlib import Path

import typer

from medseg_diff.cli.options import AsJson
from medseg_diff.errors import UsageError
from medseg_diff.tasks.options import Compute, EnsembleOptions, MapOrSweep, Model, ResultFolder, Source


def segment(
    results: ResultFolder,
    source: Source,
    model: Model,
    ensemble: EnsembleOptions,
    compute: Compute,
    as_json: AsJson = False,
) -> None:
    """Segment scans: mask, probability and uncertainty on the scan's own grid."""
    from medseg_diff.tasks.apply.segment import segment as run

    folders = run(results=results, source=source, model=model, ensemble=ensemble, compute=compute)
    _show(folders, results, source, as_json)


def anomaly(
    results: ResultFolder, source: Source, model: Model, maps: MapOrSweep, compute: Compute, as_json: AsJson = False
) -> None:
    """Map anomalies: score, mask, lesions and the healthy-looking brain on the scan's own grid."""
    from medseg_diff.tasks.apply.anomaly import anomaly as run

    if maps.sweep and as_json:
        raise UsageError("--json is about cases, and --sweep makes none", fix="leave it out, and read OUT/sweep.csv")
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
    elif source.data is not None:
        typer.echo(f"next: medseg-diff evaluate --predictions {results.out} --data {source.data}")
    elif folders:
        typer.echo(folders[0])
