"""A registration as a person checks it: squares of two images in turn, before and after, in three planes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medseg_diff.data.geometry import Volume, reoriented, resampled, spacing_of
from medseg_diff.reporting.panels import FAINT, INK, Page, Plane, save_png
from medseg_diff.reporting.trajectories import FONT, displayed

PICTURE_INCHES, GAP, HEAD, SIDE = 2.4, 0.06, 0.28, 1.1
SQUARE_MM = 25.0
PERCENTILES = (1.0, 99.5)
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # and the axis of RAS that each lies across


class Shown(NamedTuple):
    """One image as the scanner placed it and as it was brought onto the fixed one, and a word on how far it moved."""

    before: Volume
    after: Volume
    moved: str


def draw_registration(fixed: Volume, name: str, images: Mapping[str, Shown], path: Path) -> None:
    """Two rows for each image, in squares of 25 mm it and `fixed` in turn: what is one head runs on from square to square.

    Written whole or not at all. Raises: EnvironmentFault.
    """
    planes = {plane: _through_the_middle(fixed, axis) for plane, axis in PLANES.items()}
    pitch = PICTURE_INCHES + GAP
    page = Page(SIDE + len(planes) * pitch, HEAD + 2 * len(images) * pitch)
    for column, plane in enumerate(planes):
        page.text(SIDE + column * pitch + PICTURE_INCHES / 2, HEAD / 2, plane, ha="center", color=INK, **FONT)
    rows = [
        (f"{name}, {channel}\n{when}", volume)
        for channel, shown in images.items()
        for when, volume in (("before", shown.before), (f"after\n{shown.moved}", shown.after))
    ]
    for row, (title, volume) in enumerate(rows):
        top = HEAD + row * pitch
        page.text(GAP, top + PICTURE_INCHES / 2, title, ha="left", color=FAINT, **FONT)
        for column, (plane, axis) in enumerate(PLANES.items()):
            axes = page.dark_axes(SIDE + column * pitch, top, PICTURE_INCHES, PICTURE_INCHES)
            picture, spacing = _checkerboard(planes[plane], volume, axis)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="bilinear", aspect=spacing[0] / spacing[1])
    save_png(page.figure, path)


def _through_the_middle(fixed: Volume, axis: int) -> Volume:
    """One plane of a volume, its axes turned to RAS."""
    turned = reoriented(fixed, "RAS")
    place = turned.shape[axis] // 2
    affine = turned.affine.copy()
    affine[:3, 3] += place * affine[:3, axis]
    return Volume(np.take(turned.voxels, [place], axis=axis), affine)


def _checkerboard(plane: Volume, image: Volume, axis: int) -> tuple[Plane, Sequence[float]]:
    """A plane as displayed, squares of it and of an image in turn, each in grey values of its own; millimetres a pixel, down
    and across."""
    other = resampled(image, plane, nearest=False)
    spacing = np.delete(spacing_of(plane.affine), axis)
    one, two = (_grey(np.take(each.voxels, 0, axis=axis), each.voxels) for each in (plane, other))
    places = [np.arange(n) * mm // SQUARE_MM for n, mm in zip(one.shape, spacing, strict=True)]
    odd = (places[0][:, None] + places[1][None]) % 2 > 0
    return displayed(np.where(odd, two, one)), spacing[::-1].tolist()


def _grey(plane: Plane, voxels: np.ndarray) -> Plane:
    low, high = np.percentile(voxels, PERCENTILES)
    return np.clip((plane - low) / max(float(high - low), 1e-6), 0.0, 1.0)
