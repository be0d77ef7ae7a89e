"""Latent diffusion of healthy brains: where a latent is unlikely it is drawn anew, and what changes in the image is odd.

Pinaya et al., Fast Unsupervised Brain Anomaly Detection and Segmentation with Diffusion Models, 2022, arXiv 2206.03461.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from medseg_diff.diffusion import DDPM, AnySolver, Condition, NoiseSchedule, walk
from medseg_diff.diffusion.guidance import Pinned
from medseg_diff.diffusion.hiding import blurred
from medseg_diff.diffusion.losses import noised
from medseg_diff.diffusion.noise import NoiseSource
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.diffusion.solvers import posterior
from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.methods.anomaly.engine import Cohort, Difference, Evidence, Networks
from medseg_diff.networks.blocks import cropped

UNLIKELY = "unlikely"  # the reference's name of the threshold
BEYOND_ALL = 2**20  # steps of the noise: those of the reconstruction have nothing to do with those of the map


class LatentAnomaly(Difference):
    """L_{t-1}, how far a step of the denoiser is from the step that leads back to the latent, averaged over the times
    `first` … `last`, every `every`-th of them, says how unlikely each place of the latent is. Above the `percentile` of
    healthy validation brains it is drawn anew from t = `depth` in `steps`; everywhere else the latent stays.

    The score is the `difference` of image and reconstruction times the mask of what was drawn anew, whose edges are
    softened by `softness` voxels.
    """

    learns_from: ClassVar[Cohort] = "healthy"
    in_latent: ClassVar[bool] = True
    learned: ClassVar[tuple[str, ...]] = ("first", "last", "every", "percentile")  # what was measured of healthy brains
    swept: ClassVar[tuple[str, ...]] = ("depth", "steps")

    kind: Literal["latent"] = "latent"
    first: int = Field(default=400, ge=2, le=LONGEST)
    last: int = Field(default=600, ge=2, le=LONGEST)
    every: int = Field(default=10, ge=1, le=LONGEST)
    percentile: float = Field(default=0.975, gt=0, lt=1)
    depth: int = Field(default=500, ge=1, le=LONGEST)
    steps: int = Field(default=50, ge=1, le=LONGEST)
    solver: AnySolver = DDPM()
    softness: float = Field(default=2.0, gt=0, le=100)

    @model_validator(mode="after")
    def _in_order(self) -> "LatentAnomaly":
        if self.first > self.last:
            raise ValueError(f"first {self.first} is later than last {self.last}")
        if self.steps > self.depth:
            raise ValueError(f"{self.steps} steps do not fit the {self.depth} times below depth")
        return self

    @property
    def times(self) -> list[int]:
        """The times that unlikeliness is averaged over."""
        return list(range(self.first, self.last + 1, self.every))

    @property
    def evaluations(self) -> dict[str, int]:
        return {"denoiser": len(self.times) + self.steps}

    def deepest(self, schedule: NoiseSchedule) -> int:
        deepest = max(self.last, self.depth)
        if deepest > schedule.length:
            found = f"time {deepest} is beyond the schedule's {schedule.length}"
            raise UsageError(found, fix="lower engine.last or engine.depth")
        return deepest

    def score(self, image: Tensor, networks: Networks, noise: NoiseSource, *, baselines: bool = False) -> Evidence:
        x, step = networks.space.encode(image), networks.space.step
        unlikely = self.unlikeliness(x, networks, noise)
        limit = networks.reference.get(UNLIKELY)
        if limit is None:
            found = "what is unlikely was not measured: no healthy slice was held out of the training"
            raise CheckpointError(found, fix="train with healthy cases in split val")
        mask = (unlikely > limit) & (self._inside(image, networks, x) > 0)
        healthy = cropped(networks.space.decode(self.drawn_anew(x, mask, networks, noise)), image.shape[2:])
        soft = self._on_image(mask.to(image.dtype), image, step)
        score = self.difference(image, healthy, networks.channels) * soft
        facts = {"drawn_anew": mask.flatten(1).float().mean(dim=1)}
        return Evidence(score, healthy, facts, {"unlikely": self._on_image(unlikely, image, step)} if baselines else {})

    def measure(self, image: Tensor, networks: Networks, noise: NoiseSource) -> Tensor:
        """How unlikely each place of the latents of healthy image [B, C, *S] is, [B, N]; NaN outside the brain."""
        x = networks.space.encode(image)
        unlikely = self.unlikeliness(x, networks, noise)
        return torch.where(self._inside(image, networks, x) > 0, unlikely, torch.nan).flatten(1)

    def of_healthy(self, measured: Tensor) -> dict[str, float]:
        return {
            UNLIKELY: float(np.quantile(measured.float().cpu().numpy(), self.percentile))
        }  # more than torch's takes

    def unlikeliness(self, x: Tensor, networks: Networks, noise: NoiseSource) -> Tensor:
        """The mean of L_{t-1} over `times`, in nats a channel: [B, 1, *R] of x_0 [B, D, *R]."""
        schedule, total = networks.denoiser.schedule, torch.zeros_like(x[:, :1])
        with torch.no_grad():
            for number, t in enumerate(self.times):
                now, then = schedule.level(t), schedule.level(t - 1)
                prediction = networks.denoiser(noised(x, noise(x, number), now), t, Condition())
                step = posterior(now, then)
                away = (step.of_clean * (prediction.clean - x)).square()  # DDPM Eq. 8: the means differ by x_0's part
                total = total + (away / (2 * step.variance)).mean(dim=1, keepdim=True)
        return total / len(self.times)

    def drawn_anew(self, x: Tensor, mask: Tensor, networks: Networks, noise: NoiseSource) -> Tensor:
        """x_0 with what lies in the mask [B, 1, *R] drawn by the denoiser, which is shown the rest."""
        schedule = networks.denoiser.schedule

        def later(like: Tensor, step: int) -> Tensor:
            return noise(like, BEYOND_ALL + step)

        x_L = noised(x, later(x, 0), schedule.level(self.depth))
        times = schedule.times(self.steps, start=self.depth)
        return walk(Pinned(networks.denoiser, x, mask), self.solver, x_L, times, Condition(), later)

    def _inside(self, image: Tensor, networks: Networks, x: Tensor) -> Tensor:
        """The share of brain in what each place of the latent stands for, [B, 1, *R]."""
        share = networks.space.condition(Condition(mask=networks.brain(image).to(x.dtype))).mask
        assert share is not None
        return share

    def _on_image(self, values: Tensor, image: Tensor, step: int) -> Tensor:
        """A map of the latent grid [B, 1, *R] on the image's, its edges softened."""
        smooth = {2: "bilinear", 3: "trilinear"}[image.ndim - 2]
        near = functional.interpolate(values, scale_factor=step, mode=smooth, align_corners=False)
        return blurred(cropped(near, image.shape[2:]).contiguous(), self.softness)
