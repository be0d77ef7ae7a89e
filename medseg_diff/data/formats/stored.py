"""Voxels as they lie in a file, made numbers slab by slab: what is wrong is found before much memory is spent."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from medseg_diff.errors import ImageError

MOST_VOXELS = 2**29  # 0.25 mm over a whole head is 0.4 of it
SLAB = 2**22  # voxels
LARGEST_VALUE = 1e18  # its square is still a float32
LARGEST_LABEL = np.iinfo(np.int16).max
INTEGRAL = 1e-3  # how far a label may lie from a whole number: what a slope rounds


@dataclass(frozen=True)
class Stored:
    """Real numbers of any type in the shape of the header, a slope and intercept to apply, the affine [4, 4] in RAS
    millimetres, and what was doubtful."""

    voxels: np.ndarray
    affine: np.ndarray
    warnings: tuple[str, ...] = ()
    slope: float = 1.0
    intercept: float = 0.0

    def slabs(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The scaled voxels, float64 or as stored, in pieces along the last axis."""
        last = self.voxels.shape[-1]
        step = max(1, SLAB * last // max(self.voxels.size, 1))
        for start in range(0, last, step):
            place = slice(start, start + step)
            slab = self.voxels[..., place]
            if (self.slope, self.intercept) != (1.0, 0.0):
                with np.errstate(over="ignore", invalid="ignore"):  # what is too large is found as not finite
                    slab = slab.astype(np.float64) * self.slope + self.intercept
            yield place, slab

    def image(self, *, constant: bool = False) -> np.ndarray:
        """Float32 voxels, finite; all the same only if `constant` allows it. Raises: ImageError."""
        if not constant and self.voxels.size:
            low, high = self._range()
            if low == high:
                raise ImageError(f"is constant: every voxel is {low:g}", fix="check how it was exported")
        voxels = np.empty(self.voxels.shape, dtype=np.float32)
        for place, slab in self.slabs():
            self._check(slab)
            voxels[..., place] = slab
        return voxels

    def labels(self) -> np.ndarray:
        """Int16 voxels that are whole numbers from 0 on. Raises: ImageError."""
        voxels = np.empty(self.voxels.shape, dtype=np.int16)
        apart, low, high = 0.0, np.inf, -np.inf
        for place, slab in self.slabs():
            self._check(slab)
            whole = np.rint(slab)
            apart = max(apart, float(np.abs(slab - whole).max()))
            low, high = min(low, float(whole.min())), max(high, float(whole.max()))
            if apart <= INTEGRAL and low >= 0 and high <= LARGEST_LABEL:
                voxels[..., place] = whole
        if apart > INTEGRAL:
            raise ImageError(f"labels are not whole numbers (off by up to {apart:.3g})", fix="resample masks nearest")
        if low < 0 or high > LARGEST_LABEL:
            raise ImageError(f"labels run from {low:g} to {high:g}", fix=f"use 0 to {LARGEST_LABEL}")
        return voxels

    def _check(self, slab: np.ndarray) -> None:
        """Raises: ImageError where numbers cannot be computed with; the count is that of the whole image."""
        if slab.dtype.kind != "f" and slab.dtype.itemsize < 8:
            return
        if not np.isfinite(slab).all():
            count = sum(int(part.size - np.isfinite(part).sum()) for _, part in self.slabs())
            raise ImageError(f"{count:,} voxels are not finite numbers", fix="set them to the background value")
        if max(float(slab.max()), -float(slab.min())) > LARGEST_VALUE:
            raise ImageError("holds numbers beyond 1e18, not finite in a sum of squares", fix="rescale it")

    def _range(self) -> tuple[float, float]:
        """Smallest and largest voxel as float32; once two differ it looks no further, and they are not the extremes."""
        low, high = np.inf, -np.inf
        for _, slab in self.slabs():
            self._check(slab)
            low, high = min(low, float(np.float32(slab.min()))), max(high, float(np.float32(slab.max())))
            if low != high:
                break
        return low, high


def check_count(shape: tuple[int, ...]) -> None:
    """Raises: ImageError where there are more voxels than any head has, before a byte is set aside for them."""
    if int(np.prod(shape, dtype=object)) > MOST_VOXELS:
        text = "×".join(map(str, shape))
        raise ImageError(f"states {text} voxels, more than a head can have", fix="crop or downsample it")
