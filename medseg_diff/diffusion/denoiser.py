"""What a network predicts from x_t, under names: the clean image and the noise, whatever it was trained to output.

Velocity: Salimans & Ho, Progressive Distillation for Fast Sampling of Diffusion Models, 2022, arXiv 2202.00512.
Learned variance: Nichol & Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, arXiv 2102.09672.
Learned deviation: Kendall & Gal, What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?, NeurIPS 2017.
"""

from typing import Literal, NamedTuple, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.schedule import Level, NoiseSchedule
from medseg_diff.settings import Settings

Target = Literal["noise", "clean", "velocity", "logits"]
LOG_VARIANCES = (-7.0, 3.0)  # of a clean value: deviations from 0.03, which is noise of a scan, to 4.5


class DenoiserSettings(Settings):
    """What a network's output means, and the number it knows the least noisy time by: 1 as here, or 0 (foreign weights).

    `dice` is the weight of a soft Dice loss over the batch beside the cross-entropy of logits. `learned_variance` is that of
    a step; `learned_deviation` is that of the clean image, which says how sure the network is of each value.
    """

    target: Target = "logits"
    dice: float = Field(default=0.0, ge=0, le=100)
    learned_variance: bool = False
    learned_deviation: bool = False
    first_time: Literal[0, 1] = 1

    @model_validator(mode="after")
    def _fits_the_target(self) -> "DenoiserSettings":
        if self.dice and self.target != "logits":
            raise ValueError(
                f"dice compares masks, which a network with target {self.target} does not predict: set dice=0"
            )
        if self.learned_deviation and (self.target != "clean" or self.learned_variance):
            raise ValueError("learned_deviation is for the clean image: set target=clean and learned_variance=false")
        return self

    @property
    def outputs(self) -> int:
        """How many numbers the network says of each value of x_0."""
        return 2 if self.learned_variance or self.learned_deviation else 1

    def around(self, network: "Network", schedule: NoiseSchedule) -> "Denoiser":
        """The network as a denoiser."""
        return Denoiser(
            network,
            schedule,
            target=self.target,
            learned_variance=self.learned_variance,
            learned_deviation=self.learned_deviation,
            time_offset=self.first_time - 1,
            dice=self.dice,
        )


class Prediction(NamedTuple):
    """x_t = alpha clean + sigma noise, both [B, C, *S].

    `variance_mix` in [0, 1] interpolates the log-variance of a step between beta~ (0) and beta (1), `deviation` is that of
    the clean image given x_t and the condition; None where not learned.
    """

    clean: Tensor
    noise: Tensor
    variance_mix: Tensor | None = None
    deviation: Tensor | None = None


