"""What a walk looked like on its way: the noisy image and the belief about the clean one, at a few of its times."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medseg_diff.diffusion import AnySolver, Condition, trajectory
from medseg_diff.diffusion.denoiser import AnyDenoiser
from medseg_diff.diffusion.noise import NoiseSource


class Frame(NamedTuple):
    """At time t: x_t and what the denoiser believed of x_0, both [B, C, *S] on the CPU."""

    t: int
    noisy: Tensor
    clean: Tensor


class Film(NamedTuple):
    """Some frames of a walk, and where it ended, [B, C, *S] on the CPU."""

    frames: list[Frame]
    end: Tensor


def film(
    denoiser: AnyDenoiser,
    solver: AnySolver,
    x: Tensor,
    times: Sequence[int],
    condition: Condition,
    noise: NoiseSource | None = None,
    *,
    frames: int = 6,
) -> Film:
    """Walk x [B, C, *S] along `times` and keep at most `frames` of the steps, evenly spread, first and last included."""
    steps = len(times) - 1
    kept = {int(place) for place in torch.linspace(0, steps - 1, min(frames, steps)).round()}
    shots, now = [], x
    for number, step in enumerate(trajectory(denoiser, solver, x, times, condition, noise)):
        if number in kept:
            shots.append(Frame(times[number], now.float().cpu(), step.prediction.clean.float().cpu()))
        now = step.x
    return Film(shots, now.float().cpu())
