"""Reconstructions that are drawn: noise is added up to a noise level and taken away by a denoiser of healthy brains.

Several draws say what may be healthy, and a voxel counts by how far it is from them: Behrendt et al., Leveraging the
Mahalanobis Distance to Enhance Unsupervised Brain MRI Anomaly Detection, MICCAI 2024, arXiv 2407.12474.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medseg_diff.diffusion import DDPM, AnySolver, Condition
from medseg_diff.diffusion.losses import noised
from medseg_diff.diffusion.noise import NoiseSource, fresh_noise
from medseg_diff.methods.anomaly.engine import LEAST_DEVIATION, Cohort, Decoding, Evidence, Networks, Reconstruction
from medseg_diff.methods.batches import index_of

BETWEEN_DRAWS = 2**20  # steps: more than any walk takes


class PartialDiffusion(Reconstruction):
    """What engines share that draw x_L at `depth` L and denoise it in `steps`, `draws` times: the mean of these is the
    reconstruction.

    `distance`: the `difference` of image and mean, by `map`; or the `mahalanobis` distance of the image from the draws,
    which takes off what these vary by themselves, over the channels together (or over `map_channels`).
    """

    learns_from: ClassVar[Cohort] = "healthy"

    solver: AnySolver = DDPM()
    draws: int = Field(default=1, ge=1, le=1000)
    distance: Literal["difference", "mahalanobis"] = "difference"

    @model_validator(mode="after")
    def _varies(self) -> "PartialDiffusion":
        if self.distance == "mahalanobis" and self.draws < 2:
            raise ValueError("distance mahalanobis needs the deviation of several draws: set draws to 2 or more")
        return self

    @property
    def evaluations(self) -> dict[str, int]:
        return {"denoiser": self.steps * self.draws}

    def condition(self, x: Tensor) -> Condition:
        """What the denoiser is shown, in the networks' space, of x_0 [B, D, *S] while it denoises."""
        return Condition()

    def decoding(self, x: Tensor, networks: Networks, noise: NoiseSource | None = None) -> Decoding:
        schedule, noise = networks.denoiser.schedule, noise or fresh_noise
        times = self.times(schedule)
        x_L = noised(x, noise(x, 0), schedule.level(times[-1]))
        return Decoding(networks.denoiser, self.solver, x_L, times[::-1], self.condition(x), noise)

    def score(self, image: Tensor, networks: Networks, noise: NoiseSource, *, baselines: bool = False) -> Evidence:
        x = networks.space.encode(image)
        draws = [self.reconstruct(x, networks, Later(noise, number * BETWEEN_DRAWS)) for number in range(self.draws)]
        images = torch.stack([networks.space.decode(draw) for draw in draws])
        healthy = images.mean(dim=0)
        if self.distance == "difference":
            return Evidence(self.difference(image, healthy, networks.channels), healthy)
        if not self.map_channels:
            return Evidence(mahalanobis(image, images), healthy)
        chosen = index_of([networks.channels.index(name) for name in self.map_channels], image)
        return Evidence(mahalanobis(image[:, chosen], images[:, :, chosen]), healthy)


class Later:
    """A source of noise from a later step on: what it draws has nothing to do with what came before."""

    def __init__(self, noise: NoiseSource, steps: int) -> None:
        self.noise, self.steps = noise, steps

    def __call__(self, like: Tensor, step: int) -> Tensor:
        return self.noise(like, step + self.steps)


def mahalanobis(x: Tensor, draws: Tensor) -> Tensor:
    """How many deviations each voxel of x [B, C, *S] is from its draws [N, B, C, *S], over all channels: [B, 1, *S]; in
    float32 inside of an autocast as well."""
    with torch.autocast(x.device.type, enabled=False):
        values, mean = draws.float().movedim(2, -1), draws.float().mean(dim=0).movedim(1, -1)
        away = values - mean  # [N, B, *S, C]
        covariance = torch.einsum("n...i,n...j->...ij", away, away) / (len(draws) - 1)
        covariance = covariance + LEAST_DEVIATION**2 * torch.eye(x.shape[1], device=x.device)
        change = (x.float().movedim(1, -1) - mean).unsqueeze(-1)
        root = torch.linalg.cholesky_ex(covariance).L  # unchecked: a GPU is not waited for
        whitened = torch.linalg.solve_triangular(root, change, upper=False)
    return whitened.square().sum(dim=(-2, -1)).sqrt().unsqueeze(1).to(x.dtype)
