"""Results on one sheet: of each case the slice with the largest lesion, its scans, reference, mask and maps side by side.

Display is radiological: the patient's right is on the left of the picture, anterior is up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_diff.data.geometry import Volume, reoriented, spacing_of
from medseg_diff.data.results import CaseResult, holds_result, read_result, task_of_results
from medseg_diff.data.tables.manifest import Case, read_manifest
from medseg_diff.errors import UsageError
from medseg_diff.reporting.panels import (
    FAINT,
    FOOT,
    INK,
    PANEL_INCHES,
    PREDICTION,
    REFERENCE,
    MontageRow,
    Place,
    Plane,
    Sheet,
    save_png,
    shown_channels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

Floats = npt.NDArray[np.float64]

DISPLAY_AXES = "LPS"  # columns run to the patient's left, rows to the back: radiological display, anterior up
CHANNEL_TITLES = {"t1": "T1", "t1ce": "T1 contrast", "t2": "T2", "flair": "FLAIR"}
LONGEST_TITLE = 36  # letters that fit beside a row
COLD, WARM = ("#0b3c5d", PREDICTION, "#f2fbff"), ("#5a1a4a", "#d9534f", REFERENCE, "#fff7d6")  # lightness rises evenly


class Outline(NamedTuple):
    """What of a row is outlined, in which colour, and the word for it below the column."""

    name: str
    colour: str
    word: str
    width: float = 1.2


class Scale(NamedTuple):
    """Numbers in colours: from black at 0 to the last of `colours` at the last of `ticks`, in the row's own unit."""

    colours: tuple[str, ...]
    ticks: tuple[float, ...]
    word: str

    @property
    def ramp(self) -> "Colormap":
        from matplotlib.colors import LinearSegmentedColormap

        return LinearSegmentedColormap.from_list(self.word, ["#000000", *self.colours])


class Column(NamedTuple):
    """The first of `planes` that a row has, on a scale or in grey, with outlines over it.

    Grey runs over the tissue of the plane itself, or of `window`, so that two columns can be compared.
    """

    title: str
    planes: Sequence[str]
    outlines: tuple[Outline, ...] = ()
    scale: Scale | None = None
    window: str | None = None


class Layout(NamedTuple):
    """The columns of a task, how scans are interpolated, and the ticks of its bars."""

    columns: Sequence[Column]
    interpolation: str | None
    ticks: Mapping[str, Any]


OF_REFERENCE = Outline("reference", REFERENCE, "reference")
VARIANCE = (0, 0.125, 0.25)  # a quarter: the largest of anything that lies in [0, 1]
ANOMALY_TICKS = (0, 1, 4)


def segmentation_layout(channels: Sequence[str]) -> Layout:
    """The scans, reference and prediction over the first of them, probability and uncertainty."""
    columns = [Column(CHANNEL_TITLES.get(name, name), (name,)) for name in channels]
    columns += [
        Column("Reference", channels, (Outline("raters", REFERENCE, "raters", width=0.45), OF_REFERENCE)),
        Column("Prediction", channels, (Outline("mask", PREDICTION, "prediction"),)),
        Column("Probability", ("probability",), scale=Scale(COLD, (0, 0.5, 1), "mean of the members")),
        Column("Variance between", ("variance_between",), scale=Scale(WARM, VARIANCE, "variance over the members")),
        Column("Total uncertainty", ("uncertainty",), scale=Scale(WARM, VARIANCE, "m(1 − m), m the mean")),
    ]
    return Layout(columns, "bilinear", {"labelsize": 6.5, "width": 0.5, "pad": 1.5})


def anomaly_layout(channels: Sequence[str]) -> Layout:
    """Each scan beside its healthy reconstruction and, where it is known, its lesion-free twin; reference and mask over the
    first scan, and the map between them."""
    columns = []
    for name in channels:
        columns.append(Column(CHANNEL_TITLES.get(name, name), (name,)))
        columns.append(Column("healthy", (f"healthy_{name}",), window=name))
        columns.append(Column("lesion-free twin", (f"twin_{name}",), window=name))
    columns += [
        Column("Reference", channels, (OF_REFERENCE,)),
        Column("Anomaly map", ("score",), scale=Scale(WARM, ANOMALY_TICKS, "times the threshold")),
        Column("Mask", channels, (Outline("mask", PREDICTION, "above the threshold"),)),
    ]
    return Layout(columns, None, {"labelsize": 7, "pad": 1})


