"""Small scans to lay out: two phantoms of two scanners, written under any names, whole or damaged."""

import csv
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np

from medseg_diff.phantoms.make import PhantomCase, PhantomSettings, make_case
from tests.layouts.doors import FOUR

SETTINGS = PhantomSettings(cases=9, shape=(48, 48, 32), healthy=0.0, scanners=4, seed=5)


@functools.cache
def scan(number: int = 0) -> PhantomCase:
    """One of a few cases, made once."""
    return make_case(SETTINGS, number)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Voxels of any type as NIfTI, on the grid of the scans unless told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, scan().affine if affine is None else affine), path)
    return path


def lay(folder: Path, names: Mapping[str, str] | Sequence[str], *, number: int = 0) -> Path:
    """The channels (and `seg`) of a scan in files of a folder: {channel: file}, or the files of the four in order."""
    names = names if isinstance(names, Mapping) else dict(zip(FOUR, names, strict=True))
    for channel, name in names.items():
        save(folder / name, scan(number).seg if channel == "seg" else scan(number).images[channel])
    return folder


def stack(path: Path, channels: Sequence[str] = FOUR, *, number: int = 0) -> Path:
    """Several channels as the volumes of one 4D file."""
    return save(path, np.stack([scan(number).images[channel] for channel in channels], axis=-1))


def plain(*, seg: bool = False) -> dict[str, str]:
    """`t1.nii.gz` and so on."""
    return {channel: f"{channel}.nii.gz" for channel in (*FOUR, *(["seg"] if seg else []))}


def table(folder: Path, rows: Sequence[Mapping[str, object]], *, name: str = "cases.csv", **style: str) -> Path:
    """A CSV of these rows."""
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=style.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), **style)
        writer.writeheader()
        writer.writerows(rows)
    return path


def two(folder: Path, **changed: object) -> list[dict[str, object]]:
    """Rows of two patients whose files are laid out below the folder; `changed` cells of the second."""
    rows = []
    for number, case in enumerate(("p1", "p2")):
        lay(folder / case, plain(seg=True), number=number)
        rows.append({"case": case, **{column: f"{case}/{file}" for column, file in plain(seg=True).items()}})
    return [rows[0], rows[1] | changed]
