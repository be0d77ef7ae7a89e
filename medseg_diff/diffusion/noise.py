"""Each sample owns its noise: it depends on its seed and the step, never on the batch it happens to stand in."""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from medseg_diff.settings import Settings

MASK_64 = 2**64 - 1


class NoiseSource(Protocol):
    """Numbers of mean 0 and deviation 1, shaped like `like`, for step 0 (the start of a walk), 1, 2, …"""

    def __call__(self, like: Tensor, step: int) -> Tensor: ...


class GaussianNoise(Settings):
    """Independent standard normal numbers: the noise of all but a few papers."""

    kind: Literal["gaussian"] = "gaussian"

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """[B, C, *S] in `like`'s dtype and on its device."""
        return torch.empty_like(like, memory_format=torch.contiguous_format).normal_(generator=generator)


AnyNoise = GaussianNoise  # a union by `kind`, as soon as there is a second


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


def _scramble(seed: int, step: int) -> int:
    """splitmix64: neighbouring steps get unrelated seeds (torch's CPU generator reads the low 32 bits only)."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK_64
    return (z ^ (z >> 31)) >> 1  # 63 bits: generators take signed seeds
