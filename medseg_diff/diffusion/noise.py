"""Each sample owns its noise: it depends on its seed and the step, never on the batch it happens to stand in."""

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.settings import Settings

MASK_64 = 2**64 - 1
VARIANCE_BETWEEN = 2 / 3  # of (1 - s) a + s b for normal a, b and s anywhere in 0 … 1


class NoiseSource(Protocol):
    """Numbers of mean 0 and deviation 1, shaped like `like`, for step 0 (the start of a walk), 1, 2, …"""

    def __call__(self, like: Tensor, step: int) -> Tensor: ...


class GaussianNoise(Settings):
    """Independent standard normal numbers: the noise of all but a few papers."""

    kind: Literal["gaussian"] = "gaussian"

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """[B, C, *S] in `like`'s dtype and on its device."""
        return torch.empty_like(like, memory_format=torch.contiguous_format).normal_(generator=generator)


class SimplexNoise(Settings):
    """Smooth noise of several octaves: the first varies over about `wavelength` voxels, each further one over half of that
    and with `persistence` of its strength (Perlin's simplex noise, 2001; as noise of a diffusion: Wyatt et al., AnoDDPM,
    CVPR Workshops 2022).

    Every field [*S] is brought to mean 0 and deviation 1, so that x_t keeps unit size. Unlike Gaussian noise it covers what
    is larger than a few voxels, a lesion too, at a low noise level.
    """

    kind: Literal["simplex"] = "simplex"
    octaves: int = Field(default=6, ge=1, le=16)
    persistence: float = Field(default=0.8, gt=0, le=1)
    wavelength: float = Field(default=64.0, ge=1, le=10_000)

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """[B, C, *S] in `like`'s dtype and on its device; every sample and channel has a field of its own."""
        count, size = like.shape[:2].numel(), tuple(like.shape[2:])
        fields = torch.zeros(count, math.prod(size), device=like.device)
        for octave in range(self.octaves):
            lattice = _lattice(size, 2.0**octave / self.wavelength, like.device)
            fields += self.persistence**octave * lattice.field(count, generator)
        fields -= fields.mean(dim=1, keepdim=True)
        deviation = fields.square().mean(dim=1, keepdim=True).sqrt()
        return (fields / deviation.clamp(min=1e-6)).view(like.shape).to(like.dtype)


class CoarseNoise(Settings):
    """Blobs: normal numbers at the points of a grid of `cells` along each axis, and straight between them (Kascenas et al.,
    Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI, MIDL 2022).

    The grid ends where it begins, and is shifted by chance, so that no voxel stands out and no seam is seen. Between points
    a mean varies less than they do: that is divided out, and every voxel has deviation 1.
    """

    kind: Literal["coarse"] = "coarse"
    cells: int = Field(default=16, ge=2, le=1000)

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """[B, C, *S] in `like`'s dtype and on its device; every sample and channel has a field of its own."""
        count, size, device = like.shape[:2].numel(), tuple(like.shape[2:]), like.device
        fields = torch.randn(count, *[self.cells] * len(size), generator=generator, device=device)
        shifts = self.cells * torch.rand(len(size), count, 1, generator=generator, device=device)
        for axis, (voxels, shift) in enumerate(zip(size, shifts, strict=True), start=1):
            places = torch.arange(voxels, device=device) * (self.cells / voxels) + shift  # [count, voxels], in cells
            behind = places.floor()
            share = _along(places - behind, axis, fields.ndim)
            before, after = (
                fields.take_along_dim(_along((behind.long() + step) % self.cells, axis, fields.ndim), dim=axis)
                for step in (0, 1)
            )
            fields = before + share * (after - before)
        return (fields * VARIANCE_BETWEEN ** (-len(size) / 2)).view(like.shape).to(like.dtype)


AnyNoise = Annotated[GaussianNoise | SimplexNoise | CoarseNoise, Field(discriminator="kind")]


