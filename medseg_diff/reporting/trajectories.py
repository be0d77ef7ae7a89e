"""Denoising trajectories as one picture: a line of small pictures for each thing that changes on the way."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medseg_diff.reporting.drawing import draw_sides
from medseg_diff.reporting.panels import FAINT, INK, Page, Plane, save_png

PICTURE_INCHES, GAP, HEAD, SIDE = 1.1, 0.05, 0.28, 0.95
FONT = {"fontsize": 7, "linespacing": 1.3}


class Picture(NamedTuple):
    """One plane [H, W] as displayed; `low` is black, `high` white. `outline` [H, W] booleans is drawn over it, `sides` says
    what lies to its left and right, as in RL."""

    plane: Plane
    low: float = 0.0
    high: float = 1.0
    outline: Plane | None = None
    sides: str = ""


class Line(NamedTuple):
    """Pictures side by side, as many as there are columns; None leaves a place empty."""

    title: str
    pictures: Sequence[Picture | None]


def draw_lines(lines: Sequence[Line], *, columns: Sequence[str], path: Path) -> None:
    """Write the lines below each other as a PNG, whole or not at all; the same lines give the same bytes.

    Every picture is fitted into a square. Raises: EnvironmentFault where the file cannot be written.
    """
    assert lines and all(len(line.pictures) == len(columns) for line in lines)
    pitch = PICTURE_INCHES + GAP
    page = Page(SIDE + len(columns) * pitch, HEAD + len(lines) * pitch)
    for column, name in enumerate(columns):
        page.text(SIDE + column * pitch + PICTURE_INCHES / 2, HEAD / 2, name, ha="center", color=INK, **FONT)
    for row, line in enumerate(lines):
        top = HEAD + row * pitch
        page.text(GAP, top + PICTURE_INCHES / 2, line.title, ha="left", color=FAINT, **FONT)
        for column, picture in enumerate(line.pictures):
            if picture is None:
                continue
            axes = page.dark_axes(SIDE + column * pitch, top, PICTURE_INCHES, PICTURE_INCHES)
            axes.imshow(picture.plane, cmap="gray", vmin=picture.low, vmax=picture.high, interpolation="nearest")
            if picture.outline is not None and picture.outline.any() and not picture.outline.all():
                axes.contour(picture.outline.astype(float), levels=[0.5], colors=["#ffb000"], linewidths=[0.8])
            if picture.sides:
                draw_sides(axes, picture.sides)
    save_png(page.figure, path)


def sides_of(orientation: str, plane: str = "axial") -> str:
    """What lies to the left and right of a displayed plane; nothing is said of volumes that are not kept in RAS."""
    return {"axial": "RL", "coronal": "RL", "sagittal": "AP"}[plane] if orientation == "RAS" else ""


def middle_planes(volume: Plane) -> list[Plane]:
    """The middle axial, coronal and sagittal plane of a volume [X, Y, Z] in RAS, each to be `displayed`; of a slice [X, Y]
    itself."""
    if volume.ndim == 2:
        return [volume]
    x, y, z = (n // 2 for n in volume.shape)
    return [volume[:, :, z], volume[:, y, :], volume[x]]


def displayed(plane: Plane) -> Plane:
    """A plane [X, Y] in RAS as a radiologist looks at it: row 0 is anterior, column 0 the patient's right."""
    return np.ascontiguousarray(plane[::-1, ::-1].T)
