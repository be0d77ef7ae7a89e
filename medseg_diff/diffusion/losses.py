"""What a denoiser is trained on: the simple loss, the mask loss, and the variational bound for a learned variance.

Ho et al., 2020, arXiv 2006.11239; Nichol & Dhariwal, Improved DDPM, 2021, arXiv 2102.09672.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import Denoiser, Output, Prediction, clean_and_noise
from medseg_diff.diffusion.schedule import Level, NoiseSchedule
from medseg_diff.diffusion.solvers import mixed_log_variance, posterior


def noised(clean: Tensor, noise: Tensor, level: Level) -> Tensor:
    """x_t = alpha x_0 + sigma eps."""
    return level.alpha * clean + level.sigma * noise


def denoising_loss(
    denoiser: Denoiser, clean: Tensor, t: Tensor, noise: Tensor, condition: Condition, weight: Tensor | None = None
) -> dict[str, Tensor]:
    """Loss of each sample, [B] by name: `simple` always, `dice` where it counts, `vlb` where the variance is learned, and
    `prior` of what a network with a prior says without looking at x_t. Dice finds small lesions and makes a network
    too sure: where there is a prior it is the prior's alone, and the cross-entropy of the rest brings the doubt back.

    clean, noise [B, C, *S]; t [B] in 1 … T. `simple` is the squared error in the network's own target, for logits the
    binary cross-entropy against the mask (clean in [-1, 1]), with a learned deviation the negative log-likelihood. `weight`
    [B, 1, *S] says how much each voxel teaches: all of them alike without it.
    """
    level = denoiser.schedule.level(t, like=clean)
    x_t = noised(clean, noise, level)
    output = denoiser.output(x_t, t, condition)
    losses = {"simple": _each(simple_error(denoiser, output, clean, noise, level), weight)}
    if output.prior is not None:
        losses["prior"] = _each(simple_error(denoiser, Output(output.prior), clean, noise, level), weight)
    if denoiser.dice:
        losses["dice"] = soft_dice_loss(output.value if output.prior is None else output.prior, clean)
    if output.variance_mix is not None:
        # IDDPM Sec. 3.1: the bound teaches the variance only, so the mean is held fixed inside it.
        fixed = clean_and_noise(denoiser.target, output.value.detach(), x_t, level)
        losses["vlb"] = vlb_term(denoiser.schedule, clean, x_t, t, Prediction(*fixed, output.variance_mix))
    return losses


def simple_error(denoiser: Denoiser, output: Output, clean: Tensor, noise: Tensor, level: Level) -> Tensor:
    """Error of the network's own words, [B, C, *S]."""
    if denoiser.target == "logits":
        return functional.binary_cross_entropy_with_logits(output.value, (clean + 1) / 2, reduction="none")
    if denoiser.target == "velocity":
        expected = level.alpha * noise - level.sigma * clean  # Salimans & Ho 2022: v = alpha eps - sigma x_0
    else:
        expected = noise if denoiser.target == "noise" else clean
    squared = (output.value - expected) ** 2
    if output.log_variance is None:
        return squared
    # -log N(x_0; mean, variance) less a constant (Kendall & Gal 2017, Eq. 8).
    return (squared * (-output.log_variance).exp() + output.log_variance) / 2


def soft_dice_loss(logits: Tensor, clean: Tensor) -> Tensor:
    """1 - 2 |p m| / (|p| + |m|) of each channel over the whole batch, meant over channels; the same for every sample, [B].

    Over the batch, as slices without a lesion have a Dice of their own only by convention (Isensee et al. 2021, nnU-Net).
    """
    probability, mask = logits.sigmoid(), (clean + 1) / 2
    sums = [part.transpose(0, 1).flatten(1).sum(1) for part in (probability * mask, probability + mask)]
    return (1 - 2 * sums[0] / sums[1].clamp(min=1e-5)).mean().expand(len(logits))


def hybrid(losses: dict[str, Tensor], length: int, *, dice: float = 0.0) -> Tensor:
    """L_simple + lambda L_vlb + `dice` times the Dice loss + the prior's loss, [B]: IDDPM's lambda = 0.001 on a bound of
    `length` terms, of which one is drawn."""
    loss = losses["simple"] + losses.get("prior", 0.0)
    if "vlb" in losses:
        loss = loss + 0.001 * length * losses["vlb"]
    return loss + dice * losses["dice"] if "dice" in losses else loss


def vlb_term(schedule: NoiseSchedule, clean: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
    """L_{t-1} in bits per dimension, [B] (IDDPM Eq. 5-6): KL of the true and the predicted step t → t - 1.

    At t = 1 the negative log-likelihood of a Gaussian with the step's variance (beta~_2 stands in for beta~_1 = 0).
    """
    now, then = schedule.level(t, like=x_t), schedule.level(t - 1, like=x_t)
    step = posterior(now, then)
    second = posterior(*(schedule.level(u, like=x_t) for u in (t.clamp(min=2), t.clamp(min=2) - 1)))
    step = step._replace(variance=torch.where(then.sigma > 0, step.variance, second.variance))
    true_mean = step.of_clean * clean + step.of_x * x_t
    mean = step.of_clean * prediction.clean + step.of_x * x_t
    log_true = step.variance.log()
    log_variance = log_true if prediction.variance_mix is None else mixed_log_variance(step, prediction.variance_mix)
    squared = (true_mean - mean) ** 2 * torch.exp(-log_variance)
    divergence = 0.5 * (log_variance - log_true - 1 + torch.exp(log_true - log_variance) + squared)
    likelihood = 0.5 * (math.log(2 * math.pi) + log_variance + squared)
    return _each(torch.where(then.sigma > 0, divergence, likelihood)) / math.log(2)


def _each(error: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over everything but the batch, [B]; with weights each sample counts as much as it weighs, in a mean of 1."""
    if weight is None:
        return error.flatten(1).mean(dim=1)
    weighed = weight.expand_as(error).flatten(1)
    return (error.flatten(1) * weighed).sum(dim=1) / (weighed.sum() / len(error)).clamp(min=1)
