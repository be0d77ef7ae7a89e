"""Figures of a finished folder: what the scan shows, what was marked, how sure that is, and how training went.

Display is radiological: the patient's right is on the left of the picture, anterior is up.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medseg_diff.data.predictions import is_segmented
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import UsageError
from medseg_diff.reporting.panels import (
    FAINT,
    FOOT,
    INK,
    PANEL_INCHES,
    PAPER,
    MontageRow,
    Place,
    Plane,
    Sheet,
    dark_figure,
    save_png,
    shown_channels,
)
from medseg_diff.reporting.slices import largest_slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

Points = npt.NDArray[np.float64]  # [N, 2]: step, value

REFERENCE, PREDICTION = "#f5a623", "#4fc3f7"  # orange and sky blue: every kind of eye tells them apart
CURVES = (PREDICTION, REFERENCE, "#8fd694", "#e58fb1", "#f4e285", "#b39ddb")
CHANNEL_TITLES = {"t1": "T1", "t1ce": "T1 contrast", "t2": "T2", "flair": "FLAIR"}
LONGEST_TITLE = 36  # letters that fit beside a row
LARGEST_VARIANCE = 0.25  # of anything that lies in [0, 1]


@dataclass(frozen=True)
class _Map:
    """A column that shows numbers: in which colours, from black at 0 to the last one at `largest`."""

    title: str
    legend: str
    colours: tuple[str, ...]
    largest: float

    @property
    def ramp(self) -> "Colormap":
        from matplotlib.colors import LinearSegmentedColormap

        return LinearSegmentedColormap.from_list(self.title, ["#000000", *self.colours])


COLD, WARM = ("#0b3c5d", PREDICTION, "#f2fbff"), ("#5a1a4a", "#d9534f", REFERENCE, "#fff7d6")  # lightness rises evenly
MAPS = {
    "probability": _Map("Probability", "mean of the members", COLD, 1.0),
    "spread": _Map("Spread", "variance over the members", WARM, LARGEST_VARIANCE),
    "uncertainty": _Map("Total uncertainty", "m(1 − m), m the mean", WARM, LARGEST_VARIANCE),
}


def segmentation_montage(rows: Sequence[MontageRow], path: Path) -> None:
    """Draw one PNG: a row a slice; columns two channels, reference, prediction, probability, spread, uncertainty.

    All rows have one scale in mm. Of several channels FLAIR and contrast-enhanced T1 are shown where there are such.
    Raises: UsageError for no rows, EnvironmentFault where `path` cannot be written.
    """
    if not rows:
        raise UsageError("there is no slice to draw", fix="give at least one case with predictions")
    channels = shown_channels([name for row in rows for name in row.images])
    titles = [CHANNEL_TITLES.get(name, name) for name in channels]
    titles += ["Reference", "Prediction", *(kind.title for kind in MAPS.values())]
    sheet = Sheet(rows, columns=len(titles))
    for line, row in enumerate(rows):
        panels = [sheet.panel(line, column) for column in range(len(titles))]
        panels[0].set_ylabel(shorten(row.title, LONGEST_TITLE, placeholder="…"), color=INK, fontsize=8, labelpad=4)
        _draw_row(row, channels, panels)
        if line == 0:
            _write_sides(panels[0])
            for panel, title in zip(panels, titles, strict=True):
                panel.set_title(title, color=INK, fontsize=9.5, pad=4)
    _draw_legends(sheet, len(channels), raters=any(len(row.raters) for row in rows))
    save_png(sheet.figure, path)


def montage_of_predictions(
    predictions: Path, data: Path, out_png: Path, cases: int = 4, *, data_root: Path | None = None
) -> None:
    """Draw the montage of a folder of predictions: of each case the slice with the largest lesion.

    Reads `predictions`/<case> and the files that the manifest `data` names, nothing else. The slice is that of the
    largest reference area, or of the largest predicted one without a reference. Cases with a lesion come first.
    Raises: UsageError where no case of the manifest has predictions, ImageError where a file is damaged.
    """
    manifest = read_manifest(data, data_root=data_root)
    present = [case for case in manifest.cases if is_segmented(predictions / case.name)]
    if not present:
        raise UsageError(
            f"no case of {data.name} has a mask in {predictions.name}",
            fix="run `medseg-diff segment` on this table, or check both paths",
        )
    rows = [largest_slice(case, predictions / case.name) for case in present[: 3 * cases]]
    rows.sort(key=lambda row: row.reference is not None and not row.reference.any())  # stable: else in table order
    segmentation_montage(rows[:cases], out_png)


def training_curves(metrics_csv: Path, png: Path) -> None:
    """Draw a run's losses and Dice over steps from its metrics.csv (columns step, name, value; one number a row).

    Names that contain `loss` go to one panel, those that contain `dice` to another.
    Raises: UsageError where the file has neither.
    """
    series = _series(metrics_csv)
    panels = {label: {name: series[name] for name in series if label in name.lower()} for label in ("loss", "dice")}
    panels = {label: curves for label, curves in panels.items() if curves}
    if not panels:
        raise UsageError("holds neither a loss nor a Dice", fix="give the metrics.csv of a run", file=metrics_csv.name)
    figure = dark_figure(4.4 * len(panels), 3.0)
    for place, (label, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for number, (name, points) in enumerate(curves.items()):
            _draw_curve(axes, name, points, CURVES[number % len(CURVES)])
        above_zero = all((points[:, 1] > 0).all() for points in curves.values())
        if label == "loss" and above_zero:
            _make_logarithmic(axes)
        _dress(axes, {"loss": "Loss", "dice": "Dice"}[label])
    figure.tight_layout(pad=1.0)
    save_png(figure, png)


def _draw_row(row: MontageRow, channels: Sequence[str], panels: Sequence["Axes"]) -> None:
    place = Place(row, panels[0])
    backdrop = [name for name in channels if name in row.images][:1]
    for panel, name in zip(panels, [*channels, *backdrop, *backdrop], strict=False):
        if name in row.images:
            low, high = _window(row.images[name], row.brain)
            place.picture(panel, row.images[name], cmap="gray", vmin=low, vmax=high, interpolation="bilinear")
    reference_panel, prediction_panel = panels[len(channels) : len(channels) + 2]
    for rater in row.raters:
        place.outline(reference_panel, rater, REFERENCE, 0.45)
    if row.reference is not None:
        place.outline(reference_panel, row.reference, REFERENCE, 1.2)
    if row.mask is not None:
        place.outline(prediction_panel, row.mask, PREDICTION, 1.2)
    for panel, (field, kind) in zip(panels[len(channels) + 2 :], MAPS.items(), strict=True):
        values = getattr(row, field)
        if values is not None:
            place.picture(panel, values, cmap=kind.ramp, vmin=0, vmax=kind.largest, interpolation="nearest")
            place.outline(panel, row.brain, FAINT, 0.5)


def _window(image: Plane, brain: Plane) -> tuple[float, float]:
    """Grey values shown as black and white: percentiles of the tissue."""
    values = image[brain.astype(bool)] if brain.any() else image
    low, high = np.percentile(values, [0.5, 99.7])
    return float(low), float(max(high, low + 1e-6))


def _write_sides(axes: "Axes") -> None:
    for across, letter in ((0.03, "R"), (0.97, "L")):
        axes.text(across, 0.5, letter, transform=axes.transAxes, color=INK, fontsize=7, ha="center", va="center")


def _draw_legends(sheet: Sheet, channels: int, *, raters: bool) -> None:
    """Under the columns: the convention of display, the colours of the outlines, a bar for each map."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    note = sheet.axes(sheet.left(0), sheet.foot, channels * PANEL_INCHES, FOOT)
    note.axis("off")
    note.text(0.0, 0.72, "Radiological display: R is the patient's right.", color=INK, fontsize=7, va="center")
    thin = [Line2D([], [], color=REFERENCE, linewidth=0.6, label="raters")] if raters else []
    lines = [
        [Line2D([], [], color=REFERENCE, linewidth=1.6, label="reference"), *thin],
        [Line2D([], [], color=PREDICTION, linewidth=1.6, label="prediction")],
    ]
    for column, handles in enumerate(lines, start=channels):
        axes = sheet.axes(sheet.left(column), sheet.foot, PANEL_INCHES, FOOT)
        axes.axis("off")
        axes.legend(
            handles=handles, loc="upper center", ncols=2, frameon=False, fontsize=7, labelcolor=INK, handlelength=1.4
        )
    for column, kind in enumerate(MAPS.values(), start=channels + 2):
        axes = sheet.axes(sheet.left(column) + 0.15 * PANEL_INCHES, sheet.foot + 0.12, 0.7 * PANEL_INCHES, 0.07)
        colours = ScalarMappable(Normalize(0, kind.largest), kind.ramp)
        bar = sheet.figure.colorbar(
            colours, cax=axes, orientation="horizontal", ticks=[0, kind.largest / 2, kind.largest]
        )
        bar.ax.tick_params(colors=INK, labelsize=6.5, length=2, width=0.5, pad=1.5)
        bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        bar.outline.set_visible(False)
        bar.set_label(kind.legend, color=INK, fontsize=7, labelpad=2)


