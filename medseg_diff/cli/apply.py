"""A trained run and scans → results on the scans' own grids: `segment`, `anomaly`. Their options: `tasks/options.py`."""

from pathlib import Path

import typer

from medseg_diff.tasks.options import Compute, EnsembleOptions, MapOptions, Model, ResultFolder, Source


def segment(results: ResultFolder, source: Source, model: Model, ensemble: EnsembleOptions, compute: Compute) -> None:
    """Segment scans: mask, probability and uncertainty on the scan's own grid."""
    from medseg_diff.tasks.apply.segment import segment as run

    folders = run(results=results, source=source, model=model, ensemble=ensemble, compute=compute)
    _say_what_is_next(folders, results, source)


def anomaly(results: ResultFolder, source: Source, model: Model, maps: MapOptions, compute: Compute) -> None:
    """Map anomalies: score, mask, lesions and the healthy-looking brain on the scan's own grid."""
    from medseg_diff.tasks.apply.anomaly import anomaly as run

    folders = run(results=results, source=source, model=model, maps=maps, compute=compute)
    if maps.sweep:
        typer.echo((results.out / "recommended.txt").read_text(encoding="utf-8").strip())
    else:
        _say_what_is_next(folders, results, source)


def _say_what_is_next(folders: list[Path], results: ResultFolder, source: Source) -> None:
    if source.data is not None:
        typer.echo(f"next: medseg-diff evaluate --predictions {results.out} --data {source.data}")
    elif folders:
        typer.echo(folders[0])
