"""Denoisers whose answers are known: Gaussian data, and two Gaussians with labels. The laws are checked against them."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import Prediction
from medseg_diff.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class GaussianDenoiser:
    """The ideal denoiser of data N(mean, deviation²), in every dimension alike."""

    schedule: NoiseSchedule
    mean: float = 0.0
    deviation: float = 0.5

    def __call__(self, x_t: Tensor, t: int | Tensor, condition: Condition | None = None) -> Prediction:
        alpha, sigma = self.schedule.level(t, like=x_t)
        surprise = (x_t - alpha * self.mean) / (alpha**2 * self.deviation**2 + sigma**2)
        return Prediction(self.mean + alpha * self.deviation**2 * surprise, sigma * surprise)


@dataclass(frozen=True)
class MixtureDenoiser:
    """The ideal denoiser of a mixture of N(centre_k, deviation²) with weights w_k, one label a component.

    Also its classifier: p(k | x_t) is known at every noise level, so guidance has an exact answer: guiding the mixture
    towards k with scale 1 is the Gaussian denoiser of component k. Samples are vectors [B, 1, 1].
    """

    schedule: NoiseSchedule
    centres: tuple[float, ...] = (-1.0, 1.0)
    weights: tuple[float, ...] = (0.5, 0.5)
    deviation: float = 0.25

    def classifier(self, x_t: Tensor, t: int | Tensor, condition: Condition | None = None) -> Tensor:
        """Logits [B, K] of the label given x_t [B, 1, *S], for every sample's sum over its voxels."""
        alpha, sigma = self.schedule.level(t, like=x_t)
        variance = alpha**2 * self.deviation**2 + sigma**2
        parts = [
            (math.log(weight) - ((x_t - alpha * centre) ** 2 / (2 * variance)).flatten(1).sum(1))
            for weight, centre in zip(self.weights, self.centres, strict=True)
        ]
        return torch.stack(parts, dim=1)

    def __call__(self, x_t: Tensor, t: int | Tensor, condition: Condition | None = None) -> Prediction:
        shares = self.classifier(x_t, t).softmax(dim=1).view(len(x_t), -1, *(1,) * (x_t.ndim - 1)).unbind(dim=1)
        clean, noise = torch.zeros_like(x_t), torch.zeros_like(x_t)
        for label, share in enumerate(shares):
            prediction = self.component(label)(x_t, t)
            clean, noise = clean + share * prediction.clean, noise + share * prediction.noise
        return Prediction(clean, noise)

    def component(self, label: int) -> GaussianDenoiser:
        """The ideal denoiser of one component alone."""
        return GaussianDenoiser(self.schedule, self.centres[label], self.deviation)


def ddim_gain(denoiser: GaussianDenoiser, times: list[int]) -> float:
    """How a DDIM walk stretches distances from the mean: the product of its steps' linear maps, by hand.

    The walk's answer is then exactly alpha_end mean + gain (x - alpha_start mean).
    """
    gain = 1.0
    for (alpha, sigma), (alpha_s, sigma_s) in _steps(denoiser.schedule, times):
        total = alpha**2 * denoiser.deviation**2 + sigma**2
        gain *= (alpha_s * alpha * denoiser.deviation**2 + sigma_s * sigma) / total
    return gain


def ddpm_moments(denoiser: GaussianDenoiser, times: list[int], eta: float = 1.0) -> tuple[float, float]:
    """Mean and standard deviation that DDPM (or DDIM at `eta`) reaches from N(0, 1), step by step, by hand."""
    mean, variance = 0.0, 1.0
    for (alpha, sigma), (alpha_s, sigma_s) in _steps(denoiser.schedule, times):
        total = alpha**2 * denoiser.deviation**2 + sigma**2
        added = eta**2 * (sigma_s / sigma) ** 2 * (1 - (alpha / alpha_s) ** 2)
        kept = math.sqrt(max(sigma_s**2 - added, 0.0))
        slope = (alpha_s * alpha * denoiser.deviation**2 + kept * sigma) / total
        mean = alpha_s * denoiser.mean + slope * (mean - alpha * denoiser.mean)
        variance = slope**2 * variance + added
    return mean, math.sqrt(variance)


def _steps(schedule: NoiseSchedule, times: list[int]) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """(alpha, sigma) before and after each step."""
    levels = [schedule.level(t) for t in times]
    return itertools.pairwise((float(level.alpha), float(level.sigma)) for level in levels)