def _series(metrics_csv: Path) -> dict[str, Points]:
    """Name → [N, 2] of step and value, in order of steps; values that are not finite are left out."""
    try:
        with metrics_csv.open(newline="", encoding="utf-8") as file:
            cells = [(row["name"], float(row["step"]), float(row["value"])) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise UsageError("no such file", fix="give the metrics.csv of a run", file=metrics_csv.name) from None
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"is not a table of step, name, value ({error})", fix="give the metrics.csv of a run", file=metrics_csv.name
        ) from None
    series: dict[str, list[tuple[float, float]]] = {}
    for name, step, value in cells:
        if np.isfinite(value):
            series.setdefault(name, []).append((step, value))
    return {name: np.array(sorted(points)) for name, points in series.items()}


def _draw_curve(axes: "Axes", name: str, points: Points, colour: str) -> None:
    """A line, or dots for few numbers; many noisy numbers are drawn faintly under their running mean."""
    if len(points) < 50:
        axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=1.5, marker="o", markersize=3, label=name)
        return
    width = max(5, len(points) // 40)
    smooth = np.convolve(points[:, 1], np.ones(width) / width, mode="valid")
    axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=0.5, alpha=0.35)
    axes.plot(points[width - 1 :, 0], smooth, color=colour, linewidth=1.5, label=f"{name}, mean of {width}")


def _make_logarithmic(axes: "Axes") -> None:
    """Ticks at 1, 2 and 5 of each decade, written as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _dress(axes: "Axes", label: str) -> None:
    axes.set_facecolor(PAPER)
    axes.set_xlabel("training step", color=INK, fontsize=8)
    axes.set_ylabel(label, color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=7, width=0.5, which="both")
    axes.grid(color=FAINT, linewidth=0.3, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK)
