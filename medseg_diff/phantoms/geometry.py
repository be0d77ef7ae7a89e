"""Shapes and smooth noise in millimetres, from which phantoms are built on a grid of any resolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.floating]  # of 32 bits; numpy's types lose the width in mixed arithmetic
FIELD_OF_VIEW_MM = (192.0, 192.0, 144.0)
NOISE_HALF_WIDTH_MM = 130.0  # noise is defined on a cube of this half width and constant beyond it


class Points(NamedTuple):
    """RAS positions in mm, three arrays that broadcast together (an open mesh, or one value a voxel)."""

    x: FloatArray
    y: FloatArray
    z: FloatArray

    def folded(self) -> "Points":
        """The same positions with the left half mirrored onto the right: anatomy is written once for both."""
        return Points(np.abs(self.x), self.y, self.z)

    def inside(self, mask: NDArray[np.bool_]) -> "Points":
        """One value for each voxel of `mask`."""
        return Points(*(np.broadcast_to(axis, mask.shape)[mask] for axis in self))


@dataclass(frozen=True)
class Grid:
    """Isotropic voxels centred on the head; array axes run to the left, the back and the top, as in BraTS."""

    shape: tuple[int, int, int]
    spacing_mm: float

    @classmethod
    def over_head(cls, shape: tuple[int, int, int]) -> Self:
        """The finest isotropic grid of `shape` that covers the field of view."""
        return cls(shape, max(extent / count for extent, count in zip(FIELD_OF_VIEW_MM, shape, strict=True)))

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel index to RAS mm, [4, 4]."""
        step = np.array([-1.0, -1.0, 1.0]) * self.spacing_mm
        affine = np.diag([*step, 1.0])
        affine[:3, 3] = -step * (np.array(self.shape) - 1) / 2
        return affine

    @property
    def voxel_ml(self) -> float:
        return self.spacing_mm**3 / 1000

    def points(self) -> Points:
        """RAS positions of the voxel centres as an open mesh."""
        axes = [(self.affine[k, k] * np.arange(self.shape[k]) + self.affine[k, 3]).astype(np.float32) for k in range(3)]
        return Points(axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :])

    def share_inside(self, distance_mm: FloatArray) -> FloatArray:
        """Partial volume: the share of a voxel on the positive side of a surface at a signed distance."""
        return np.clip(distance_mm / self.spacing_mm + 0.5, 0, 1)

    def share_of_slab(self, distance_mm: FloatArray, half_width_mm: FloatArray | float) -> FloatArray:
        """Partial volume: the share of a voxel within `half_width_mm` of a sheet at an unsigned distance."""
        return self.share_inside(half_width_mm - distance_mm) - self.share_inside(-half_width_mm - distance_mm)

    def noise(self, rng: np.random.Generator, scale_mm: float) -> FloatArray:
        """Smooth Gaussian noise of mean 0 and variance 1 on the grid; the same function of space at any resolution."""
        count = int(np.ceil(2 * NOISE_HALF_WIDTH_MM / scale_mm)) + 4
        values = rng.standard_normal((count,) * 3, dtype=np.float32)  # cubic B-spline coefficients
        for axis, positions in enumerate(self.points()):
            values = _spline_along(values, axis, positions.ravel(), scale_mm)
        return values


def sampled(field: FloatArray, of: Grid, at: Points) -> FloatArray:
    """Values of a field on the grid `of` at scattered points (trilinear)."""
    origin, step = of.affine[:3, 3], np.diag(of.affine)[:3]
    places = np.stack([(axis - float(o)) / float(s) for axis, o, s in zip(at, origin, step, strict=True)])
    return ndimage.map_coordinates(field, places, order=1, mode="nearest", output=np.float32)


def _spline_along(values: FloatArray, axis: int, positions_mm: FloatArray, scale_mm: float) -> FloatArray:
    """Evaluate a cubic B-spline along one axis. Sums, not BLAS: the bytes must not depend on the thread count."""
    limit = NOISE_HALF_WIDTH_MM
    place = (np.clip(positions_mm, -limit, limit) + limit) / scale_mm
    knot = np.floor(place).astype(np.intp)
    t = (place - knot).astype(np.float32)
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3])
    weights /= np.sqrt((weights**2).sum(axis=0))
    column = [1, 1, 1]
    column[axis] = -1
    total = values.take(knot, axis) * weights[0].reshape(column)
    for k in (1, 2, 3):
        total += values.take(knot + k, axis) * weights[k].reshape(column)
    return total


def ellipsoid(at: Points, centre: Sequence[float], radii: Sequence[float]) -> FloatArray:
    """Distance to an ellipsoid in mm, positive inside; exact on the surface, first order near it."""
    parts = [(axis - c) / r for axis, c, r in zip(at, centre, radii, strict=True)]
    length = np.sqrt(sum(part**2 for part in parts) + 1e-6)
    slope = np.sqrt(sum((part / r) ** 2 for part, r in zip(parts, radii, strict=True)) + 1e-6 / max(radii) ** 2)
    return (length * (1 - length) / slope).astype(np.float32)


def tube(at: Points, nodes: Sequence[Sequence[float]]) -> FloatArray:
    """Distance to a chain of round cones through `nodes` (x, y, z, radius) in mm, positive inside."""
    distances = []
    for (*start, radius), (*end, end_radius) in pairwise(nodes):
        run = [e - s for s, e in zip(start, end, strict=True)]
        offsets = [axis - s for axis, s in zip(at, start, strict=True)]
        along = sum(offset * r for offset, r in zip(offsets, run, strict=True)) / sum(r * r for r in run)
        along = np.clip(along, 0, 1)
        away = np.sqrt(sum((offset - along * r) ** 2 for offset, r in zip(offsets, run, strict=True)))
        distances.append(radius + along * (end_radius - radius) - away)
    return np.maximum.reduce(distances).astype(np.float32)


def smooth_union(a: FloatArray, b: FloatArray, blend_mm: float) -> FloatArray:
    """The union of two shapes (distances positive inside) with a rounded seam."""
    share = np.clip(0.5 + 0.5 * (a - b) / blend_mm, 0, 1)
    return b + (a - b) * share + blend_mm * share * (1 - share)


def soft_step(value: FloatArray) -> FloatArray:
    """A smooth rise from 0 at -1 to 1 at +1."""
    t = np.clip(0.5 + 0.5 * value, 0, 1)
    return t * t * (3 - 2 * t)
