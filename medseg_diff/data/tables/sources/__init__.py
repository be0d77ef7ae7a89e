"""Datasets as manifests: name → function from the dataset's folder to rows, with paths relative to that folder."""

from collections.abc import Callable
from pathlib import Path

Rows = list[dict[str, str]]


def _brats(folder: Path) -> Rows:
    from medseg_diff.data.tables.sources import brats

    return brats.rows(folder)


def _phantom(folder: Path) -> Rows:
    """A phantom folder brings its table along."""
    from medseg_diff.data.tables.manifest import read_manifest

    return read_manifest(folder / "cases.csv").rows()


# Functions that import on use: `--help` lists the names without reading any of the modules.
SOURCES: dict[str, Callable[[Path], Rows]] = {"brats": _brats, "phantom": _phantom}
