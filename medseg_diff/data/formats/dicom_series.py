"""The headers of a DICOM series on whose grid results lie: which slice of it each plane of an array is, by its place."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_diff.data.formats.dicom_mgh import dicom_files
from medseg_diff.errors import ImageError

SAME_DIRECTION = 1e-2  # of a voxel's edge; the grid's axes against the series' rows and columns
SAME_PLACE = 0.1  # of the distance of planes
SAME_VOXEL = 0.5  # how far a slice may lie beside its place on the grid, the first and the last one also along it
IDENTIFIED_BY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
AGAIN = "export the series from its source again"
Matrix = npt.NDArray[np.float64]


class Plane(NamedTuple):
    """One slice: its first pixel [3] and the steps [3] to the next column and to the next row, in RAS millimetres."""

    corner: Matrix
    column_step: Matrix
    row_step: Matrix


@dataclass(frozen=True)
class Series:
    """The `images` that the planes of a grid came from, headers only: one a slice, in order along the normal of rows and
    columns, or one file of several frames, whose frame i is number `order[i]` along it. `axes` are those of the array
    that planes, rows and columns are counted along, `backwards` those of them that are counted from their end."""

    images: tuple[Any, ...]
    order: tuple[int, ...]
    axes: tuple[int, int, int]
    backwards: tuple[int, ...]
    spacing_mm: float  # between planes

    def frames_of(self, voxels: np.ndarray) -> np.ndarray:
        """Voxels [X, Y, Z] of the grid as the series has them, [frames, rows, columns]."""
        turned = np.transpose(np.flip(voxels, self.backwards), self.axes)
        return np.ascontiguousarray(turned[list(self.order)])


def read_series(folder: Path, affine: Matrix, shape: Sequence[int]) -> Series:
    """The headers of the one series in `folder`, which was read as the grid of `affine` [4, 4] (RAS mm) and `shape`.

    Slices go by their places, never by the names or numbers of files. They may lie slightly unevenly: each plane is the
    slice that comes there.
    Raises: ImageError where they do not lie on the grid, or do not say which patient, study and space they belong to.
    """
    images = _headers(folder)
    planes = [plane for image in images for plane in _planes_of(image)]
    axes, backwards = _axes(planes, affine)
    if (len(planes), images[0].Rows, images[0].Columns) != tuple(shape[axis] for axis in axes):
        raise ImageError("its files do not match the volume that was read", fix=AGAIN)
    order = _order(_places(planes, affine, shape, axes, backwards))
    if len(images) > 1:
        images = [images[order.index(place)] for place in range(len(order))]
        order = sorted(order)
    return Series(tuple(images), tuple(order), axes, backwards, float(np.linalg.norm(affine[:3, axes[0]])))


@contextmanager
def hushed() -> Iterator[None]:
    """What pydicom and highdicom say of a header, which quotes it, is not shown to anybody."""
    logs = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    before = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def _headers(folder: Path) -> list[Any]:
    """Of every DICOM file in the folder, by name. Raises: ImageError."""
    import pydicom

    with hushed():
        try:
            names = sorted(dicom_files(folder)[0])
            images = [pydicom.dcmread(folder / name, stop_before_pixels=True) for name in names]
        except ImageError:
            raise
        except Exception:  # pydicom has many ways to say that a header is none
            raise ImageError("the headers of its DICOM series cannot be read", fix=AGAIN) from None
    missing = [name for name in IDENTIFIED_BY if not all(image.get(name) for image in images)]
    if missing:
        found = f"its DICOM files have no {', '.join(missing)}, which a segmentation of them must refer to"
        raise ImageError(found, fix="leave --format out, or use the original files from the scanner")
    return images


def _planes_of(image: Any) -> list[Plane]:
    """The slice of a file, or those of all its frames. Raises: ImageError where it does not say where they lie."""
    try:
        if "PerFrameFunctionalGroupsSequence" not in image:
            return [_plane(image, image, image)]
        shared = image.SharedFunctionalGroupsSequence[0]
        return [
            _plane(
                _group(frame, shared, "PlanePositionSequence"),
                _group(frame, shared, "PlaneOrientationSequence"),
                _group(frame, shared, "PixelMeasuresSequence"),
            )
            for frame in image.PerFrameFunctionalGroupsSequence
        ]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ImageError("its DICOM files do not state the positions of its slices", fix=AGAIN) from None


def _group(frame: Any, shared: Any, name: str) -> Any:
    return (frame if name in frame else shared)[name].value[0]


def _plane(position: Any, orientation: Any, measures: Any) -> Plane:
    to_ras = np.array([-1.0, -1.0, 1.0])
    corner = np.array([float(mm) for mm in position.ImagePositionPatient])
    right, down = np.array([float(part) for part in orientation.ImageOrientationPatient]).reshape(2, 3)
    between_rows, between_columns = (float(mm) for mm in measures.PixelSpacing)
    return Plane(corner * to_ras, right * between_columns * to_ras, down * between_rows * to_ras)


def _places(
    planes: Sequence[Plane], affine: Matrix, shape: Sequence[int], axes: Sequence[int], backwards: Sequence[int]
) -> Matrix:
    """Where each slice's first pixel lies on the grid: voxels [slices, 3] along `axes`, from where they are counted."""
    corners = np.array([plane.corner for plane in planes]) - affine[:3, 3]
    voxels = corners @ np.linalg.inv(affine[:3, :3]).T
    for axis in backwards:
        voxels[:, axis] = shape[axis] - 1 - voxels[:, axis]
    return np.asarray(voxels[:, list(axes)])


def _order(places: Matrix) -> list[int]:
    """Which plane of the grid each slice is. Raises: ImageError where some lie at one place, or not on the grid."""
    along = np.sort(places[:, 0])
    if np.diff(along).min(initial=1) < SAME_PLACE:
        raise ImageError("two of its slices are at the same position", fix=AGAIN)
    if np.abs(along[[0, -1]] - [0, len(along) - 1]).max() > SAME_VOXEL:
        raise ImageError("its slices are not on the grid that was read", fix="leave --format out")
    if np.abs(places[:, 1:]).max() > SAME_VOXEL:
        raise ImageError("its slices are shifted relative to each other", fix="leave --format out")
    return [int(place) for place in places[:, 0].argsort().argsort()]


def _normal(plane: Plane) -> Matrix:
    """Of length 1 [3]."""
    normal = np.cross(plane.column_step, plane.row_step)
    return np.asarray(normal / np.linalg.norm(normal))


def _axes(planes: Sequence[Plane], affine: Matrix) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Which axes of the grid planes, rows and columns are counted along, and which of these run backwards.

    Raises: ImageError where the planes are turned against the grid, or against each other, or have other pixels.
    """
    to_voxels = np.linalg.inv(affine[:3, :3])
    steps = np.array([[to_voxels @ plane.row_step, to_voxels @ plane.column_step] for plane in planes])
    nearest = np.rint(steps[0])
    along_axes = (np.abs(nearest).sum(axis=1) == 1).all() and (np.abs(nearest).sum(axis=0) <= 1).all()
    if not along_axes or np.abs(steps - nearest).max() > SAME_DIRECTION:
        raise ImageError("its slices are not on the grid that was read", fix="leave --format out")
    rows, columns = (int(np.abs(step).argmax()) for step in nearest)
    axes = (3 - rows - columns, rows, columns)
    along = (affine[:3, axes[0]] @ _normal(planes[0]), *(step.sum() for step in nearest))
    return axes, tuple(axis for axis, step in zip(axes, along, strict=True) if step < 0)
