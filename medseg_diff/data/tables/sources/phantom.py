"""A folder of phantoms → the rows of the table that it brings along."""

from pathlib import Path

from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.data.tables.sources.collect import Row, Wanted


def rows(folder: Path, wanted: Wanted) -> list[Row]:
    """Its own rows, splits among them. Raises: ManifestError, ImageError."""
    manifest = read_manifest(folder / "cases.csv")
    rows = zip(manifest.rows(), manifest.cases, strict=True)
    return [{**row, **{name: folder / row[name] for name in case.paths}} for row, case in rows]
