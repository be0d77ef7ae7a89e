"""One step from any noise level to any other: pure algebra, no network, no list of times.

DDPM: Ho et al., Denoising Diffusion Probabilistic Models, 2020, arXiv 2006.11239.
DDIM: Song et al., Denoising Diffusion Implicit Models, 2020, arXiv 2010.02502.
DPM-Solver++: Lu et al., DPM-Solver++: Fast Solver for Guided Sampling, 2022, arXiv 2211.01095.

In all of them: `now` and `then` are the levels left and reached, `prediction` the prediction for x at `now`, `past` the
previous level with its prediction, and `noise` standard normal like x (None: the mean of the step).
"""

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion.denoiser import Prediction
from medseg_diff.diffusion.schedule import Level
from medseg_diff.settings import Settings


class Past(NamedTuple):
    """Where the walk stood one step ago, and what was predicted there."""

    level: Level
    prediction: Prediction


class DDPM(Settings):
    """Ancestral sampling. Towards more noise it is the forward process q(x_s | x_t).

    variance: `posterior` (beta~), `beta`, or `learned` (the network's mix of the two).
    """

    order: ClassVar[int | None] = None  # of a deterministic walk's error in the number of steps
    stochastic: ClassVar[bool] = True
    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["posterior", "beta", "learned"] = "posterior"

    def __call__(
        self, x: Tensor, now: Level, then: Level, prediction: Prediction, past: Past | None, noise: Tensor | None
    ) -> Tensor:
        if then.sigma > now.sigma:
            keep = then.alpha / now.alpha
            added = (then.sigma**2 - (keep * now.sigma) ** 2).clamp(min=0).sqrt()
            return keep * x + (0 if noise is None else added * noise)
        step = posterior(now, then)
        mean = step.of_clean * prediction.clean + step.of_x * x  # Ho 2020 Eq. 7, for a step of any width
        if noise is None or then.is_clean:
            return mean
        return mean + self._deviation(step, prediction) * noise

    def _deviation(self, step: "Posterior", prediction: Prediction) -> Tensor:
        if self.variance == "learned":
            assert prediction.variance_mix is not None, "the denoiser predicts no variance"
            return (0.5 * mixed_log_variance(step, prediction.variance_mix)).exp()
        return (step.beta if self.variance == "beta" else step.variance).sqrt()


class DDIM(Settings):
    """The deterministic walk (eta = 0), or with a share eta of DDPM's noise. Towards more noise it encodes.

    eta counts only towards less noise: encoding has no noise to add.
    """

    order: ClassVar[int | None] = 1
    kind: Literal["ddim"] = "ddim"
    eta: float = Field(default=0.0, ge=0, le=1)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def __call__(
        self, x: Tensor, now: Level, then: Level, prediction: Prediction, past: Past | None, noise: Tensor | None
    ) -> Tensor:
        if self.eta == 0 or noise is None or then.sigma >= now.sigma:
            return then.alpha * prediction.clean + then.sigma * prediction.noise
        spread = self.eta * posterior(now, then).variance.sqrt()  # Song 2020 Eq. 16
        kept = (then.sigma**2 - spread**2).clamp(min=0).sqrt()
        return then.alpha * prediction.clean + kept * prediction.noise + spread * noise  # Song 2020 Eq. 12


class DPMSolverPP(Settings):
    """DPM-Solver++(2M): second order from the previous prediction; first order (DDIM) where there is none, and to t = 0."""

    order: ClassVar[int | None] = 2
    stochastic: ClassVar[bool] = False
    kind: Literal["dpm_solver_pp"] = "dpm_solver_pp"

    def __call__(
        self, x: Tensor, now: Level, then: Level, prediction: Prediction, past: Past | None, noise: Tensor | None
    ) -> Tensor:
        if now.is_clean:
            return then.alpha * prediction.clean + then.sigma * prediction.noise
        clean = prediction.clean
        if past is not None and not then.is_clean and not past.level.is_clean:
            width, before = log_snr(then) - log_snr(now), log_snr(now) - log_snr(past.level)
            clean = clean + width / (2 * before) * (clean - past.prediction.clean)  # Lu 2022, Algorithm 2
        shrink = then.sigma / now.sigma
        return shrink * x + (then.alpha - shrink * now.alpha) * clean  # = -alpha (exp(-h) - 1) D


AnySolver = Annotated[DDPM | DDIM | DPMSolverPP, Field(discriminator="kind")]


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) for t → s: mean of_clean x_0 + of_x x_t, variance beta~; and the step's own beta."""

    of_clean: Tensor
    of_x: Tensor
    variance: Tensor
    beta: Tensor


def posterior(now: Level, then: Level) -> Posterior:
    """The step's posterior from the two levels alone; the schedule's beta_t would be wrong in a strided step."""
    ratio = now.alpha / then.alpha
    beta = 1 - ratio**2  # beta_ts = 1 - abar_t / abar_s
    return Posterior(
        of_clean=then.alpha * beta / now.sigma**2,
        of_x=ratio * then.sigma**2 / now.sigma**2,
        variance=then.sigma**2 / now.sigma**2 * beta,
        beta=beta,
    )


def mixed_log_variance(step: Posterior, mix: Tensor) -> Tensor:
    """IDDPM Eq. 15: v log beta + (1 - v) log beta~, a mix of logs."""
    return mix * step.beta.log() + (1 - mix) * step.variance.log()


def log_snr(level: Level) -> Tensor:
    """lambda = log(alpha / sigma)."""
    return torch.log(level.alpha) - torch.log(level.sigma)
