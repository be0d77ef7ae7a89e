"""Where voxels lie: an affine out of a header that may contradict itself, and one grid compared with another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

SAME_PLACE_MM = 1e-3  # corners closer than this are the same corners
CONTRADICTION_MM = 0.1  # sform and qform further apart than rounding explains
STALE_SPACING = 0.01  # relative; the header's spacing against the one the affine implies
SHEARED = 1e-3  # cosine between two axes
PLAUSIBLE_SPACING_MM = (0.05, 20.0)
POSSIBLE_SPACING_MM = (0.005, 200.0)  # beyond these a grid of any other spacing would be empty or endless
LARGEST_EXTENT_MM = 3000.0
FARTHEST_MM = (2000.0, 1e5)  # of the nearest corner from the origin: said, refused
HALF_A_VOXEL = 0.5 + 1e-3  # where a grid ends beyond the middles of its outermost voxels, and what rounding may add
CODES = range(6)  # what sform and qform codes may say
MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's code for the unit of length

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Volume:
    """Voxels [X, Y, Z] (float32, or int16 for labels), the affine [4, 4] that takes their indices to RAS
    millimetres, what was doubtful about the file, and NIfTI's code for the space that these millimetres are in."""

    voxels: np.ndarray
    affine: np.ndarray
    warnings: tuple[str, ...] = ()
    code: int = 1

    @property
    def shape(self) -> Shape:
        x, y, z = self.voxels.shape
        return x, y, z


def nifti_affine(header: Any, shape: Sequence[int]) -> tuple[np.ndarray, int, list[str]]:
    """The affine [4, 4] in mm of a nibabel NIfTI header, the code of its space, and every contradiction on the way.

    The sform is preferred to the qform; neither is the bare spacing, as other readers take it.
    Raises: ValueError, with the reason, where no affine can be trusted.
    """
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    affines = {name: _affine_of(header, name) for name, code in codes.items() if code > 0}
    usable = {name: affine for name, affine in affines.items() if is_usable(affine)}
    warnings = [f"the {name} is not a usable affine and is ignored" for name in affines if name not in usable]
    warnings += [f"{name}_code {code} is not a defined code" for name, code in codes.items() if code not in CODES]
    if len(usable) == 2:
        apart = corner_distance(usable["sform"], usable["qform"], shape)
        if apart > CONTRADICTION_MM:
            warnings.append(f"sform and qform differ by {apart:.3g} mm; the sform is used")
    name, affine = next(iter(usable.items()), ("", None))
    if affine is None:
        if affines:
            raise ValueError("neither sform nor qform is a usable affine")
        affine = header.get_base_affine()
        if not is_usable(affine):
            raise ValueError("has no orientation and no spacing")
        warnings.append(
            "neither sform nor qform is set; LAS is assumed from its spacing, so left and right are a guess"
        )
    factor = _millimetres_per_unit(int(header["xyzt_units"]) & 7, affine, warnings)
    affine[:3] *= factor
    axes = min(int(header["dim"][0]), 3)  # the header of a 2D image has no third spacing
    spacing = [*(header["pixdim"][1 : axes + 1] * factor), *spacing_of(affine)[axes:]]
    code = codes.get(name, 0)
    return affine, code if code in CODES[1:] else 1, warnings + warnings_of(affine, spacing=spacing)


def warnings_of(affine: np.ndarray, *, spacing: Sequence[float] | np.ndarray) -> list[str]:
    """What makes a usable affine suspicious."""
    found = []
    implied = spacing_of(affine)
    if not np.all(np.asarray(spacing) > 0):
        found.append(f"the header's spacing {_text(spacing)} mm is not valid; the affine's {_text(implied)} mm is used")
    elif not np.allclose(implied, spacing, rtol=STALE_SPACING, atol=0):
        found.append(f"the header's spacing {_text(spacing)} mm is stale; the affine's {_text(implied)} mm is used")
    if is_sheared(affine):
        found.append("the axes are sheared; results are written with an sform only")
    low, high = PLAUSIBLE_SPACING_MM
    if implied.min() < low or implied.max() > high:
        found.append(f"a spacing of {_text(implied)} mm is implausible for a head")
    return found


def why_impossible(affine: np.ndarray, shape: Sequence[int]) -> str:
    """Why no head can lie on this grid, or nothing: such numbers would make endless grids, or lose their millimetres."""
    spacing, (low, high) = spacing_of(affine), POSSIBLE_SPACING_MM
    if spacing.min() < low or spacing.max() > high:
        return f"its voxels measure {_text(spacing)} mm"
    extent = spacing * np.array([*shape, 1, 1][:3])
    if extent.max() > LARGEST_EXTENT_MM:
        return f"it measures {_text(extent)} mm"
    away = distance_from_origin(affine, shape)
    return f"it is {away:.3g} mm from the origin" if away > FARTHEST_MM[1] else ""


def distance_from_origin(affine: np.ndarray, shape: Sequence[int]) -> float:
    """Millimetres from the scanner's origin to the nearest corner of a grid."""
    return float(np.linalg.norm(_corners(affine, shape), axis=1).min())


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Millimetres between voxels along each axis [3]."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of one voxel in millilitres."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000.0


def is_usable(affine: np.ndarray) -> bool:
    """Finite, and no axis flat or parallel to another."""
    if not np.isfinite(affine).all():
        return False
    spacing = spacing_of(affine)
    return bool(spacing.min() > 1e-6 and abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-3)


def is_sheared(affine: np.ndarray) -> bool:
    """Whether two axes are not at right angles."""
    axes = affine[:3, :3] / spacing_of(affine)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > SHEARED)


