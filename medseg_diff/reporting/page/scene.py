"""What the viewer of a page shows of one case: its scans in 256 greys, masks and maps over them, each a NIfTI file in text.

Everything is cut to the box of what is shown, placed by its own affine, so that crosshair and ruler stay in the scanner's
millimetres.
"""

import base64
import gzip
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_diff.data.formats.writing import nifti_bytes
from medseg_diff.data.geometry import Volume
from medseg_diff.data.results import CaseResult
from medseg_diff.data.tables.case import Case
from medseg_diff.reporting.montage import CHANNEL_TITLES, COLD, WARM
from medseg_diff.reporting.panels import PREDICTION, REFERENCE, shown_channels

Voxels = npt.NDArray[Any]
Box = tuple[slice, slice, slice]

LEVELS = 255
MOST_LESIONS = 12  # that a button leads to
MARGIN = 2  # voxels around what is shown
OUTSIDE = 0.02  # of a map's scale: what lies below is clear
WINDOW = (0.5, 99.7)  # percentiles of the tissue: from black to white
LARGEST = 99.95  # percentile of the tissue: what lies above is white in every window
MEMBER_COLOURS = (PREDICTION, "#8fd694", "#e58fb1", "#f4e285", "#b39ddb", "#ff8a65", "#4db6ac", "#dce775")
MASK_COLOURS = (PREDICTION, "#29b6a8", "#c5e1ff", "#b39ddb", "#8fd694")  # of regions, from the outermost in
REFERENCE_COLOURS = (REFERENCE, "#d9534f", "#ffe0a3", "#ff8a65", "#dce775")
MAP_TITLES = {
    "probability": ("Probability", "mean of the members"),
    "variance_between": ("Variance between members", "variance over the members"),
    "variance_within": ("Variance within members", "mean of p(1 − p)"),
    "uncertainty": ("Total uncertainty", "m(1 − m), m the mean"),
}


@dataclass(frozen=True)
class Image:
    """A scan, in grey from `low` to `high`; its values run from `least` to `most`."""

    name: str
    title: str
    file: str
    low: float
    high: float
    least: float
    most: float


@dataclass(frozen=True)
class Overlay:
    """A map in colours from 0 to `high`, clear below `low`, or labels, each in its own colour."""

    name: str
    title: str
    words: str
    file: str
    colours: list[str]
    names: list[str] = field(default_factory=list)  # of labels, as many as colours
    low: float = 0.0
    high: float = 1.0
    shown: bool = False
    opacity: float = 0.5

    @property
    def of_labels(self) -> bool:
        return bool(self.names)


@dataclass(frozen=True)
class Review:
    """A slice worth a look, at a point in the scanner's RAS millimetres."""

    title: str
    axis: int
    at_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """What the viewer is given."""

    images: list[Image]
    overlays: list[Overlay]
    review: list[Review]
    first: int = 0  # the image that is shown first

    @property
    def for_viewer(self) -> dict[str, Any]:
        return asdict(self)


def scene_of(result: CaseResult, case: Case | None, lesions: Sequence[Sequence[Any]] = ()) -> Scene:
    """Everything of a case that can be looked at; without `case`, whose files the scans are, masks and maps alone. `lesions`
    are rows of an anomaly map's, their heading first.

    Raises: ImageError where a file is damaged or not on the grid.
    """
    channels = (
        [] if case is None else [name for name in case.channels if name in result.facts.get("channels", case.channels)]
    )
    scans = {name: result.image(case, name) for name in channels} if case else {}
    tissue = result.brain(case, channels) if case and channels else None
    marked = _marked(result, case)
    shown = tissue if tissue is not None and tissue.any() else result.main.voxels != 0
    for labels in marked.values():
        shown = shown | (labels.voxels != 0)
    box = _box_of(shown)
    affine = _moved(result.main.affine, box)
    inside = tissue[box] if tissue is not None and tissue.any() else None
    images = [_image(name, CHANNEL_TITLES.get(name, name), scan[box], inside, affine) for name, scan in scans.items()]
    if result.task == "anomaly":
        healthy = {name: result.map(f"healthy_{name}") for name in channels}
        images += [
            _image(
                f"healthy_{name}", f"{CHANNEL_TITLES.get(name, name)}, healthy", made[box], inside, affine, like=image
            )
            for image, (name, made) in zip(images, healthy.items(), strict=False)
            if made is not None
        ]
    overlays = [each.overlay(box, affine) for each in marked.values()]
    overlays += [
        _map(name, title, words, values[box], affine, colours) for name, title, words, values, colours in _maps(result)
    ]
    first = channels.index(shown_channels(channels)[0]) if channels else 0
    return Scene(images, overlays, [*_review(result), *_lesions(lesions)], first)