class AnyDenoiser(Protocol):
    """What a walk needs: a schedule, and a prediction for x_t [B, C, *S] at time t (an integer, or integers [B])."""

    @property
    def schedule(self) -> NoiseSchedule: ...

    def __call__(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Prediction: ...


class Network(Protocol):
    """The shape of every network: x_t [B, C, *S], t [B] or [1] (the same for all), condition → [B, outputs, *S].

    One that `says_prior` has twice the outputs: behind its own words, what it says from the condition alone.
    """

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor: ...


class Output(NamedTuple):
    """What the network itself said: `value` in the units of its target, the variance mix if it learns one, in the same
    units what it said from the condition alone if it has a prior, and the log-variance of the clean image if it learns that.
    """

    value: Tensor
    variance_mix: Tensor | None = None
    prior: Tensor | None = None
    log_variance: Tensor | None = None


class Denoiser(nn.Module):
    """A network, what its output means, and the schedule it was trained on.

    target: `noise` (eps), `clean` (x_0), `velocity` (alpha eps - sigma x_0) or `logits` (x_0 = tanh(logits / 2), a mask in
    [-1, 1]). With `learned_variance` or `learned_deviation` the network has twice the channels: the second half gives the
    mix, or the log-variance of the clean image.
    `time_offset` is added to t before the network sees it, for foreign weights that count their times from 0 (use -1).
    `dice` is the weight of the soft Dice in its loss.
    """

    def __init__(
        self,
        network: Network,
        schedule: NoiseSchedule,
        *,
        target: Target = "noise",
        learned_variance: bool = False,
        learned_deviation: bool = False,
        time_offset: int = 0,
        dice: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.says_prior = getattr(network, "says_prior", False)  # before anything is wrapped round it
        self.schedule = schedule
        self.target: Target = target
        self.learned_variance = learned_variance
        self.learned_deviation = learned_deviation
        self.time_offset = time_offset
        self.dice = dice

    def module(self) -> nn.Module:
        """The network as the module with weights that it is wherever it is trained or loaded."""
        assert isinstance(self.network, nn.Module)
        return self.network

    def prepare(self, condition: Condition) -> Condition:
        """What need not run at every step (an image encoder), once per walk."""
        return prepared(self.network, condition)

    def output(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Output:
        """The network's own words about x_t at t >= 1, in x_t's dtype."""
        raw = self.network(x_t, time_tensor(t, x_t) + self.time_offset, condition).to(x_t.dtype)
        if self.says_prior:
            value, prior = raw.chunk(2, dim=1)
            return Output(value, prior=prior)
        if self.learned_deviation:
            value, log_variance = raw.chunk(2, dim=1)
            return Output(value, log_variance=log_variance.clamp(*LOG_VARIANCES))
        if not self.learned_variance:
            return Output(raw)
        value, mix = raw.chunk(2, dim=1)
        return Output(value, (mix + 1) / 2)  # IDDPM Eq. 15: v in [0, 1] from an output around [-1, 1]

    def forward(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Prediction:
        """Prediction for x_t [B, C, *S] at time t."""
        asked = learned_time(t)  # of an encoding that starts at t = 0, x_t itself is clean
        said = self.output(x_t, asked, condition)
        clean, noise = clean_and_noise(self.target, said.value, x_t, self.schedule.level(asked, like=x_t))
        deviation = None if said.log_variance is None else (said.log_variance / 2).exp()
        return Prediction(where_clean(t, x_t, clean), noise, said.variance_mix, deviation)


class Wrapped(nn.Module):
    """What denoisers round a denoiser share: its schedule and preparation, and how another clean image takes its place."""

    def __init__(self, denoiser: AnyDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    def prepare(self, condition: Condition) -> Condition:
        return prepared(self.denoiser, condition)

    def with_clean(self, prediction: Prediction, clean: Tensor, x_t: Tensor, t: int | Tensor) -> Prediction:
        """The prediction with another clean image, and noise that agrees with it; at t = 0 any noise explains x_t."""
        level = self.schedule.level(learned_time(t), like=x_t)
        return prediction._replace(clean=clean, noise=where_clean(t, prediction.noise, noise_from(clean, x_t, level)))


class Clipped(Wrapped):
    """Keep the clean prediction inside the data's range and make the noise agree. Always the outermost denoiser.

    Not for encoding: what leaves the range there must be able to come back.
    """

    def __init__(self, denoiser: AnyDenoiser, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(denoiser)
        self.low, self.high = low, high

    def forward(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Prediction:
        prediction = self.denoiser(x_t, t, condition)
        return self.with_clean(prediction, prediction.clean.clamp(self.low, self.high), x_t, t)


def prepared(asked: AnyDenoiser | Network, condition: Condition) -> Condition:
    """The condition as this denoiser, or the network in it, wants it during a walk."""
    prepare = getattr(asked, "prepare", None)
    return prepare(condition) if prepare else condition


def time_tensor(t: int | Tensor, x_t: Tensor) -> Tensor:
    """t as a network takes it: integers [B], or [1] of one time for all."""
    return torch.full((1,), t, device=x_t.device) if isinstance(t, int) else t


def learned_time(t: int | Tensor) -> int | Tensor:
    """The time that a network is asked about: no network has learned t = 0, so it is asked at t = 1."""
    return max(t, 1) if isinstance(t, int) else t.clamp(min=1)


def clean_and_noise(target: Target, value: Tensor, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """(clean, noise) from what a network trained on `target` said about x_t at `level`."""
    alpha, sigma = level
    if target == "noise":
        return clean_from(value, x_t, level), value
    if target == "velocity":
        return alpha * x_t - sigma * value, sigma * x_t + alpha * value  # Salimans & Ho 2022, App. D
    clean = torch.tanh(value / 2) if target == "logits" else value  # 2 sigmoid(z) - 1 = tanh(z / 2)
    return clean, noise_from(clean, x_t, level)


def clean_from(noise: Tensor, x_t: Tensor, level: Level) -> Tensor:
    """x_0 = (x_t - sigma eps) / alpha."""
    return (x_t - level.sigma * noise) / level.alpha


def noise_from(clean: Tensor, x_t: Tensor, level: Level) -> Tensor:
    """eps = (x_t - alpha x_0) / sigma, for t >= 1."""
    return (x_t - level.alpha * clean) / level.sigma


def where_clean(t: int | Tensor, at_zero: Tensor, otherwise: Tensor) -> Tensor:
    """`at_zero` for samples at t = 0, `otherwise` for the rest."""
    if isinstance(t, int):
        return at_zero if t == 0 else otherwise
    return torch.where((t == 0).view(-1, *(1,) * (at_zero.ndim - 1)), at_zero, otherwise)
