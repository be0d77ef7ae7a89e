"""Conditional difference: what a denoiser sees in a noisy image when told `diseased`, less what it sees told `healthy`.

Hu, Chen, Ho and Shi, Conditional Diffusion Models for Weakly Supervised Medical Image Segmentation, MICCAI 2023, arXiv
2306.03878: the finite difference of a conditional model's output with respect to its condition.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion import Condition
from medseg_diff.diffusion.losses import noised
from medseg_diff.diffusion.noise import NoiseSource
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.methods.anomaly.engine import Comparison, Evidence, Networks
from medseg_diff.networks.noisy_classifier import DISEASED, HEALTHY


class ConditionalDifference(Comparison):
    """The mean difference of the clean predictions at `steps` times up to `depth`, each with so many `noises`.

    One pass for each label, time and noise; nothing is walked, no classifier is trained, and no reconstruction is made.
    """

    kind: Literal["conditional_difference"] = "conditional_difference"
    depth: int = Field(default=300, ge=1, le=LONGEST)
    steps: int = Field(default=3, ge=1, le=LONGEST)
    noises: int = Field(default=2, ge=1, le=1000)

    @property
    def needs_labels(self) -> bool:
        return True

    @property
    def evaluations(self) -> dict[str, int]:
        return {"denoiser": 2 * self.steps * self.noises}

    def score(self, image: Tensor, networks: Networks, noise: NoiseSource, *, baselines: bool = False) -> Evidence:
        x, schedule = networks.space.encode(image), networks.denoiser.schedule
        told = {label: torch.zeros_like(x) for label in (DISEASED, HEALTHY)}
        asked = [(t, draw) for t in self.times(schedule)[1:] for draw in range(self.noises)]
        with torch.no_grad():
            for step, (t, _) in enumerate(asked):
                x_t = noised(x, noise(x, step), schedule.level(t))
                for label, total in told.items():
                    condition = Condition(label=torch.full((len(x),), label, device=x.device))
                    total += networks.denoiser(x_t, t, condition).clean / len(asked)
        diseased, healthy = (networks.space.decode(total) for total in told.values())
        return Evidence(self.difference(diseased, healthy, networks.channels))