class SeededNoise:
    """One seed a sample: row i of every draw is a function of (seeds[i], step, shape of a sample) and the device alone."""

    def __init__(self, seeds: Sequence[int], kind: AnyNoise = GaussianNoise()) -> None:
        self.seeds, self.kind = tuple(seeds), kind

    def __call__(self, like: Tensor, step: int) -> Tensor:
        """[B, C, *S] noise in `like`'s dtype, drawn on its device; B must be the number of seeds."""
        assert len(like) == len(self.seeds), f"{len(self.seeds)} seeds for a batch of {len(like)}"
        generator = torch.Generator(like.device)
        return torch.cat(
            [
                self.kind.draw(row, generator.manual_seed(_scramble(seed, step)))
                for row, seed in zip(like.split(1), self.seeds, strict=True)
            ]
        )


def fresh_noise(like: Tensor, step: int) -> Tensor:
    """Noise from torch's global generator, for a walk whose samples have no names."""
    return torch.randn_like(like)


def _along(values: Tensor, axis: int, dims: int) -> Tensor:
    """[N, V] as [N, 1 …, V, … 1] with V along `axis` of `dims` axes."""
    return values.view(len(values), *(values.shape[1] if each == axis else 1 for each in range(1, dims)))


def _scramble(seed: int, step: int) -> int:
    """splitmix64: neighbouring steps get unrelated seeds (torch's CPU generator reads the low 32 bits only)."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK_64
    return (z ^ (z >> 31)) >> 1  # 63 bits: generators take signed seeds


class _Lattice(NamedTuple):
    """Where the V voxels of a grid lie among simplices, the same for every draw: `corners` [D + 1, V] are the lattice points
    round each voxel, of `points` in all, and `weights` [D + 1, D, V] what the slopes that stand there count for."""

    corners: Tensor
    weights: Tensor
    points: int

    def field(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, V]: random slopes stand at the lattice points, and their planes fade out with the distance."""
        dims, device = self.weights.shape[1], self.weights.device
        slopes = torch.randn(count, dims, self.points, generator=generator, device=device)
        slopes /= slopes.norm(dim=1, keepdim=True).clamp(min=1e-6)
        total = torch.zeros(count, self.corners.shape[1], device=device)
        for corner, weight in zip(self.corners, self.weights, strict=True):
            for axis in range(dims):  # plane by plane: a gather of whole vectors is slower
                total += slopes[:, axis].gather(1, corner.expand(count, -1)) * weight[axis]
        return total


@functools.lru_cache(maxsize=16)  # the octaves of one or two sizes; a walk asks for the same ones at every step
def _lattice(size: tuple[int, ...], frequency: float, device: torch.device) -> _Lattice:
    """Of a grid of `size` whose neighbours are `frequency` apart (Gustavson, Simplex Noise Demystified, 2005, for any D)."""
    dims = len(size)
    axes = [torch.arange(n, dtype=torch.float32) * frequency for n in size]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # [D, V]
    skew, unskew = ((dims + 1) ** 0.5 - 1) / dims, (1 - (dims + 1) ** -0.5) / dims
    cell = (places + skew * places.sum(0)).floor()
    inside = places - cell + unskew * cell.sum(0)
    descending = inside.argsort(dim=0, descending=True, stable=True)
    order = descending.argsort(dim=0)  # 0: the axis that is stepped along first
    cell = cell.long() - cell.amin(dim=1, keepdim=True).long()
    extent = (cell.amax(dim=1) + 2).tolist()
    corners, weights = [], []
    for corner in range(dims + 1):
        step = (order < corner).long()
        away = inside - step + corner * unskew
        weights.append((0.5 - away.square().sum(0)).clamp(min=0) ** 4 * away)
        number = torch.zeros_like(cell[0])
        for axis, points in enumerate(extent):
            number = number * points + cell[axis] + step[axis]
        corners.append(number)
    return _Lattice(torch.stack(corners).to(device), torch.stack(weights).to(device), math.prod(extent))
