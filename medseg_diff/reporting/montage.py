"""Results on one sheet: of each case the slice with the largest lesion, its scans, reference, mask and maps side by side.

Display is radiological: the patient's right is on the left of the picture, anterior is up.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

import numpy as np
import numpy.typing as npt

from medseg_diff.data.geometry import Volume, axes_of, axial_axis, reoriented, spacing_of
from medseg_diff.data.results import CaseResult, holds_result, read_result, task_of_results
from medseg_diff.data.tables.manifest import Case, read_manifest
from medseg_diff.errors import UsageError
from medseg_diff.reporting.drawing import draw_legends, draw_panel, draw_sides
from medseg_diff.reporting.layouts import (
    ANOMALY_TICKS,
    CHANNEL_TITLES,
    COLD,
    WARM,
    Column,
    Layout,
    LayoutOf,
    Outline,
    anomaly_layout,
    healthy,
    segmentation_layout,
)
from medseg_diff.reporting.panels import INK, MontageRow, Place, Plane, Sheet, save_png, shown_channels

__all__ = [
    "CHANNEL_TITLES",
    "COLD",
    "WARM",
    "Column",
    "Layout",
    "Outline",
    "anomaly_layout",
    "displayed",
    "draw_montage",
    "draw_rows",
    "row_of",
    "segmentation_layout",
]

Floats = npt.NDArray[np.float64]

DISPLAY_AXES = "LPS"  # columns run to the patient's left, rows to the back: radiological display, anterior up
LONGEST_TITLE = 36  # letters that fit beside a row


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
    kinds = [healthy(name) for name in shown] if anomaly else ["probability", "variance_between", "uncertainty"]
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
        title=f"{case.name}, slice {_number(index, len(areas[0]), affine)}",
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


def _number(index: int, slices: int, affine: Floats) -> int:
    """That of a slice in the file, as in case.json and per_slice.csv but from 1, by its place from the feet up."""
    upwards = axes_of(affine)[axial_axis(affine)] == "S"
    return index + 1 if upwards else slices - index


def displayed(voxels: Plane, affine: Floats) -> Plane:
    """Voxels [X, Y, Z] as a stack of pictures [Z, H, W], from the feet up."""
    return np.ascontiguousarray(reoriented(Volume(voxels, affine), DISPLAY_AXES).voxels.transpose(2, 1, 0))


def draw_rows(rows: Sequence[MontageRow], layout_of: LayoutOf, png: Path) -> None:
    """Draw one PNG: a row a slice, all in one scale in mm, without the columns that no row has anything for; of several
    channels FLAIR and contrast-enhanced T1 are shown.

    Raises: UsageError for no rows, EnvironmentFault where `png` cannot be written.
    """
    if not rows:
        raise UsageError("there is no slice to draw", fix="give at least one case with results")
    layout = layout_of(shown_channels([name for row in rows for name in row.images])).for_rows(rows)
    sheet = Sheet(rows, columns=len(layout.columns))
    for line, row in enumerate(rows):
        panels = [sheet.panel(line, column) for column in range(len(layout.columns))]
        panels[0].set_ylabel(shorten(row.title, LONGEST_TITLE, placeholder="…"), color=INK, fontsize=8, labelpad=4)
        place = Place(row, panels[0])
        for panel, column in zip(panels, layout.columns, strict=True):
            draw_panel(panel, place, row, column, layout.interpolation)
            if line == 0:
                panel.set_title(column.title, color=INK, fontsize=9.5, pad=4)
        draw_sides(panels[0])
    draw_legends(sheet, rows, layout)
    save_png(sheet.figure, png)
