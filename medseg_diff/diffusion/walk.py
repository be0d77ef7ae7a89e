"""The only sampling loop in the house: follow a list of times; downwards it denoises, upwards it encodes."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import AnyDenoiser, Prediction, prepared
from medseg_diff.diffusion.noise import NoiseSource, fresh_noise
from medseg_diff.diffusion.solvers import AnySolver, Past

NOTHING = Condition()


class Step(NamedTuple):
    """The time reached, the image there, and the prediction that led to it."""

    t: int
    x: Tensor
    prediction: Prediction


def trajectory(
    denoiser: AnyDenoiser,
    solver: AnySolver,
    x: Tensor,
    times: Sequence[int],
    condition: Condition = NOTHING,
    noise: NoiseSource | None = None,
) -> Iterator[Step]:
    """Yield every step of x [B, C, *S] from level times[0] to level times[-1]: one denoiser call each.

    `noise(like, step)` gives the standard normals of a step, 1 … len(times) - 1; without it they come from torch's
    global generator. Nothing here keeps a graph; a denoiser that needs a gradient enables it for itself.
    """
    schedule, draw = denoiser.schedule, noise or fresh_noise
    past = None
    with torch.no_grad():
        condition = prepared(denoiser, condition)
    for step, (t, s) in enumerate(itertools.pairwise(times), start=1):
        with torch.no_grad():
            now, then = schedule.level(t), schedule.level(s)
            prediction = denoiser(x, t, condition)
            wanted = solver.stochastic and not then.is_clean
            x = solver(x, now, then, prediction, past, draw(x, step) if wanted else None)
            past = Past(now, prediction)
        yield Step(s, x, prediction)


def walk(
    denoiser: AnyDenoiser,
    solver: AnySolver,
    x: Tensor,
    times: Sequence[int],
    condition: Condition = NOTHING,
    noise: NoiseSource | None = None,
) -> Tensor:
    """Where `trajectory` ends: x [B, C, *S] at level times[-1]."""
    for step in trajectory(denoiser, solver, x, times, condition, noise):
        x = step.x
    return x
