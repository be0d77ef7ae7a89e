"""Anomaly maps on one sheet: scan, healed brain, reference, map and mask of each case's most telling slice.

Display is radiological: the patient's right is on the left of the picture, anterior is up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np

from medseg_diff.data.anomalies import AnomalyCase, read_anomaly_case
from medseg_diff.data.brain import find_brain_or_head
from medseg_diff.data.geometry import Volume, reoriented, spacing_of
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.manifest import Case, read_manifest
from medseg_diff.errors import UsageError
from medseg_diff.reporting.figures import CHANNEL_TITLES, LONGEST_TITLE, PREDICTION, REFERENCE, WARM
from medseg_diff.reporting.panels import (
    FAINT,
    FOOT,
    INK,
    PANEL_INCHES,
    MontageRow,
    Place,
    Plane,
    Sheet,
    save_png,
    shown_channels,
)
from medseg_diff.reporting.slices import DISPLAY_AXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

BRIGHTEST = 4.0  # times the threshold that the map's last colour stands for


@dataclass(frozen=True)
class AnomalyRow(MontageRow):
    """One slice of one case: beside the channels their healed planes, and the map [H, W] with its threshold."""

    healed: Mapping[str, Plane] = field(default_factory=dict)
    score: Plane | None = None
    threshold: float | None = None


def anomaly_montage(
    predictions: Path, data: Path, out_png: Path, cases: int = 4, *, data_root: Path | None = None
) -> None:
    """Draw the montage of a folder that `anomaly` wrote: of each case the slice with the largest lesion.

    The slice is that of the largest reference area, or, without a reference or a lesion, of the highest map. Cases with a
    lesion come first. Raises: UsageError where no case of the manifest has a map, ImageError where a file is damaged.
    """
    manifest = read_manifest(data, data_root=data_root)
    present = [case for case in manifest.cases if (predictions / case.name / "anomaly.nii.gz").is_file()]
    if not present:
        raise UsageError(
            f"no case of {data.name} has a map in {predictions.name}",
            fix="run `medseg-diff anomaly` on this table, or check both paths",
        )
    rows = [row_of(case, read_anomaly_case(predictions / case.name, case.name)) for case in present[: 3 * cases]]
    rows.sort(key=lambda row: row.reference is not None and not row.reference.any())  # stable: else in table order
    draw_anomalies(rows[:cases], out_png)


def row_of(case: Case, found: AnomalyCase) -> AnomalyRow:
    """The slice of one case that is shown. Raises: ImageError."""
    known = bool(case.seg)
    images = read_case(case, found.facts["channels"], reference=known, resample_to=found.facts["resample_to"])
    affine, shown = images.affine, shown_channels(images.channels)
    wanted = found.facts["diseased"]

    def displayed(voxels: np.ndarray) -> Plane:
        """Voxels [X, Y, Z] as a stack of pictures [Z, H, W], from the feet up."""
        return np.ascontiguousarray(reoriented(Volume(voxels, affine), DISPLAY_AXES).voxels.transpose(2, 1, 0))

    lesion = None
    if known and images.reference is not None:
        lesion = displayed(images.reference > 0 if wanted is None else np.isin(images.reference, wanted))
    score, brain = displayed(found.score.voxels), displayed(find_brain_or_head(images.image))
    areas = lesion.sum((1, 2)) if lesion is not None and lesion.any() else score.clip(min=0).sum((1, 2))
    index = int(areas.argmax())
    across_mm, down_mm, _ = spacing_of(reoriented(found.score, DISPLAY_AXES).affine)
    return AnomalyRow(
        title=f"{case.name}, slice {index + 1}",
        images={name: displayed(images.image[images.channels.index(name)])[index] for name in shown},
        brain=brain[index],
        spacing_mm=(float(down_mm), float(across_mm)),
        reference=None if lesion is None else lesion[index],
        mask=displayed(found.mask())[index],
        healed={name: displayed(found.healed(name))[index] for name in shown},
        score=score[index],
        threshold=found.facts["threshold"]["value"],
    )


def draw_anomalies(rows: Sequence[AnomalyRow], path: Path) -> None:
    """Draw one PNG: a row a slice; columns each channel and its healed plane, reference, map and mask.

    Raises: UsageError for no rows, EnvironmentFault where `path` cannot be written.
    """
    if not rows:
        raise UsageError("there is no slice to draw", fix="give at least one case with a map")
    channels = shown_channels([name for row in rows for name in row.images])
    titles = [title for name in channels for title in (CHANNEL_TITLES.get(name, name), "healed")]
    titles += ["Reference", "Anomaly map", "Mask"]
    sheet = Sheet(rows, columns=len(titles))
    for line, row in enumerate(rows):
        panels = [sheet.panel(line, column) for column in range(len(titles))]
        panels[0].set_ylabel(shorten(row.title, LONGEST_TITLE, placeholder="…"), color=INK, fontsize=8, labelpad=4)
        _draw_row(row, channels, panels)
        if line == 0:
            _write_sides(panels[0])
            for panel, title in zip(panels, titles, strict=True):
                panel.set_title(title, color=INK, fontsize=9.5, pad=4)
    _draw_legends(sheet, 2 * len(channels))
    save_png(sheet.figure, path)


def _write_sides(axes: "Axes") -> None:
    for across, letter in ((0.03, "R"), (0.97, "L")):
        axes.text(across, 0.5, letter, transform=axes.transAxes, color=INK, fontsize=7, ha="center", va="center")


def _draw_row(row: AnomalyRow, channels: Sequence[str], panels: Sequence["Axes"]) -> None:
    place = Place(row, panels[0])
    shown = [(planes, name) for name in channels for planes in (row.images, row.healed)]
    backdrop = (row.images, channels[0])
    places = [*range(len(shown)), len(shown), len(shown) + 2]
    for column, (planes, name) in zip(places, [*shown, backdrop, backdrop], strict=True):
        if name in planes:
            inside = row.images[name][row.brain] if row.brain.any() else row.images[name]
            low, high = np.percentile(inside, [0.5, 99.7])  # a scan and its healed plane in one window
            place.picture(panels[column], planes[name], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    if row.reference is not None:
        place.outline(panels[-3], row.reference, REFERENCE, 1.2)
    if row.score is not None:
        largest = BRIGHTEST * row.threshold if row.threshold else max(float(row.score.max()), 1e-6)
        place.picture(panels[-2], row.score, cmap=_ramp(), vmin=0, vmax=largest, interpolation="nearest")
        place.outline(panels[-2], row.brain, FAINT, 0.5)
    if row.mask is not None:
        place.outline(panels[-1], row.mask, PREDICTION, 1.2)


def _ramp() -> "Colormap":
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("anomaly", ["#000000", *WARM])


def _draw_legends(sheet: Sheet, first: int) -> None:
    """Under the columns: the convention of display, the colours of the outlines, the bar of the map."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    note = sheet.axes(sheet.left(0), sheet.foot, 2 * PANEL_INCHES, FOOT)
    note.axis("off")
    note.text(0.0, 0.72, "Radiological display: R is the patient's right.", color=INK, fontsize=7, va="center")
    for column, colour, word in ((first, REFERENCE, "reference"), (first + 2, PREDICTION, "above the threshold")):
        axes = sheet.axes(sheet.left(column), sheet.foot, PANEL_INCHES, FOOT)
        axes.axis("off")
        line = Line2D([], [], color=colour, linewidth=1.6, label=word)
        axes.legend(handles=[line], loc="upper center", frameon=False, fontsize=7, labelcolor=INK, handlelength=1.4)
    axes = sheet.axes(sheet.left(first + 1) + 0.15 * PANEL_INCHES, sheet.foot + 0.12, 0.7 * PANEL_INCHES, 0.07)
    colours = ScalarMappable(Normalize(0, BRIGHTEST), _ramp())
    bar = sheet.figure.colorbar(colours, cax=axes, orientation="horizontal", ticks=[0, 1, BRIGHTEST])
    bar.ax.tick_params(colors=INK, labelsize=7, length=2, pad=1)
    bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bar.outline.set_visible(False)
    bar.set_label("times the threshold", color=INK, fontsize=7, labelpad=2)
