"""A part of an image that is hidden from a denoiser: which part, and what is left to see.

A denoiser that is shown the rest says what belongs into the gap; one that learned from healthy tissue alone says what
healthy tissue would be there.
"""

import math
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
    """What is hidden from a denoiser while it learns. `width`: voxels that a gap spans, about."""

    @property
    def width(self) -> float: ...

    def drawn(self, noise: Tensor, brain: Tensor, shares: Tensor) -> Tensor:
        """A part of each brain [B, 1, *S], from `noise` like it and two uniform numbers a sample, `shares` [2, B]."""
        ...


class Patches(NamedTuple):
    """Smooth patches, all together between the HIDDEN_SHARES of a brain; all samples of a batch have one width."""

    width: float

    def drawn(self, noise: Tensor, brain: Tensor, shares: Tensor) -> Tensor:
        width = self.width * between(PATCH_WIDTHS, float(shares[1, 0]))
        share = between(HIDDEN_SHARES, shares[0].to(brain.device, non_blocking=True))
        return patches(noise, brain, width=width, share=share)


class Box(NamedTuple):
    """One box of `side` voxels around any voxel of the brain."""

    side: int

    @property
    def width(self) -> float:
        return float(self.side)

    def drawn(self, noise: Tensor, brain: Tensor, shares: Tensor) -> Tensor:
        middle = highest(noise.masked_fill(~brain, -math.inf), torch.ones(len(brain), device=brain.device)) & brain
        return grown(middle, self.side) & brain


def between(ends: tuple[float, float], share: Share) -> Share:
    """The value, or values, at a share of the way from the first end to the second."""
    return ends[0] + share * (ends[1] - ends[0])


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


def grown(mask: Tensor, side: int = 3) -> Tensor:
    """All that boxes of `side` voxels around those of a mask [B, 1, *S] cover: with 3 every voxel beside it, corners too."""
    largest = {2: functional.max_pool2d, 3: functional.max_pool3d}[mask.ndim - 2]
    before = side // 2
    around = functional.pad(mask.float(), (before, side - 1 - before) * (mask.ndim - 2))
    return largest(around, side, stride=1) > 0