def draw_montage(predictions: Path, data: Path, png: Path, cases: int = 4, *, data_root: Path | None = None) -> None:
    """Draw the montage of a folder that `segment` or `anomaly` wrote; cases with a lesion come first.

    Reads `predictions`/<case> and the files that the manifest `data` names, nothing else. The slice is that of the
    largest reference area; without a reference or a lesion that of the largest mask, or of the highest anomaly map.
    Raises: UsageError where no case of the manifest has results, ImageError where a file is damaged.
    """
    manifest, task = read_manifest(data, data_root=data_root), task_of_results(predictions) or "segment"
    present = [case for case in manifest.cases if holds_result(predictions / case.name, task)]
    if not present:
        raise UsageError(
            f"no case of {data.name} has results in {predictions.name}",
            fix="run `medseg-diff segment` or `anomaly` on this table, or check both paths",
        )
    rows = [row_of(case, read_result(predictions / case.name, case.name)) for case in present[: 3 * cases]]
    rows.sort(key=lambda row: any(not plane.any() for plane in row.marks.get("reference", ())))  # stable: table order
    draw_rows(rows[:cases], anomaly_layout if task == "anomaly" else segmentation_layout, png)


def row_of(case: Case, result: CaseResult) -> MontageRow:
    """What is shown of the outermost region of one case. Raises: ImageError where a file is missing or damaged.

    The slice is the one where the first that marks anything, of references and mask or score, marks most.
    """
    region, anomaly, affine = next(iter(result.regions)), result.task == "anomaly", result.main.affine
    channels = result.facts["channels"] if anomaly else case.channels
    shown, mask = shown_channels(channels), result.mask(region)
    opinions = {name: result.marked(labels, region) for name, labels in result.references(case).items()}
    kinds = [f"healthy_{name}" for name in shown] if anomaly else ["probability", "variance_between", "uncertainty"]
    maps = {kind: values for kind in kinds if (values := result.map(kind, region)) is not None}
    if anomaly:
        maps["score"] = result.main.voxels
        maps |= {f"twin_{name}": result.twin(case, name) for name in shown if name in case.twins}
    stacks = [displayed(each, affine) for each in (*opinions.values(), maps["score"].clip(min=0) if anomaly else mask)]
    areas = [stack.sum(axis=(1, 2)) for stack in stacks]
    index = next((int(each.argmax()) for each in areas if each.any()), len(areas[0]) // 2)
    across_mm, down_mm, _ = spacing_of(reoriented(result.main, DISPLAY_AXES).affine)

    def plane(volume: Plane) -> Plane:
        return displayed(volume, affine)[index]

    row = MontageRow(
        title=f"{case.name}, slice {index + 1}",
        index=index,
        images={name: plane(result.image(case, name)) for name in shown},
        brain=plane(result.brain(case, channels if anomaly else shown[:1])),
        spacing_mm=(float(down_mm), float(across_mm)),
        maps={name: plane(values) for name, values in maps.items()},
        marks={
            "reference": [plane(marked) for name, marked in opinions.items() if name == "seg"],
            "raters": [plane(marked) for name, marked in opinions.items() if name != "seg"],
            "mask": [plane(mask)],
        },
    )
    if not anomaly:
        return row
    threshold = result.facts["threshold"]["value"]
    return replace(row, unit=threshold or max(float(row.maps["score"].max()), 1e-6) / ANOMALY_TICKS[-1])


def displayed(voxels: Plane, affine: Floats) -> Plane:
    """Voxels [X, Y, Z] as a stack of pictures [Z, H, W], from the feet up."""
    return np.ascontiguousarray(reoriented(Volume(voxels, affine), DISPLAY_AXES).voxels.transpose(2, 1, 0))


def draw_rows(rows: Sequence[MontageRow], layout_of: Callable[[Sequence[str]], Layout], png: Path) -> None:
    """Draw one PNG: a row a slice, all in one scale in mm, without the columns that no row has anything for; of several
    channels FLAIR and contrast-enhanced T1 are shown.

    Raises: UsageError for no rows, EnvironmentFault where `png` cannot be written.
    """
    if not rows:
        raise UsageError("there is no slice to draw", fix="give at least one case with results")
    layout = layout_of(shown_channels([name for row in rows for name in row.images]))
    known = {name for row in rows for name in (*row.images, *row.maps)}
    layout = layout._replace(columns=[column for column in layout.columns if known & {*column.planes}])
    sheet = Sheet(rows, columns=len(layout.columns))
    for line, row in enumerate(rows):
        panels = [sheet.panel(line, column) for column in range(len(layout.columns))]
        panels[0].set_ylabel(shorten(row.title, LONGEST_TITLE, placeholder="…"), color=INK, fontsize=8, labelpad=4)
        place = Place(row, panels[0])
        for panel, column in zip(panels, layout.columns, strict=True):
            _draw_panel(panel, place, row, column, layout.interpolation)
            if line == 0:
                panel.set_title(column.title, color=INK, fontsize=9.5, pad=4)
        if line == 0:
            for across, letter in ((0.03, "R"), (0.97, "L")):
                where: dict[str, Any] = {"transform": panels[0].transAxes, "ha": "center", "va": "center"}
                panels[0].text(across, 0.5, letter, color=INK, fontsize=7, **where)
    _draw_legends(sheet, rows, layout)
    save_png(sheet.figure, png)


def _draw_panel(panel: "Axes", place: Place, row: MontageRow, column: Column, interpolation: str | None) -> None:
    planes = {**row.images, **row.maps}
    name = next((name for name in column.planes if name in planes), None)
    if name is not None and column.scale:
        largest = column.scale.ticks[-1] * row.unit
        place.picture(panel, planes[name], cmap=column.scale.ramp, vmin=0, vmax=largest, interpolation="nearest")
        place.outline(panel, row.brain, FAINT, 0.5)
    elif name is not None:
        image = planes[column.window or name]
        tissue = image[row.brain.astype(bool)] if row.brain.any() else image
        low, high = (float(value) for value in np.percentile(tissue, [0.5, 99.7]))
        grey: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6)}
        place.picture(panel, planes[name], interpolation=interpolation, **grey)
    for outline in column.outlines:
        for marked in row.marks.get(outline.name, ()):
            place.outline(panel, marked, outline.colour, outline.width)


