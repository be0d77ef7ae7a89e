"""Patched DDPM: one box of the slice after the other is noised and denoised, by a denoiser that sees the rest of it.

Behrendt et al., Patched Diffusion Models for Unsupervised Anomaly Detection in Brain MRI, MIDL 2023, arXiv 2303.03758.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion import DDPM, AnySolver, Pinned, walk
from medseg_diff.diffusion.hiding import Box, shown
from medseg_diff.diffusion.losses import noised
from medseg_diff.diffusion.noise import NoiseSource
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.methods.anomaly.drawn import BETWEEN_DRAWS, Later
from medseg_diff.methods.anomaly.engine import Cohort, Comparison, Conditioning, Evidence, Networks


class Patched(Comparison):
    """A box takes a `share` of each side of the slice. It is noised up to `depth` and denoised in `steps` (the paper: one).
    All boxes together are the reconstruction; where they overlap, their mean.
    """

    learns_from: ClassVar[Cohort] = "healthy"
    conditioned_on: ClassVar[Conditioning] = "rest"

    learned: ClassVar[tuple[str, ...]] = ("share",)

    kind: Literal["patched"] = "patched"
    depth: int = Field(default=500, ge=1, le=LONGEST)
    steps: int = Field(default=1, ge=1, le=LONGEST)
    share: float = Field(default=0.5, ge=0.05, le=1)
    solver: AnySolver = DDPM()

    @property
    def hiding(self) -> Box:
        return Box(self.share)

    @property
    def evaluations(self) -> dict[str, int]:
        return {"denoiser": self.steps * math.ceil(1 / self.share) ** 2}

    def score(self, image: Tensor, networks: Networks, noise: NoiseSource, *, baselines: bool = False) -> Evidence:
        x, brain = networks.space.encode(image), networks.brain(image)
        total, covered = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for number, hidden in enumerate(self.hiding.all(brain)):
            total += self.filled(x, hidden, networks, Later(noise, number * BETWEEN_DRAWS)) * hidden
            covered += hidden
        healthy = networks.space.decode(torch.where(brain, total / covered.clamp(min=1), x))
        return Evidence(self.difference(image, healthy, networks.channels), healthy)

    def filled(self, x: Tensor, hidden: Tensor, networks: Networks, noise: NoiseSource) -> Tensor:
        """x [B, D, *S] as the denoiser has it where it is hidden, from its own noisy version there and from the rest."""
        schedule = networks.denoiser.schedule
        times = self.times(schedule)
        x_L = noised(x, noise(x, 0), schedule.level(times[-1]))
        denoiser = Pinned(networks.denoiser, x, hidden)  # what lies around the box was noised in training, not denoised
        return walk(denoiser, self.solver, x_L, times[::-1], shown(x, hidden), noise)
