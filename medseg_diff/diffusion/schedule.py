"""How much of the image is left at time t: alpha and sigma of x_t = alpha x_0 + sigma eps.

Linear: Ho et al., Denoising Diffusion Probabilistic Models, 2020, arXiv 2006.11239.
Cosine: Nichol & Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, arXiv 2102.09672.
Scaled linear: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2021, arXiv 2112.10752.
Input scale: Chen, On the Importance of Noise Scheduling for Diffusion Models, 2023, arXiv 2301.10972.
"""

import math
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medseg_diff.errors import UsageError
from medseg_diff.settings import Settings

Beta = Annotated[float, Field(gt=0, lt=1)]
ScheduleKind = Literal["linear", "scaled_linear", "cosine"]

BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}  # of 1000 steps; the papers' values
COSINE_OFFSET = 0.008
LARGEST_BETA = 0.999
LONGEST = 100_000


class Level(NamedTuple):
    """A noise level: x_t = alpha x_0 + sigma eps, alpha = sqrt(abar_t), sigma = sqrt(1 - abar_t).

    Both are float64 and 0-dimensional, or [B, 1, …] in the image's dtype where `level` was given times and an image.
    """

    alpha: Tensor
    sigma: Tensor

    @property
    def is_clean(self) -> bool:
        """Whether this is t = 0. Only asked of a walk's own levels, which live on the CPU: no synchronisation."""
        return bool((self.sigma == 0).all())


class NoiseSchedule(Settings):
    """t → Level for t = 0 (the clean image) … `length` (noise).

    `input_scale` b < 1 makes the image harder to read off x_t at every t (a shift of log SNR by 2 ln b, Chen 2023):
    abar' = abar b² / (abar b² + 1 - abar). The image itself stays in [-1, 1] and x_t keeps unit size.
    `betas` are the first and last beta of a schedule of 1000 steps; other lengths are rescaled by 1000 / length.
    """

    kind: ScheduleKind = "linear"
    length: int = Field(default=1000, ge=1, le=LONGEST)
    input_scale: float = Field(default=1.0, gt=0)
    betas: tuple[Beta, Beta] | None = None

    @model_validator(mode="after")
    def _betas_count(self) -> "NoiseSchedule":
        if self.kind == "cosine" and self.betas is not None:
            raise ValueError("a cosine schedule has no betas to choose: leave them out, or use linear or scaled_linear")
        return self

    def level(self, t: int | Tensor, like: Tensor | None = None) -> Level:
        """The level at time t, an integer 0 … length or an integer tensor [B].

        With `like` [B, C, *S], a tensor t gives [B, 1, …] in its dtype and on its device. An integer t always gives
        float64 scalars, which combine with any image on any device without changing its dtype.
        Raises: UsageError for an integer outside 0 … length.
        """
        if isinstance(t, int):
            if not 0 <= t <= self.length:
                raise UsageError(f"time {t} is outside the schedule", fix=f"use 0 … {self.length}")
            alpha, sigma = _alpha_sigma(self, "cpu")
            return Level(alpha[t], sigma[t])
        alpha, sigma = (table[t] for table in _alpha_sigma(self, str(t.device)))
        if like is None:
            return Level(alpha, sigma)
        shape = (-1,) + (1,) * (like.ndim - 1)
        return Level(alpha.to(like).view(shape), sigma.to(like).view(shape))

    def times(self, steps: int, start: int | None = None, stop: int = 0) -> list[int]:
        """steps + 1 integers, evenly spaced from `start` (default: length) to `stop`, both included.

        Raises: UsageError where there are fewer integers between the two than steps.
        """
        start = self.length if start is None else start
        if not 1 <= steps <= abs(start - stop) or not all(0 <= t <= self.length for t in (start, stop)):
            raise UsageError(
                f"{steps} steps from {start} to {stop} do not fit a schedule of {self.length}",
                fix=f"use 1 … {max(abs(start - stop), 1)} steps between 0 and {self.length}",
            )
        return [math.floor(start + (stop - start) * i / steps + 0.5) for i in range(steps + 1)]


@lru_cache(maxsize=64)
def _alpha_sigma(schedule: NoiseSchedule, device: str) -> tuple[Tensor, Tensor]:
    """alpha and sigma for t = 0 … length, float64 where the device has it, [length + 1]."""
    steps = torch.ones(schedule.length + 1, dtype=torch.float64)
    steps[1:] = 1 - _betas(schedule.kind, schedule.length, schedule.betas)
    abar, scale = steps.cumprod(0), schedule.input_scale
    abar = abar * scale**2 / (abar * scale**2 + (1 - abar))  # Chen 2023, Sec. 2.2, written as a change of abar
    kind = torch.float32 if device.startswith("mps") else torch.float64  # which Apple's GPUs have not
    return abar.sqrt().to(kind).to(device), (1 - abar).sqrt().to(kind).to(device)


def _betas(kind: ScheduleKind, length: int, betas: tuple[float, float] | None) -> Tensor:
    """beta_1 … beta_length, float64."""
    if kind == "cosine":
        t = torch.arange(length + 1, dtype=torch.float64) / length
        abar = torch.cos((t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2  # IDDPM Eq. 17
        return (1 - abar[1:] / abar[:-1]).clamp(max=LARGEST_BETA)
    first, last = (beta * 1000 / length for beta in betas or BETAS[kind])  # else a short schedule never reaches noise
    if kind == "linear":
        return torch.linspace(first, last, length, dtype=torch.float64).clamp(max=LARGEST_BETA)
    return (torch.linspace(first**0.5, last**0.5, length, dtype=torch.float64) ** 2).clamp(max=LARGEST_BETA)