def scene_of_scans(scans: Mapping[str, Volume], labels: Volume | None = None) -> Scene:
    """Scans of one grid that stand for themselves, and labels [X, Y, Z] over them."""
    main = next(iter(scans.values()))
    tissue = np.any([each.voxels > each.voxels.min() for each in scans.values()], axis=0)
    box = _box_of(tissue)
    affine, inside = _moved(main.affine, box), tissue[box] if tissue.any() else None
    images = [
        _image(name, CHANNEL_TITLES.get(name, name), each.voxels[box], inside, affine) for name, each in scans.items()
    ]
    present = [] if labels is None else [int(label) for label in np.unique(labels.voxels) if label]
    if labels is None or not present:
        return Scene(images, [], [])
    layers = _layers([labels.voxels == label for label in present])
    colours, names = list(islice(cycle(MASK_COLOURS), len(present))), [f"label {label}" for label in present]
    return Scene(images, [Marked("seg", "Labels", layers, colours, names, False).overlay(box, affine)], [])


@dataclass(frozen=True)
class Marked:
    """Labels [X, Y, Z], 0 where there is none, and the name and colour of each."""

    name: str
    title: str
    voxels: Voxels
    colours: list[str]
    names: list[str]
    shown: bool

    def overlay(self, box: Box, affine: Voxels) -> Overlay:
        file = _text(self.voxels[box].astype(np.uint8), affine)
        return Overlay(
            self.name, self.title, "", file, self.colours, self.names, high=float(len(self.colours)), shown=self.shown
        )


def _marked(result: CaseResult, case: Case | None) -> dict[str, Marked]:
    """The mask, and the reference where there is one; of several regions from the outermost in."""
    names = [region.replace("_", " ") for region in result.regions]
    colours = list(islice(cycle(MASK_COLOURS), len(names)))
    mask = Marked("mask", "Mask", _layers([result.mask(region) for region in result.regions]), colours, names, True)
    found = {"mask": mask}
    references = result.references(case) if case else {}
    if references:
        _, labels = next(iter(references.items()))
        layers = _layers([result.marked(labels, region) for region in result.regions])
        colours = list(islice(cycle(REFERENCE_COLOURS), len(names)))
        found["reference"] = Marked("reference", "Reference", layers, colours, names, False)
    return found


def _layers(masks: list[Voxels]) -> Voxels:
    """1 where the first region lies, 2 where the second lies over it, and so on."""
    layers = np.zeros(masks[0].shape, dtype=np.uint8)
    for number, mask in enumerate(masks, start=1):
        layers[mask] = number
    return layers


def _maps(result: CaseResult) -> Iterator[tuple[str, str, str, Voxels, tuple[str, ...]]]:
    if result.task == "anomaly":
        threshold = result.facts["threshold"]["value"]
        words = "score" if not threshold else f"score; marked above {threshold:.3g}"
        yield "anomaly", "Anomaly map", words, result.main.voxels.clip(min=0), WARM
        return
    several = len(result.regions) > 1
    for region in result.regions:
        for kind, (title, words) in MAP_TITLES.items():
            values = result.map(kind, region)
            if values is not None:
                name = f"{kind}_{region}" if several else kind
                of = f": {region.replace('_', ' ')}" if several else ""
                yield name, f"{title}{of}", words, values, COLD if kind == "probability" else WARM