def _draw_legends(sheet: Sheet, rows: Sequence[MontageRow], layout: Layout) -> None:
    """Under the columns: the convention of display, the colours of the outlines, a bar for each scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    note = sheet.axes(sheet.left(0), sheet.foot, 2 * PANEL_INCHES, FOOT)
    note.axis("off")
    note.text(0.0, 0.72, "Radiological display: R is the patient's right.", color=INK, fontsize=7, va="center")
    for number, column in enumerate(layout.columns):
        drawn = [each for each in reversed(column.outlines) if any(row.marks.get(each.name) for row in rows)]
        if drawn:
            lines = [Line2D([], [], color=each.colour, linewidth=each.width / 0.75, label=each.word) for each in drawn]
            axes = sheet.axes(sheet.left(number), sheet.foot, PANEL_INCHES, FOOT)
            axes.axis("off")
            text: dict[str, Any] = {"fontsize": 7, "labelcolor": INK, "handlelength": 1.4}
            axes.legend(handles=lines, loc="upper center", ncols=2, frameon=False, **text)
        if column.scale:
            ticks = column.scale.ticks
            axes = sheet.axes(sheet.left(number) + 0.15 * PANEL_INCHES, sheet.foot + 0.12, 0.7 * PANEL_INCHES, 0.07)
            colours = ScalarMappable(Normalize(0, ticks[-1]), column.scale.ramp)
            bar = sheet.figure.colorbar(colours, cax=axes, orientation="horizontal", ticks=ticks)
            bar.ax.tick_params(colors=INK, length=2, **layout.ticks)
            bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            bar.outline.set_visible(False)
            bar.set_label(column.scale.word, color=INK, fontsize=7, labelpad=2)