def corner_distance(
    a: np.ndarray, b: np.ndarray, shape: Sequence[int], shape_of_b: Sequence[int] | None = None
) -> float:
    """The largest distance in mm between the corners of two grids, the second of the same shape unless given."""
    apart = _corners(a, shape) - _corners(b, shape_of_b or shape)
    return float(np.linalg.norm(apart, axis=1).max())


def same_grid(a: Volume, b: Volume) -> bool:
    """Same shape, and corners at the same place."""
    return a.shape == b.shape and corner_distance(a.affine, b.affine, a.shape) <= SAME_PLACE_MM


def reoriented(volume: Volume, axes: str) -> Volume:
    """The same voxels with their axes ordered and flipped to `axes` (such as RAS); nothing is interpolated."""
    from nibabel import orientations

    target = orientations.axcodes2ornt(tuple(axes))
    change = orientations.ornt_transform(orientations.io_orientation(volume.affine), target)
    voxels = np.ascontiguousarray(orientations.apply_orientation(volume.voxels, change))
    affine = volume.affine @ orientations.inv_ornt_aff(change, volume.shape)
    return replace(volume, voxels=voxels, affine=affine)


def finer(affine: np.ndarray, factor: int) -> np.ndarray:
    """The affine of the grid whose voxels are `factor` times smaller along each axis and fill the same field of view: its
    first voxel's middle lies half a difference of the voxels before the old one's."""
    change = np.diag([1 / factor] * 3 + [1.0])
    change[:3, 3] = (1 / factor - 1) / 2
    return np.asarray(affine @ change)


def axes_of(affine: np.ndarray) -> str:
    """Where the axes point, as in RAS: towards right, anterior, superior."""
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(affine))


def axial_axis(affine: np.ndarray) -> int:
    """The array axis that runs from foot to head: axial slices lie across it."""
    return next(axis for axis, towards in enumerate(axes_of(affine)) if towards in "SI")


def slice_heights(affine: np.ndarray, shape: Sequence[int]) -> list[float]:
    """Of each axial slice of a grid [X, Y, Z] the height of its middle, in the scanner's millimetres from foot to head."""
    axis = axial_axis(affine)
    middle = np.tile((np.asarray(shape[:3]) - 1) / 2, (shape[axis], 1))
    middle[:, axis] = np.arange(shape[axis])
    return [round(float(height), 1) for height in middle @ affine[2, :3] + affine[2, 3]]


def resampled(volume: Volume, onto: Volume, *, nearest: bool, outside: float | None = None) -> Volume:
    """`volume` on the grid of `onto`: linear, or nearest for labels; outside its field of view, which ends half a voxel
    beyond the middles of the outermost ones, the value `outside`, else 0 of labels and of an image its smallest.

    Linear interpolation does not average: onto a much coarser grid it skips voxels.
    """
    from scipy import ndimage

    to_source = np.linalg.inv(volume.affine) @ onto.affine
    voxels = ndimage.affine_transform(
        volume.voxels,
        to_source[:3, :3],
        offset=to_source[:3, 3],
        output_shape=onto.shape,
        order=0 if nearest else 1,
        mode="nearest",
    )
    if outside is None:
        outside = 0.0 if nearest else float(volume.voxels.min())
    along = np.ogrid[tuple(map(slice, onto.shape))]
    for row, end in zip(to_source, volume.shape, strict=False):
        place = sum(step * each for step, each in zip(row, along, strict=False)) + row[3]
        voxels[(place < -HALF_A_VOXEL) | (place > end - 1 + HALF_A_VOXEL)] = outside
    return Volume(voxels, onto.affine, volume.warnings, onto.code)


def difference(volume: Volume, reference: Volume) -> str:
    """In what two grids differ, in words."""
    apart = corner_distance(volume.affine, reference.affine, volume.shape, reference.shape)
    shapes = (
        ""
        if volume.shape == reference.shape
        else f"{shape_text(volume.shape)} voxels against {shape_text(reference.shape)}, "
    )
    return f"{shapes}corners up to {apart:.3g} mm apart"


def _corners(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The eight corners [8, 3] of a grid, in mm."""
    ends = np.array([[0, n - 1] for n in [*shape, 1, 1][:3]])
    indices = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.asarray(indices @ affine[:3, :3].T + affine[:3, 3])


def _affine_of(header: Any, name: str) -> np.ndarray:
    """The sform or qform [4, 4]; not finite where a quaternion is longer than one or a spacing below zero."""
    from nibabel.spatialimages import HeaderDataError

    if name == "sform":
        return np.asarray(header.get_sform(), dtype=np.float64)
    if header["pixdim"][0] == 0:  # nifti1.h: then qfac is 1
        header = header.copy()
        header["pixdim"][0] = 1
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (ValueError, ArithmeticError, HeaderDataError):
        return np.full((4, 4), np.nan)


def _millimetres_per_unit(unit: int, affine: np.ndarray, warnings: list[str]) -> float:
    """What to multiply lengths by; a unit that gives voxels no scanner has is not believed."""
    if unit in (0, 2):  # unknown is taken as millimetres, as everywhere
        return 1.0
    factor = MILLIMETRES.get(unit, 0.0)
    spacing, (low, high) = spacing_of(affine) * factor, PLAUSIBLE_SPACING_MM
    if spacing.max() > high or spacing.min() < low:
        warnings.append("the header's unit of length is not valid; millimetres are assumed")
        return 1.0
    warnings.append(f"lengths are in {'metres' if factor > 1 else 'micrometres'} and were converted to millimetres")
    return factor


def _text(values: Sequence[float] | np.ndarray) -> str:
    return "×".join(f"{value:.4g}" for value in values)


def shape_text(shape: Sequence[int]) -> str:
    """A shape in words: 240×240×155."""
    return "×".join(map(str, shape))
