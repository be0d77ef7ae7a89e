"""A part of an image that is hidden from a denoiser: which part, and what is left to see.

A denoiser that is shown the rest says what belongs into the gap; one that learned from healthy tissue alone says what
healthy tissue would be there.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from medseg_diff.diffusion.condition import Condition

REACH = 3.0  # standard deviations that a blur looks to either side
PATCH_WIDTHS = (0.5, 1.5)  # times the width of `Patches` that they are drawn with
HIDDEN_SHARES = (0.1, 0.6)  # of a brain, in `Patches`
Share = TypeVar("Share", float, Tensor)


class Hiding(Protocol):
    """What is hidden from a denoiser while it learns."""

    def span(self, size: Sequence[int]) -> float:
        """Voxels that a gap spans, about, in an image of that size."""
        ...

    def drawn(self, noise: Tensor, brain: Tensor, shares: Tensor) -> Tensor:
        """A part of each brain [B, 1, *S], from `noise` like it and two uniform numbers a sample, `shares` [2, B]."""
        ...


class Patches(NamedTuple):
    """Smooth patches, all together between the HIDDEN_SHARES of a brain; all samples of a batch have one width."""

    width: float

    def span(self, size: Sequence[int]) -> float:
        return self.width

    def drawn(self, noise: Tensor, brain: Tensor, shares: Tensor) -> Tensor:
        width = self.width * between(PATCH_WIDTHS, float(shares[1, 0]))
        share = between(HIDDEN_SHARES, shares[0].to(brain.device, non_blocking=True))
        return patches(noise, brain, width=width, share=share)


class Box(NamedTuple):
    """The brain in one box, around any of its voxels, that takes a `share` of each side of the image."""

    share: float

    def sides(self, size: Sequence[int]) -> list[int]:
        """Of the box, in voxels."""
        return [math.ceil(self.share * n) for n in size]

    def span(self, size: Sequence[int]) -> float:
        return float(min(self.sides(size)))

    def drawn(self, noise: Tensor, brain: Tensor, shares: Tensor) -> Tensor:
        one = torch.ones(len(brain), dtype=torch.long, device=brain.device)
        middle = highest(noise.masked_fill(~brain, -math.inf), one) & brain
        return grown(middle, self.sides(brain.shape[2:])) & brain

    def all(self, brain: Tensor) -> Iterator[Tensor]:
        """Boxes side by side that cover a brain [B, 1, *S], evenly spaced; 1 / share of them along each axis, rounded up."""
        size = brain.shape[2:]
        sides = self.sides(size)
        starts = [_evenly(n, side, math.ceil(1 / self.share)) for n, side in zip(size, sides, strict=True)]
        for corner in itertools.product(*starts):
            box = torch.zeros_like(brain)
            place = [slice(start, start + side) for start, side in zip(corner, sides, strict=True)]
            box[:, :, *place] = True
            yield box & brain


def between(ends: tuple[float, float], share: Share) -> Share:
    """The value, or values, at a share of the way from the first end to the second."""
    return ends[0] + share * (ends[1] - ends[0])


def _evenly(size: int, side: int, count: int) -> list[int]:
    """Where `count` pieces of `side` begin that cover `size`."""
    return [round(i * (size - side) / max(count - 1, 1)) for i in range(count)]


def shown(image: Tensor, hidden: Tensor) -> Condition:
    """All that is left of image [B, C, *S] without `hidden` [B, 1, *S] booleans, as [B, C + 1, *S]: 0 where it is hidden,
    and where that is."""
    return Condition(image=torch.cat([torch.where(hidden, 0, image), hidden.to(image.dtype)], dim=1))


def brain_of(image: Tensor, background: float) -> Tensor:
    """Where any channel of an image [B, C, *S] is above its background, [B, 1, *S]."""
    return (image > background).any(dim=1, keepdim=True)


def patches(noise: Tensor, among: Tensor, *, width: float, share: float | Tensor = 0.5) -> Tensor:
    """Smooth patches of the voxels `among` [B, 1, *S], a `share` (or [B]) of each sample's: where `noise` [B, 1, *S] of
    independent numbers, blurred over `width` voxels, is highest.

    What is left of `among` are patches as well, so that half and half cover it.
    """
    field = blurred(noise, width).masked_fill(~among, -math.inf)
    return highest(field, (among.flatten(1).sum(dim=1) * share).round().long()) & among


def highest(values: Tensor, count: Tensor) -> Tensor:
    """Where the `count` [B] highest of a sample's values [B, 1, *S] are, as booleans."""
    rank = values.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < count[:, None]).view(values.shape)


def blurred(values: Tensor, width: float) -> Tensor:
    """A Gaussian mean of [B, 1, *S] over `width` voxels (standard deviation) along every axis, zeros beyond the edges.

    It is computed in the values' own precision, inside of an autocast as well.
    """
    reach = max(1, math.ceil(REACH * width))
    offsets = torch.arange(-reach, reach + 1, device=values.device, dtype=values.dtype)
    kernel = torch.exp(-0.5 * (offsets / width) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    for axis in range(2, values.ndim):
        lines = values.movedim(axis, -1)
        with torch.autocast(values.device.type, enabled=False):
            smooth = functional.conv1d(lines.reshape(-1, 1, lines.shape[-1]), kernel, padding=reach)
        values = smooth.view(lines.shape).movedim(-1, axis)
    return values


def blurred_inside(values: Tensor, inside: Tensor, width: float) -> Tensor:
    """The same over the voxels `inside` [B, 1, *S] alone, 0 outside: what lies there neither counts nor darkens the edge."""
    weight = inside.to(values.dtype)
    return blurred(values * weight, width) / blurred(weight, width).clamp(min=1e-6) * weight


def grown(mask: Tensor, sides: int | Sequence[int] = 3) -> Tensor:
    """All that boxes of these sides around the voxels of a mask [B, 1, *S] cover: with 3 all beside it, corners too."""
    dims = mask.ndim - 2
    sides = [sides] * dims if isinstance(sides, int) else list(sides)
    around = [part for side in reversed(sides) for part in (side // 2, side - 1 - side // 2)]
    largest = {2: functional.max_pool2d, 3: functional.max_pool3d}[dims]
    covered = functional.pad(mask.float(), around)
    for axis, side in enumerate(sides):  # a box is as good axis by axis, and a large one cheaper
        covered = largest(covered, [side if each == axis else 1 for each in range(dims)], stride=1)
    return covered > 0


def without_holes(mask: Tensor) -> Tensor:
    """A mask [B, 1, *S] and what it encloses: all that cannot be reached from the edges of the image in as many steps as
    its longest side has voxels. Nothing is asked of the device, so a GPU need not be waited for."""
    frame, inside = (1, 1) * (mask.ndim - 2), [slice(1, -1)] * (mask.ndim - 2)
    free = ~functional.pad(mask, frame)
    reached = ~functional.pad(torch.ones_like(mask), frame)
    for _ in range(max(mask.shape[2:])):
        reached = grown(reached) & free
    return ~reached[:, :, *inside]
