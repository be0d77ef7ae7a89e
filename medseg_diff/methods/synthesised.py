"""Images drawn from noise: every one of them owns its noise, and is asked for by its covariates, or by its mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_diff.diffusion import AnySolver, Clipped, Condition, SeededNoise, walk
from medseg_diff.diffusion.denoiser import AnyDenoiser
from medseg_diff.diffusion.guidance import ClassifierFree, DynamicallyClipped
from medseg_diff.diffusion.noise import AnyNoise, GaussianNoise
from medseg_diff.methods.batches import padded_batches
from medseg_diff.spaces import PLAIN, Space


@dataclass(frozen=True)
class Drawing:
    """How images are drawn: `shape` [D, *R] of x_0 in the space, along `times`. `guidance` 1 follows covariates or mask,
    more exaggerates them, 0 leaves them out. `limit` bounds clean predictions by the share `dynamic` of their own values."""

    space: Space
    shape: tuple[int, ...]
    solver: AnySolver
    times: Sequence[int]
    guidance: float = 1.0
    limit: float | None = None
    dynamic: float = 0.995
    noise: AnyNoise = GaussianNoise()
    network_batch: int = 8

    @property
    def evaluations(self) -> int:
        """NFE of an image."""
        return (len(self.times) - 1) * (1 if self.guidance in (0, 1) else 2)

    def denoiser(self, denoiser: AnyDenoiser) -> AnyDenoiser:
        """The trained denoiser as it draws."""
        if self.guidance not in (0, 1):
            denoiser = ClassifierFree(denoiser, self.guidance)
        if self.limit is not None:
            return DynamicallyClipped(denoiser, self.limit, share=self.dynamic)
        return Clipped(denoiser) if self.space == PLAIN else denoiser

    def images(
        self,
        denoiser: AnyDenoiser,
        seeds: Sequence[int],
        covariates: Tensor | None,
        device: torch.device,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Images [N, C, *S] on the CPU, one for each seed; covariates [N, K] in [0, 1] and masks [N, R, *S] of 0 and 1, or
        None of a model without.

        The network always sees `network_batch` samples, so that what stands beside an image changes none of its bytes.
        """
        asked, parts = self.denoiser(denoiser), []
        for chosen, padded in padded_batches(range(len(seeds)), self.network_batch):
            noise = SeededNoise([seeds[number] for number in padded], self.noise)
            begin = noise(torch.empty((len(padded), *self.shape), device=device), 0)
            known = {"covariates": covariates, "mask": masks}
            condition = Condition(**{name: part[padded].to(device) for name, part in known.items() if part is not None})
            if self.guidance == 0:
                condition = condition.null()
            x = walk(asked, self.solver, begin, self.times, condition, noise)
            parts.append(self.space.decode(x)[: len(chosen)].float().cpu())
        return torch.cat(parts)
