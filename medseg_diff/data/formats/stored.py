"""Voxels as they lie in a file, made numbers slab by slab: what is wrong is found before much memory is spent."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medseg_diff.data.formats.stream import Content
from medseg_diff.data.geometry import shape_text
from medseg_diff.errors import ImageError

MOST_VOXELS = 2**29  # 0.25 mm over a whole head is 0.4 of it
SLAB = 2**20  # voxels
LARGEST_VALUE = 1e18  # its square is still a float32
LARGEST_LABEL = np.iinfo(np.int16).max
ALMOST_NONE, NARROW = 1e-3, 1e-5  # share of voxels that make a scan; span below which a scale would divide by nothing
FEW_VALUES, MANY_VOXELS = 8, 1000  # so few different numbers in so many voxels are labels, not a scan
INTEGRAL = 1e-3  # how far a label may lie from a whole number: what a slope rounds

Voxels = Callable[[int], Iterator[np.ndarray]]  # a number → pieces of so many voxels, the first axis running fastest


@dataclass(frozen=True)
class Stored:
    """Real numbers of any type, to be read in pieces, the `shape` of the header, a slope and intercept to apply, the affine
    [4, 4] in RAS millimetres with the code of its space, and what was doubtful."""

    voxels: Voxels
    shape: tuple[int, ...]
    affine: np.ndarray
    warnings: tuple[str, ...] = ()
    slope: float = 1.0
    intercept: float = 0.0
    code: int = 1

    def volumes(self) -> Iterator["Stored"]:
        """Those along the last axis, one after the other."""
        for piece in self.voxels(math.prod(self.shape[:-1])):
            yield replace(self, voxels=in_memory(piece), shape=self.shape[:-1])

    def slabs(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The scaled voxels, float64 or as stored, in pieces along the last axis."""
        *first, last = self.shape
        step, start = max(1, SLAB * last // math.prod(self.shape)), 0
        for piece in self.voxels(math.prod(first) * step):
            slab = piece.reshape((*first, -1), order="F")
            if (self.slope, self.intercept) != (1.0, 0.0):
                with np.errstate(over="ignore", invalid="ignore"):  # what is too large is found as not finite
                    slab = slab.astype(np.float64) * self.slope + self.intercept
            yield slice(start, start + slab.shape[-1]), slab
            start += step

    def image(self, *, constant: bool = False) -> np.ndarray:
        """Float32 voxels, finite; all the same only if `constant` allows it. Raises: ImageError."""
        voxels, first, seen = None, None, _Seen()
        for place, slab in self.slabs():
            seen.look_at(slab)
            with np.errstate(over="ignore", invalid="ignore"):  # which `seen` tells
                numbers = slab.astype(np.float32)
            seen.span(numbers.min(), numbers.max())
            first = numbers[..., :1].ravel()[:1] if first is None else first
            if voxels is None and not (numbers.view(np.int32) == first.view(np.int32)).all():  # 0 is not -0
                voxels = np.empty(self.shape, dtype=np.float32)  # until here one number stood for all
                voxels[..., : place.start] = first
            if voxels is not None:
                voxels[..., place] = numbers
        seen.check()
        if seen.low == seen.high and not constant:
            raise ImageError(f"is constant: every voxel is {seen.low:g}", fix="check how it was exported")
        return np.full(self.shape, first, dtype=np.float32) if voxels is None else voxels

    def labels(self) -> np.ndarray:
        """Int16 voxels that are whole numbers from 0 on. Raises: ImageError."""
        voxels, seen, apart = np.empty(self.shape, dtype=np.int16), _Seen(), 0.0
        for place, slab in self.slabs():
            if not seen.look_at(slab):
                continue
            whole = np.rint(slab)
            apart = max(apart, float(np.abs(slab - whole).max()))
            seen.span(whole.min(), whole.max())
            if apart <= INTEGRAL and seen.low >= 0 and seen.high <= LARGEST_LABEL:
                voxels[..., place] = whole
        seen.check()
        if apart > INTEGRAL:
            raise ImageError(
                f"labels are not whole numbers (off by up to {apart:.3g})",
                fix="resample masks by nearest neighbour",
            )
        if seen.low < 0 or seen.high > LARGEST_LABEL:
            raise ImageError(f"labels run from {seen.low:g} to {seen.high:g}", fix=f"use 0 to {LARGEST_LABEL}")
        return voxels


class _Seen:
    """What was seen of an image slab by slab, to be judged at its end: a file that is damaged says other things first."""

    def __init__(self) -> None:
        self.not_finite, self.too_large, self.low, self.high = 0, False, math.inf, -math.inf

    def look_at(self, slab: np.ndarray) -> bool:
        """Whether one can compute with these numbers."""
        if slab.dtype.kind != "f" and slab.dtype.itemsize < 8:
            return True
        self.not_finite += int(slab.size - np.isfinite(slab).sum())
        self.too_large |= max(float(slab.max()), -float(slab.min())) > LARGEST_VALUE
        return not (self.not_finite or self.too_large)

    def span(self, low: Any, high: Any) -> None:
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def check(self) -> None:
        """Raises: ImageError where one cannot."""
        if self.not_finite:
            found = f"{self.not_finite:,} voxels are not finite numbers"
            raise ImageError(found, fix="set them to the background value")
        if self.too_large:
            raise ImageError("holds numbers beyond 1e18, whose squares overflow", fix="rescale it")


def in_memory(voxels: np.ndarray) -> Voxels:
    """An array as it would be read."""
    flat = voxels.ravel(order="F")
    return lambda count: (flat[start : start + count] for start in range(0, flat.size, count))


def in_file(content: Content, dtype: np.dtype[Any]) -> Voxels:
    """Numbers of a type out of a file's bytes."""
    return lambda count: (np.frombuffer(piece, dtype) for piece in content(count * dtype.itemsize))


def parts_of(voxels: np.ndarray) -> list[np.ndarray]:
    """Views of an array, none of them large, so that what is computed of them is not either."""
    return np.array_split(voxels, min(len(voxels), -(-voxels.size // SLAB)))


def values_in(voxels: np.ndarray, *, most: float = math.inf) -> set[float]:
    """The different numbers of an array; once there are more than `most`, it looks no further."""
    found: set[float] = set()
    for part in parts_of(voxels):
        found.update(np.unique(part).tolist())
        if len(found) > most:
            break
    return found


def unlike_a_scan(voxels: np.ndarray) -> list[str]:
    """What is odd about the voxels of an image, in words."""
    said = []
    unlike = sum(int(np.count_nonzero(part != voxels.flat[0])) for part in parts_of(voxels))
    if voxels.size >= MANY_VOXELS and unlike < ALMOST_NONE * voxels.size:
        said.append(f"is almost constant: {unlike:,} of {voxels.size:,} voxels differ from the first")
    if (span := float(np.ptp(voxels))) < NARROW:
        said.append(f"its voxels span only {span:.2g}: scale them up, or contrast is lost")
    sample = voxels.ravel()[:: max(1, voxels.size // 10_000)]
    if voxels.size >= MANY_VOXELS and len(np.unique(sample)) <= FEW_VALUES:
        count = len(values_in(voxels, most=FEW_VALUES))
        if count <= FEW_VALUES:
            said.append(f"holds only {count} different values, like a mask")
    return said


def check_count(shape: tuple[int, ...]) -> None:
    """Raises: ImageError where there are more voxels than any head has, before a byte is set aside for them."""
    if int(np.prod(shape, dtype=object)) > MOST_VOXELS:
        raise ImageError(
            f"states {shape_text(shape)} voxels, too many for a scan of a head", fix="crop or downsample it"
        )
