"""Autoencoders: one pass of a network that has learned to say healthy images again, and what differs from the scan.

With coarse noise in training (`noise: {kind: coarse}`) and skip connections: Kascenas et al., Denoising Autoencoders for
Unsupervised Anomaly Detection in Brain MRI, MIDL 2022. With next to no noise and `network: {kind: bottleneck}`: Baur et al.,
Autoencoders for Unsupervised Anomaly Segmentation in Brain MR Images, Medical Image Analysis 2021, arXiv 2004.03271.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion import Condition, NoiseSchedule
from medseg_diff.diffusion.denoiser import Target
from medseg_diff.diffusion.noise import NoiseSource
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.methods.anomaly.engine import Cohort, Difference, Evidence, Networks


class Autoencoder(Difference):
    """The network learns healthy images at one time, t = `depth`, from alpha x_0 + sigma eps; here it is given alpha x_0.

    Nothing is drawn: what it takes for noise are the lesions. Where sigma is next to nothing (`depth` 1), only what passes
    a bottleneck can come back.
    """

    learns_from: ClassVar[Cohort] = "healthy"
    learned: ClassVar[tuple[str, ...]] = ("depth",)
    targets: ClassVar[tuple[Target, ...]] = ("clean",)  # of noise that is not there nothing can be predicted

    kind: Literal["autoencoder"] = "autoencoder"
    depth: int = Field(default=1, ge=1, le=LONGEST)

    @property
    def evaluations(self) -> dict[str, int]:
        return {"denoiser": 1}

    def deepest(self, schedule: NoiseSchedule) -> int:
        return schedule.times(1, start=0, stop=self.depth)[-1]

    def learned_times(self, schedule: NoiseSchedule, deepest: int) -> tuple[int, int]:
        """The one time that it asks about."""
        return self.depth, self.depth

    def score(self, image: Tensor, networks: Networks, noise: NoiseSource, *, baselines: bool = False) -> Evidence:
        denoiser, space = networks.denoiser, networks.space
        x_t = denoiser.schedule.level(self.depth).alpha * space.encode(image)
        with torch.no_grad():
            healthy = space.decode(denoiser(x_t, self.depth, Condition()).clean)
        return Evidence(self.difference(image, healthy, networks.channels), healthy)
