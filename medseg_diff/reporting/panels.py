"""Slices side by side on a dark sheet, at one scale in millimetres: what is shown of a slice, and where it lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medseg_diff.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plane = npt.NDArray[Any]  # [H, W] as displayed: row 0 is anterior, column 0 the patient's right

INK, PAPER, PANEL, FAINT = "#e6e6e6", "#15171a", "#000000", "#6b7075"
REFERENCE, PREDICTION = "#f5a623", "#4fc3f7"  # orange and sky blue: every kind of eye tells them apart
CURVES = (PREDICTION, REFERENCE, "#8fd694", "#e58fb1", "#f4e285", "#b39ddb")
PANEL_INCHES, GAP, HEAD, FOOT, SIDE = 1.75, 0.04, 0.30, 0.62, 0.30
MARGIN = 0.05  # around the brain, of its larger side
DOTS_PER_INCH = 160


@dataclass(frozen=True)
class MontageRow:
    """One slice of one case: planes [H, W] of one shape, `spacing_mm` down and across.

    `images` maps channel to grey values, `brain` is where there is tissue; `maps` are numbers to be shown in multiples of
    `unit`, `marks` what is outlined; `index` is the slice's place in the stack, from the feet up. A panel without its plane
    stays dark.
    """

    title: str
    images: Mapping[str, Plane]
    brain: Plane
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    maps: Mapping[str, Plane] = field(default_factory=dict)
    marks: Mapping[str, Sequence[Plane]] = field(default_factory=dict)
    unit: float = 1.0
    index: int = 0


class Page:
    """A dark page; places and sizes in inches from the top left."""

    def __init__(self, width: float, height: float) -> None:
        self.size = width, height
        self.figure = new_figure(width, height)

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        across, down = self.size
        return self.figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))

    def dark_axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        """Axes for a picture: black, without a frame."""
        axes = self.axes(left, top, width, height)
        axes.set_facecolor(PANEL)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    def text(self, left: float, top: float, text: str, **settings: Any) -> None:
        self.figure.text(left / self.size[0], 1 - top / self.size[1], text, va="center", **settings)


class Sheet(Page):
    """A page of equal panels, a row a slice."""

    def __init__(self, rows: Sequence[MontageRow], *, columns: int) -> None:
        self.extent_mm = _common_extent_mm(rows)
        self.height = PANEL_INCHES * self.extent_mm[0] / self.extent_mm[1]
        super().__init__(SIDE + columns * (PANEL_INCHES + GAP), HEAD + len(rows) * (self.height + GAP) + FOOT)

    def panel(self, line: int, column: int) -> "Axes":
        axes = self.dark_axes(self.left(column), HEAD + line * (self.height + GAP), PANEL_INCHES, self.height)
        axes.set(xlim=(0, self.extent_mm[1]), ylim=(self.extent_mm[0], 0))
        return axes

    def left(self, column: int) -> float:
        return SIDE + column * (PANEL_INCHES + GAP)

    @property
    def foot(self) -> float:
        return self.size[1] - FOOT


class Place:
    """Where a row's planes lie in its panels: the brain's middle in the panel's middle, in mm."""

    def __init__(self, row: MontageRow, axes: "Axes") -> None:
        box, shape = _box(row), row.brain.shape
        height, width = axes.get_ylim()[0], axes.get_xlim()[1]
        top = height / 2 - (box[0].start + box[0].stop) / 2 * row.spacing_mm[0]
        left = width / 2 - (box[1].start + box[1].stop) / 2 * row.spacing_mm[1]
        self.extent = (left, left + shape[1] * row.spacing_mm[1], top + shape[0] * row.spacing_mm[0], top)
        self.down = top + (np.arange(shape[0]) + 0.5) * row.spacing_mm[0]
        self.across = left + (np.arange(shape[1]) + 0.5) * row.spacing_mm[1]
        self.limits = (0.0, width), (height, 0.0)

    def picture(self, axes: "Axes", plane: Plane, **colours: Any) -> None:
        axes.imshow(plane, extent=self.extent, origin="upper", aspect="auto", **colours)
        axes.set(xlim=self.limits[0], ylim=self.limits[1])  # imshow moves them

    def outline(self, axes: "Axes", plane: Plane, colour: str, width: float) -> None:
        if plane.any() and not plane.all():
            marked = plane.astype(float)
            axes.contour(self.across, self.down, marked, levels=[0.5], colors=[colour], linewidths=[width])


def shown_channels(names: Sequence[str]) -> list[str]:
    """The two channels worth a column: FLAIR and contrast-enhanced T1 where there are such, else the first ones."""
    known = list(dict.fromkeys(names))
    preferred = [name for name in ("flair", "t1ce") if name in known]
    return (preferred + [name for name in known if name not in preferred])[:2]


def new_figure(
    width: float, height: float, *, paper: str = PAPER, layout: Literal["constrained"] | None = None
) -> "Figure":
    """An empty figure of its own, in inches, dark unless told otherwise; no state is shared with other figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=paper, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: "Figure", path: Path) -> None:
    """Write a figure whole or not at all; the same figure gives the same bytes. Raises: EnvironmentFault."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def _box(row: MontageRow) -> tuple[slice, slice]:
    """The rows and columns that hold tissue; the whole plane where there is none."""
    down, across = np.flatnonzero(row.brain.any(axis=1)), np.flatnonzero(row.brain.any(axis=0))
    if not len(down):
        return slice(0, row.brain.shape[0]), slice(0, row.brain.shape[1])
    return slice(int(down[0]), int(down[-1]) + 1), slice(int(across[0]), int(across[-1]) + 1)


def _common_extent_mm(rows: Sequence[MontageRow]) -> tuple[float, float]:
    """Height and width that hold the brain of every row, with a margin."""
    boxes = [_box(row) for row in rows]
    down = max((box[0].stop - box[0].start) * row.spacing_mm[0] for box, row in zip(boxes, rows, strict=True))
    across = max((box[1].stop - box[1].start) * row.spacing_mm[1] for box, row in zip(boxes, rows, strict=True))
    margin = MARGIN * max(down, across)
    return down + 2 * margin, across + 2 * margin
