"""Where a member's mask ends: its own at one half, or the ensemble's probability at a smooth surface of thresholds.

A walk's last clean mask is an expectation and not a sample. Cut at one half, every member draws the middle of what may be,
and members differ too little, or as the noise has it. Where a random surface, uniform between 0 and 1 at every voxel, cuts
the mean of all members, a voxel is inside as often as the ensemble says; what is random is smooth over millimetres, as a
hand is that draws a border (a Gaussian copula; Lê et al., Sampling image segmentations for uncertainty quantification,
2016, draw borders alike). So the walks say how probable each voxel is, and the surfaces which voxels go together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.seeds import seed_of
from medseg_diff.settings import Settings

FINE = 2.0  # nodes to a deviation of the surface: between them it is straight


class HalfCut(Settings):
    """Every member by itself, at one half, as the papers have it."""

    kind: Literal["half"] = "half"


class SpreadCut(Settings):
    """The mean of all members at a surface for each, Gaussian before it is made uniform, smooth over `length_mm` (a
    deviation).

    A share `own` of its variance is one number for the whole volume, spread evenly over the members: some draw everything
    generously. 1: one threshold a member, (k + 1/2) / n.
    """

    kind: Literal["spread"] = "spread"
    own: float = Field(default=0.25, ge=0, le=1)
    length_mm: float = Field(default=6.0, gt=0, le=100)

    def surfaces(self, members: int, size: Sequence[int], spacing_mm: Sequence[float], seed: int) -> "Surfaces":
        """Those of the members of a volume with sides `size` and steps `spacing_mm`; a function of the seed alone."""
        dealt = (torch.from_numpy(np.random.default_rng(seed).permutation(members)) + 0.5) / members
        levels = torch.special.ndtri(dealt.double()).tolist()
        if self.own == 1:
            return Surfaces((), levels, own=1.0)
        deviations = [self.length_mm / mm for mm in spacing_mm]
        noise = [SmoothNoise.drawn(size, deviations, seed_of(seed, member)) for member in range(members)]
        return Surfaces(noise, levels, own=self.own)


AnyCut = Annotated[HalfCut | SpreadCut, Field(discriminator="kind")]
AT_HALF = HalfCut()


@dataclass(frozen=True)
class Surfaces:
    """The thresholds of every member, worked out where they are asked for: what is kept is small. `levels` and `noise`
    (where own < 1) are of standard normals."""

    noise: Sequence["SmoothNoise"]
    levels: Sequence[float]
    own: float

    def plane(self, member: int, z: int) -> Tensor:
        """Those of slice z along the third axis, float32 [X, Y], or [1, 1] where they are all the same."""
        return self._uniform(member, self.noise[member].plane(z) if self.noise else torch.zeros(1, 1))

    def whole(self, member: int) -> Tensor:
        """Those of the volume, [X, Y, Z], or [1, 1, 1]."""
        return self._uniform(member, self.noise[member].whole() if self.noise else torch.zeros(1, 1, 1))

    def _uniform(self, member: int, noise: Tensor) -> Tensor:
        return torch.special.ndtr(self.own**0.5 * self.levels[member] + (1 - self.own) ** 0.5 * noise)


@dataclass(frozen=True)
class SmoothNoise:
    """Gaussian noise of mean 0 and variance 1 on a grid of `size`, by its values at `nodes`, `steps` voxels apart."""

    nodes: Tensor
    steps: Sequence[float]
    size: Sequence[int]

    @classmethod
    def drawn(cls, size: Sequence[int], deviations: Sequence[float], seed: int) -> "SmoothNoise":
        """Smooth over these deviations in voxels along each axis."""
        from scipy import ndimage

        steps = [max(1.0, deviation / FINE) for deviation in deviations]
        nodes = [int(np.ceil((n - 1) / step)) + 2 for n, step in zip(size, steps, strict=True)]
        widths = [deviation / step for deviation, step in zip(deviations, steps, strict=True)]
        impulse = np.zeros(nodes)
        impulse[(0,) * len(nodes)] = 1
        # Round about, so that it varies as much at an edge as in the middle.
        noise, one = (
            ndimage.gaussian_filter(each, widths, mode="wrap")
            for each in (np.random.default_rng(seed).standard_normal(nodes), impulse)
        )
        return cls(torch.from_numpy(noise / np.linalg.norm(one)).float(), steps, tuple(size))

    def whole(self) -> Tensor:
        """float32 [*size]."""
        return _between(self.nodes, self.steps, self.size)

    def plane(self, z: int) -> Tensor:
        """Its slice z along the last axis, [*size[:-1]]."""
        below, share = divmod(z / self.steps[-1], 1.0)
        nodes = torch.lerp(self.nodes[..., int(below)], self.nodes[..., int(below) + 1], share)
        return _between(nodes, self.steps[:-1], self.size[:-1])


def _between(nodes: Tensor, steps: Sequence[float], size: Sequence[int]) -> Tensor:
    """What linear interpolation makes of nodes that lie `steps` voxels apart, the first at voxel 0: [*size]."""
    grids = [torch.arange(n) / step for n, step in zip(size, steps, strict=True)]
    for axis, places in enumerate(grids):
        below = places.floor().long()
        share = (places - below).view(-1, *(1,) * (nodes.ndim - axis - 1))
        nodes = torch.lerp(nodes.index_select(axis, below), nodes.index_select(axis, below + 1), share)
    return nodes


def recentred(probability: Tensor, threshold: Tensor) -> Tensor:
    """The probability with its odds shifted so that the threshold becomes one half; 0 and 1 stay."""
    inside, outside = probability * (1 - threshold), (1 - probability) * threshold
    return inside / (inside + outside)
