"""Denoising trajectories as one picture: a line of small pictures for each thing that changes on the way."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from medseg_diff.reporting.panels import FAINT, INK, PANEL, Plane, dark_figure, save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_INCHES, GAP, HEAD, SIDE = 1.1, 0.05, 0.28, 0.95
FONT_POINTS = 7


class Picture(NamedTuple):
    """One plane [H, W] as displayed; `low` is black and `high` white. `outline` [H, W] booleans is drawn over it."""

    plane: Plane
    low: float = 0.0
    high: float = 1.0
    outline: Plane | None = None


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
    width, height = SIDE + len(columns) * pitch, HEAD + len(lines) * pitch
    figure = dark_figure(width, height)
    for column, name in enumerate(columns):
        _say(figure, name, SIDE + column * pitch + PICTURE_INCHES / 2, HEAD / 2, (width, height), "center", INK)
    for row, line in enumerate(lines):
        top = HEAD + row * pitch
        _say(figure, line.title, GAP, top + PICTURE_INCHES / 2, (width, height), "left", FAINT)
        for column, picture in enumerate(line.pictures):
            if picture is None:
                continue
            left = SIDE + column * pitch
            axes = figure.add_axes(
                (left / width, 1 - (top + PICTURE_INCHES) / height, PICTURE_INCHES / width, PICTURE_INCHES / height)
            )
            axes.set_facecolor(PANEL)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.imshow(picture.plane, cmap="gray", vmin=picture.low, vmax=picture.high, interpolation="nearest")
            if picture.outline is not None and picture.outline.any() and not picture.outline.all():
                axes.contour(picture.outline.astype(float), levels=[0.5], colors=["#ffb000"], linewidths=[0.8])
    save_png(figure, path)


def _say(
    figure: "Figure", text: str, left: float, top: float, size: tuple[float, float], align: str, colour: str
) -> None:
    """Text at a place in inches from the top left."""
    where = left / size[0], 1 - top / size[1]
    figure.text(*where, text, ha=align, va="center", color=colour, fontsize=FONT_POINTS, linespacing=1.3)


def displayed(plane: Plane) -> Plane:
    """A plane [X, Y] in RAS as a radiologist looks at it: row 0 is anterior, column 0 the patient's right."""
    return np.ascontiguousarray(plane[::-1, ::-1].T)
