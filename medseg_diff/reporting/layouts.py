"""What stands in which column of a montage: scans, maps on their scales, differences and errors, of either task."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from medseg_diff.reporting.panels import PREDICTION, REFERENCE, MontageRow, Plane

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

CHANNEL_TITLES = {"t1": "T1", "t1ce": "T1 contrast", "t2": "T2", "flair": "FLAIR"}
COLD, WARM = ("#0b3c5d", PREDICTION, "#f2fbff"), ("#5a1a4a", "#d9534f", REFERENCE, "#fff7d6")  # lightness rises evenly
FOUND = "#f4f4f4"  # where mask and reference agree; what one of them marks alone has its own colour
ROUND = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)  # where scales end, times a power of ten


class Outline(NamedTuple):
    """What of a row is outlined, in which colour, and the word for it below the column."""

    name: str
    colour: str
    word: str
    width: float = 1.2


class Scale(NamedTuple):
    """Numbers in colours: from black at 0 to the last of `colours` at the last of `ticks`, in the row's own unit.

    With `most` it ends at the least round number, up to that, which nothing in the picture is above. A signed one runs as
    far below 0 as above, there through blue.
    """

    colours: tuple[str, ...]
    ticks: tuple[float, ...]
    word: str
    most: float | None = None
    signed: bool = False

    @property
    def ramp(self) -> "Colormap":
        from matplotlib.colors import LinearSegmentedColormap

        below = [PREDICTION, "#1d5f86"] if self.signed else []
        return LinearSegmentedColormap.from_list(self.word, [*below, "#000000", *self.colours])

    @property
    def limits(self) -> tuple[float, float]:
        return (-self.ticks[-1] if self.signed else 0.0), self.ticks[-1]

    def fitted(self, planes: Sequence[Plane]) -> "Scale":
        """The same for these planes, where it depends on them."""
        if self.most is None:
            return self
        largest = max((float(plane.max()) for plane in planes if plane.size), default=0.0)
        top = min(round_up(largest), self.most) if largest > 0 else self.most
        return self._replace(ticks=(0, top / 2, top), most=None)


def round_up(number: float) -> float:
    """The least of ROUND times a power of ten that is not below a positive number."""
    power = 10.0 ** math.floor(math.log10(number))
    return float(f"{next(step * power for step in ROUND if step * power >= number * (1 - 1e-9)):.3g}")


class Column(NamedTuple):
    """The first of `planes` that a row has, on a scale or in grey, with outlines over it.

    Grey runs over the tissue of the plane itself, or of `window`, so that two columns can be compared. `kind` says what else
    may stand there: the plane less its pseudo-healthy reconstruction, or where mask and reference differ.
    """

    title: str
    planes: Sequence[str]
    outlines: tuple[Outline, ...] = ()
    scale: Scale | None = None
    window: str | None = None
    kind: Literal["plane", "difference", "errors"] = "plane"

    def is_of(self, row: MontageRow) -> bool:
        """Whether a row has anything to be shown here."""
        if self.kind == "errors" and not (row.marks.get("reference") and row.marks.get("mask")):
            return False
        name = self.plane_of(row)
        return name is not None and (self.kind != "difference" or healthy(name) in row.maps)

    def plane_of(self, row: MontageRow) -> str | None:
        return next((name for name in self.planes if name in row.images or name in row.maps), None)


class Layout(NamedTuple):
    """The columns of a task, how scans are interpolated, and the ticks of its bars."""

    columns: Sequence[Column]
    interpolation: str | None
    ticks: Mapping[str, Any]

    def for_rows(self, rows: Sequence[MontageRow]) -> "Layout":
        """Without the columns that no row has anything for, each scale as long as the rows need it."""

        def fitted(column: Column) -> Column:
            planes = [row.maps[name] for row in rows for name in column.planes if name in row.maps]
            return column._replace(scale=column.scale and column.scale.fitted(planes))

        kept = [column for column in self.columns if any(column.is_of(row) for row in rows)]
        return self._replace(columns=[fitted(column) for column in kept])


LayoutOf = Callable[[Sequence[str]], Layout]

OF_REFERENCE = Outline("reference", REFERENCE, "reference")
ERRORS = {"found": FOUND, "missed": REFERENCE, "false positive": PREDICTION}
LARGEST_VARIANCE = 0.25  # of anything that lies in [0, 1]
VARIANCE = (0, LARGEST_VARIANCE / 2, LARGEST_VARIANCE)
ANOMALY_TICKS = (0, 1, 4)
DIFFERENCE = Scale(("#8a5c12", REFERENCE), (-0.5, 0, 0.5), "of the scan's grey range", signed=True)


def healthy(channel: str) -> str:
    """What the pseudo-healthy reconstruction of a channel is called."""
    return f"healthy_{channel}"


def segmentation_layout(channels: Sequence[str]) -> Layout:
    """The scans, reference and prediction over the first of them, their errors, probability and uncertainty."""
    between = Scale(WARM, VARIANCE, "variance over the members", most=LARGEST_VARIANCE)
    columns = [Column(CHANNEL_TITLES.get(name, name), (name,)) for name in channels]
    columns += [
        Column("Reference", channels, (Outline("raters", REFERENCE, "raters", width=0.45), OF_REFERENCE)),
        Column("Prediction", channels, (Outline("mask", PREDICTION, "prediction"),)),
        Column("Errors", channels, kind="errors"),
        Column("Probability", ("probability",), scale=Scale(COLD, (0, 0.5, 1), "mean of the members")),
        Column("Variance between", ("variance_between",), scale=between),
        Column("Total uncertainty", ("uncertainty",), scale=Scale(WARM, VARIANCE, "m(1 − m), m the mean")),
    ]
    return Layout(columns, "bilinear", {"labelsize": 6.5, "width": 0.5, "pad": 1.5})


def anomaly_layout(channels: Sequence[str]) -> Layout:
    """Each scan beside its healthy reconstruction, what that changes, and, where it is known, its lesion-free twin;
    reference and mask over the first scan, the map between them, and the errors of the mask."""
    columns = []
    for name in channels:
        columns.append(Column(CHANNEL_TITLES.get(name, name), (name,)))
        columns.append(Column("Pseudo-healthy", (healthy(name),), window=name))
        columns.append(Column("Scan − pseudo-healthy", (name,), scale=DIFFERENCE, window=name, kind="difference"))
        columns.append(Column("Lesion-free twin", (f"twin_{name}",), window=name))
    columns += [
        Column("Reference", channels, (OF_REFERENCE,)),
        Column("Anomaly map", ("score",), scale=Scale(WARM, ANOMALY_TICKS, "times the threshold")),
        Column("Mask", channels, (Outline("mask", PREDICTION, "above the threshold"),)),
        Column("Errors", channels, kind="errors"),
    ]
    return Layout(columns, None, {"labelsize": 7, "pad": 1})


def left_of_lesion(row: MontageRow) -> dict[str, float]:
    """Of each channel the share of the lesion's conspicuous voxels that the reconstruction leaves as conspicuous; nothing
    where no lesion is known, or where none of it is conspicuous.

    Conspicuous is what lies more than two standard deviations from the mean of the slice's other tissue; it is left where
    the reconstruction lies there too, and has come less than half of the way.
    """
    lesion = np.any(row.marks.get("reference") or [np.zeros(row.brain.shape)], axis=0)
    tissue, found = row.brain.astype(bool) & ~lesion, {}
    for name, image in row.images.items():
        made = row.maps.get(healthy(name))
        if made is None or not lesion.any() or not tissue.any():
            continue
        middle, deviation = float(image[tissue].mean()), float(image[tissue].std())
        before, after = (np.abs(plane[lesion] - middle) for plane in (image, made))
        conspicuous = before > 2 * deviation
        if conspicuous.any():
            left = (after > 2 * deviation) & (after > before / 2)
            found[name] = float(left[conspicuous].mean())
    return found
