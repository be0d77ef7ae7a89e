"""What is drawn in one panel of a montage, and what stands below its column."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg_diff.reporting.layouts import ERRORS, Column, Layout, healthy, left_of_lesion
from medseg_diff.reporting.panels import FAINT, FOOT, INK, PANEL, PANEL_INCHES, MontageRow, Place, Plane, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DIMMED = 0.45  # of its brightness: a scan below the colours of errors
PARTIAL = 0.1  # of a lesion: what a reconstruction that says it is healthy may leave
CONVENTION = "Radiological display: R is the patient's right; anterior is up."


def draw_panel(panel: "Axes", place: Place, row: MontageRow, column: Column, interpolation: str | None) -> None:
    """What a column shows of a row; nothing where the row has it not."""
    planes = {**row.images, **row.maps}
    if column.is_of(row):
        name = column.plane_of(row)
        assert name is not None
        low, high = _window(planes[column.window or name], row)
        grey: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high, "interpolation": interpolation}
        if column.kind == "difference":
            _draw_map(panel, place, row, column, (planes[name] - row.maps[healthy(name)]) / (high - low) * row.brain)
        elif column.scale:
            _draw_map(panel, place, row, column, planes[name] / row.unit)
        elif column.kind == "errors":
            place.picture(panel, planes[name], **grey | {"vmax": low + (high - low) / DIMMED})
            place.picture(panel, _errors(row), interpolation="nearest")
        else:
            place.picture(panel, planes[name], **grey)
            _say_partial(panel, row, column)
    for outline in column.outlines:
        for marked in row.marks.get(outline.name, ()):
            place.outline(panel, marked, outline.colour, outline.width)


def draw_sides(panel: "Axes", sides: str = "RL") -> None:
    """Which side is which: a letter each, from the left."""
    for across, letter in zip((0.03, 0.97), sides, strict=True):
        where: dict[str, Any] = {"transform": panel.transAxes, "ha": "center", "va": "center"}
        panel.text(across, 0.5, letter, color=INK, fontsize=7, **where)


def draw_legends(sheet: Sheet, rows: Sequence[MontageRow], layout: Layout) -> None:
    """Under the columns: the convention of display, the colours of outlines and errors, a bar for each scale."""
    note = sheet.axes(sheet.left(0), sheet.foot, 2 * PANEL_INCHES, FOOT)
    note.axis("off")
    note.text(0.0, 0.72, CONVENTION, color=INK, fontsize=7, va="center")
    for number, column in enumerate(layout.columns):
        if column.scale:
            _draw_bar(sheet, number, column, layout)
        else:
            _draw_words(sheet, number, column, rows)


def _draw_map(panel: "Axes", place: Place, row: MontageRow, column: Column, plane: Plane) -> None:
    assert column.scale
    low, high = column.scale.limits
    place.picture(panel, plane, cmap=column.scale.ramp, vmin=low, vmax=high, interpolation="nearest")
    place.outline(panel, row.brain, FAINT, 0.5)


def _window(image: Plane, row: MontageRow) -> tuple[float, float]:
    """From black to white, over the tissue."""
    tissue = image[row.brain.astype(bool)] if row.brain.any() else image
    low, high = (float(value) for value in np.percentile(tissue, [0.5, 99.7]))
    return low, max(high, low + 1e-6)


def _errors(row: MontageRow) -> npt.NDArray[np.float64]:
    """[H, W, 4]: what both mark, the reference alone and the mask alone, each in its colour, the rest clear."""
    from matplotlib.colors import to_rgba

    mask, reference = (np.any(row.marks[name], axis=0) for name in ("mask", "reference"))
    colours = np.zeros((*mask.shape, 4))
    for marked, colour in zip((mask & reference, reference & ~mask, mask & ~reference), ERRORS.values(), strict=True):
        colours[marked] = to_rgba(colour, 0.85)
    return colours


def _say_partial(panel: "Axes", row: MontageRow, column: Column) -> None:
    """On a reconstruction that leaves some of the lesion."""
    channel = next((name for name in row.images if healthy(name) in column.planes), None)
    left = left_of_lesion(row).get(channel or "", 0.0)
    if left >= PARTIAL:
        words = f"partial: {left:.0%} of the lesion left"
        look: dict[str, Any] = {"color": "#ffd27f", "fontsize": 7, "ha": "center", "va": "bottom"}
        behind = {"facecolor": PANEL, "alpha": 0.7, "linewidth": 0, "pad": 1.5}
        panel.text(0.5, 0.02, words, transform=panel.transAxes, bbox=behind, **look)


def _draw_words(sheet: Sheet, number: int, column: Column, rows: Sequence[MontageRow]) -> None:
    """A line for each outline, or a patch for each kind of error."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    drawn = [each for each in reversed(column.outlines) if any(row.marks.get(each.name) for row in rows)]
    handles: list[Any] = [
        Line2D([], [], color=each.colour, linewidth=each.width / 0.75, label=each.word) for each in drawn
    ]
    if column.kind == "errors":
        handles = [Patch(facecolor=colour, label=word) for word, colour in ERRORS.items()]
    if handles:
        axes = sheet.axes(sheet.left(number), sheet.foot, PANEL_INCHES, FOOT)
        axes.axis("off")
        text: dict[str, Any] = {"fontsize": 7, "labelcolor": INK, "handlelength": 1.4, "columnspacing": 1.0}
        axes.legend(handles=handles, loc="upper center", ncols=2, frameon=False, **text)


def _draw_bar(sheet: Sheet, number: int, column: Column, layout: Layout) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    assert column.scale
    axes = sheet.axes(sheet.left(number) + 0.15 * PANEL_INCHES, sheet.foot + 0.12, 0.7 * PANEL_INCHES, 0.07)
    colours = ScalarMappable(Normalize(*column.scale.limits), column.scale.ramp)
    bar = sheet.figure.colorbar(colours, cax=axes, orientation="horizontal", ticks=column.scale.ticks)
    bar.ax.tick_params(colors=INK, length=2, **layout.ticks)
    bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    bar.outline.set_visible(False)
    bar.set_label(column.scale.word, color=INK, fontsize=7, labelpad=2)