def _image(
    name: str, title: str, voxels: Voxels, inside: Voxels | None, affine: Voxels, like: Image | None = None
) -> Image:
    """A scan in 256 greys, or one in the greys and the window of another."""
    values = voxels[inside] if inside is not None else voxels
    low, high = (float(each) for each in np.percentile(values, WINDOW)) if like is None else (like.low, like.high)
    least, most = (
        (float(voxels.min()), float(np.percentile(values, LARGEST))) if like is None else (like.least, like.most)
    )
    slope = max(most - least, 1e-6) / LEVELS
    greys = np.clip(np.rint((voxels - least) / slope), 0, LEVELS).astype(np.uint8)
    return Image(name, title, _text(greys, affine, slope=slope, offset=least), low, max(high, low + slope), least, most)


def _map(name: str, title: str, words: str, values: Voxels, affine: Voxels, colours: tuple[str, ...]) -> Overlay:
    """A map on its own scale, which ends at a round number."""
    high = 1.0 if name.startswith("probability") else round_up(float(values.max()))
    steps = np.clip(np.rint(values * (LEVELS / high)), 0, LEVELS).astype(np.uint8)
    file = _text(steps, affine, slope=high / LEVELS)
    return Overlay(name, title, words, file, ["#000000", *colours], low=OUTSIDE * high, high=high)


def round_up(largest: float) -> float:
    """The next of 1, 2, 2.5, 4, 5, 8 times a power of ten; 1 for nothing."""
    if not largest > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 2.5, 4, 5, 8, 10) if step * power >= largest * (1 - 1e-9))


def _review(result: CaseResult) -> Iterator[Review]:
    """The slices that the members disagree on most, through the middle of what is marked there, else of the slice."""
    for region, slices in result.facts.get("slices_to_review", {}).items():
        mask = result.mask(region)
        for each in slices:
            axis, index = int(each["axis"]), int(each["slice"])
            plane = np.argwhere(mask.take(index, axis=axis))
            middle = plane.mean(axis=0) if len(plane) else (np.delete(mask.shape, axis) - 1) / 2
            at = result.main.affine @ [*np.insert(middle, axis, index), 1.0]
            error = each.get("expected_error_ml")
            words = "" if error is None else f", {error:.2f} ml in doubt"
            title = f"slice {index + 1}{words}"
            if len(result.regions) > 1:
                title = f"{region.replace('_', ' ')}: {title}"
            yield Review(title, axis, (round(float(at[0]), 2), round(float(at[1]), 2), round(float(at[2]), 2)))


def _lesions(rows: Sequence[Sequence[Any]]) -> Iterator[Review]:
    """The middle of each lesion."""
    for row in rows[1 : 1 + MOST_LESIONS]:
        said = dict(zip(rows[0], row, strict=True))
        at = (float(said["x_mm"]), float(said["y_mm"]), float(said["z_mm"]))
        yield Review(f"lesion {said['component']}, {float(said['volume_ml']):.1f} ml", 2, at)


def _box_of(shown: Voxels) -> Box:
    """Where anything is, with a margin; everything where nothing is."""
    if not shown.any():
        return (slice(None), slice(None), slice(None))
    ends = []
    for axis, size in enumerate(shown.shape):
        there = np.flatnonzero(shown.any(axis=tuple(other for other in range(3) if other != axis)))
        ends.append(slice(max(int(there[0]) - MARGIN, 0), min(int(there[-1]) + 1 + MARGIN, size)))
    return (ends[0], ends[1], ends[2])


def _moved(affine: Voxels, box: Box) -> Voxels:
    """The affine of what was cut out."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [each.start or 0 for each in box]
    return moved


def _text(voxels: Voxels, affine: Voxels, *, slope: float = 1.0, offset: float = 0.0) -> str:
    """A packed NIfTI file as base64."""
    content = nifti_bytes(np.ascontiguousarray(voxels), affine, slope=slope, offset=offset)
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")
