"""What must hold of the engine on every machine: each law is a number that can be computed, and a bound.

The tests assert them and `medseg-diff selftest` prints them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor

from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import Clipped, Prediction
from medseg_diff.diffusion.exact import GaussianDenoiser, MixtureDenoiser, ddim_gain, ddpm_moments
from medseg_diff.diffusion.guidance import ClassifierFree, ClassifierGuided, Pinned
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.diffusion.schedule import NoiseSchedule, ScheduleKind
from medseg_diff.diffusion.solvers import DDIM, DDPM, AnySolver
from medseg_diff.diffusion.walk import walk

KINDS: tuple[ScheduleKind, ...] = get_args(ScheduleKind)
STEPS = (2, 5, 10, 20, 50, 100, 250, 300, 600, 1000)
MEAN, DEVIATION = 0.3, 0.5
NOTHING = Condition()
_LEVELS = NoiseSchedule(kind="linear").times(250, start=0, stop=500)


@dataclass(frozen=True)
class Law:
    """A statement, how to measure how far it is from holding, and how far it may be."""

    name: str
    measure: Callable[[], float]
    bound: float


def all_laws() -> Iterator[Law]:
    """Every law of the engine."""
    for kind in KINDS:
        for walker in (DDIM(), DDPM(), DDIM(eta=1.0), DDIM(eta=0.5)):
            name = f"{_name(walker)}, {kind}: moments after {STEPS[0]}-{STEPS[-1]} steps equal the linear map's by hand"
            yield Law(name, partial(worst_moment_error, walker, NoiseSchedule(kind=kind)), 1e-6)
        for solver in every_solver():
            name = f"{_name(solver)}, {kind}: 1000 steps give N({MEAN}, {DEVIATION}²)"
            yield Law(name, partial(truth_error, solver, NoiseSchedule(kind=kind)), 0.01)
    for solver in every_solver():
        for kind in KINDS if solver.order else ():
            name = f"{_name(solver)}, {kind}: error falls with order {solver.order}"
            yield Law(name, partial(order_shortfall, solver, NoiseSchedule(kind=kind)), 0.15)
    for kind, bound in (("linear", 0.007), ("cosine", 0.0035)):
        name = f"DDIM, {kind}: 0 → 500 → 0 in 500 steps returns the image"
        yield Law(name, partial(round_trip_error, NoiseSchedule(kind=kind), 500, 500), bound)
        name = f"DDIM, {kind}: twice the steps, half the round-trip error"
        yield Law(name, partial(round_trip_halving_error, NoiseSchedule(kind=kind)), 0.1)
        name = f"DDIM, {kind}: 0 → T → 0 returns the image"
        yield Law(name, partial(round_trip_error, NoiseSchedule(kind=kind), 1000, 1000), 0.01)
    yield Law("guidance at scale 1 is the component's own denoiser", guidance_error, 1e-9)
    yield Law("encoded, then decoded with guidance at scale 1: the component's own linear map", guided_way_error, 1e-9)
    yield Law("so decoded, either component ends within 2 deviations of the one guided to", guided_arrival, 2.0)
    yield Law("classifier-free guidance at scale 1 is the conditioned denoiser", classifier_free_error, 1e-12)
    yield Law("a clipped prediction still explains x_t", clipping_error, 1e-9)
    yield Law("what is pinned comes out as it was, the rest as without it", pinning_error, 1e-9)
    yield Law("a sample's noise is the same in any batch (bits that differ)", noise_batch_error, 0.0)
    yield Law("input scale b shifts log SNR by 2 ln b", input_scale_error, 1e-9)


def every_solver() -> list[AnySolver]:
    """One of each member of `AnySolver`, as it is without settings: a new solver meets the laws by being listed there."""
    union, *_ = get_args(AnySolver)
    return [solver() for solver in get_args(union)]


def worst_moment_error(solver: DDIM | DDPM, schedule: NoiseSchedule) -> float:
    """Largest relative error of mean and deviation over the step counts, walk against hand calculation."""
    denoiser = GaussianDenoiser(schedule, MEAN, DEVIATION)
    eta = solver.eta if isinstance(solver, DDIM) else 1.0
    worst = 0.0
    for steps in STEPS:
        times = schedule.times(steps)
        mean, deviation = walked_moments(solver, denoiser, times)
        true_mean, true_deviation = ddpm_moments(denoiser, times, eta)
        worst = max(worst, abs(mean - true_mean) / MEAN, abs(deviation / true_deviation - 1))
        if eta == 0:
            worst = max(worst, abs(deviation / ddim_gain(denoiser, times) - 1))
    return worst


def truth_error(solver: AnySolver, schedule: NoiseSchedule) -> float:
    """Relative error of the deviation reached from exact noise at T in 1000 steps."""
    denoiser = GaussianDenoiser(schedule, MEAN, DEVIATION)
    start = schedule.level(schedule.length)
    exact_start = float((start.alpha**2 * DEVIATION**2 + start.sigma**2).sqrt())
    mean, deviation = walked_moments(
        solver, denoiser, schedule.times(1000), start=(float(start.alpha) * MEAN, exact_start)
    )
    return max(abs(mean - MEAN), abs(deviation - DEVIATION)) / DEVIATION


def walked_moments(
    solver: AnySolver, denoiser: GaussianDenoiser, times: list[int], start: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """Mean and deviation at the end of a walk from N(start), exactly: the walk is linear, so impulses tell all.

    Row 0 starts at the mean without noise, row 1 one deviation higher, row k + 1 gets a unit of noise in step k.
    """
    rows = len(times) + 1
    x = torch.full((rows, 1, 1), start[0], dtype=torch.float64)
    x[1] += start[1]

    def impulse(like: Tensor, step: int) -> Tensor:
        noise = torch.zeros_like(like)
        noise[step + 1] = 1
        return noise

    end = walk(denoiser, solver, x, times, noise=impulse).flatten()
    return float(end[0]), float((end[1:] - end[0]).square().sum().sqrt())


def measured_order(solver: AnySolver, schedule: NoiseSchedule) -> float:
    """Slope of log error against log steps, 800 → 200, against the exact flow of a Gaussian."""
    denoiser = GaussianDenoiser(schedule, MEAN, DEVIATION)
    a, b = schedule.level(800), schedule.level(200)
    spread = [float((level.alpha**2 * DEVIATION**2 + level.sigma**2).sqrt()) for level in (a, b)]
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    exact = float(b.alpha) * MEAN + spread[1] / spread[0] * (1 - float(a.alpha) * MEAN)
    counts = (25, 50, 100, 200)
    errors = [abs(float(walk(denoiser, solver, x, schedule.times(n, start=800, stop=200))) - exact) for n in counts]
    return min(
        math.log(e / f) / math.log(m / n) for (e, f), (n, m) in zip(pairwise(errors), pairwise(counts), strict=True)
    )


def order_shortfall(solver: AnySolver, schedule: NoiseSchedule) -> float:
    """How far the measured order stays below the one that the solver claims."""
    assert solver.order is not None
    return solver.order - measured_order(solver, schedule)


def round_trip_error(schedule: NoiseSchedule, depth: int, steps: int) -> float:
    """Relative error of encode then decode, for N(0, DEVIATION²) data."""
    denoiser = GaussianDenoiser(schedule, 0.0, DEVIATION)
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    times = schedule.times(steps, start=0, stop=depth)
    back = walk(denoiser, DDIM(), walk(denoiser, DDIM(), x, times), times[::-1])
    return abs(float(back) - 1)


def round_trip_halving_error(schedule: NoiseSchedule) -> float:
    """How far 250 → 500 steps is from halving the error."""
    return abs(round_trip_error(schedule, 500, 500) / round_trip_error(schedule, 500, 250) - 0.5)


def guidance_error() -> float:
    """Largest difference between the guided mixture and the component's denoiser, over labels and times."""
    mixture = MixtureDenoiser(NoiseSchedule(kind="cosine"), weights=(0.3, 0.7))
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).view(-1, 1, 1)
    worst = 0.0
    for label in (0, 1):
        guided = ClassifierGuided(mixture, mixture.classifier, label, scale=1.0)
        for t in (1, 100, 500, 900):
            difference = guided(x, t, NOTHING).noise - mixture.component(label)(x, t).noise
            worst = max(worst, float(difference.abs().max()))
    return worst


def guided_way_error() -> float:
    """Largest distance between a guided walk back and the closed form of the component's flow."""
    noisy, healthy, mixture = _guided_ways()
    times = _LEVELS[::-1]
    gain, alpha = ddim_gain(mixture.component(0), times), mixture.schedule.level(times[0]).alpha
    exact = mixture.centres[0] + gain * (noisy - alpha * mixture.centres[0])
    return float((healthy - exact).abs().max())


def guided_arrival() -> float:
    """How many deviations from the centre guided to the furthest sample ends, of those within 1 of either centre."""
    _, healthy, mixture = _guided_ways()
    return float((healthy - mixture.centres[0]).abs().max()) / mixture.deviation


def _guided_ways() -> tuple[Tensor, Tensor, MixtureDenoiser]:
    """Samples of both components encoded with the mixture's denoiser, then decoded with guidance to component 0."""
    mixture = MixtureDenoiser(NoiseSchedule(kind="linear"))
    spread = torch.linspace(-1, 1, 9, dtype=torch.float64) * mixture.deviation
    x = torch.cat([centre + spread for centre in mixture.centres]).view(-1, 1, 1)
    noisy = walk(mixture, DDIM(), x, _LEVELS)
    guided = ClassifierGuided(mixture, mixture.classifier, 0, scale=1.0)
    return noisy, walk(guided, DDIM(), noisy, _LEVELS[::-1]), mixture


def classifier_free_error() -> float:
    """At scale 1 the null branch must cancel."""
    known, null = (GaussianDenoiser(NoiseSchedule(kind="cosine"), mean) for mean in (0.5, 0.0))

    class Labelled:
        schedule = known.schedule

        def __call__(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Prediction:
            assert condition.keep is not None
            kept = condition.keep.view(-1, 1, 1)
            one, other = known(x_t, t), null(x_t, t)
            return Prediction(torch.where(kept, one.clean, other.clean), torch.where(kept, one.noise, other.noise))

    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1, 1)
    condition = Condition(label=torch.zeros(9, dtype=torch.long))
    guided = ClassifierFree(Labelled(), scale=1.0)(x, 400, condition)
    return float((guided.clean - known(x, 400).clean).abs().max())


def clipping_error() -> float:
    """x_t = alpha clean + sigma noise after clipping."""
    schedule = NoiseSchedule()
    x = torch.linspace(-5, 5, 21, dtype=torch.float64).view(-1, 1, 1)
    worst = 0.0
    for t in (1, 300, 1000):
        prediction = Clipped(GaussianDenoiser(schedule, MEAN, 3.0))(x, t, NOTHING)
        level = schedule.level(t)
        worst = max(worst, float((level.alpha * prediction.clean + level.sigma * prediction.noise - x).abs().max()))
        worst = max(worst, float(prediction.clean.abs().max()) - 1)
    return worst


def pinning_error() -> float:
    """Largest difference, after a walk, from the known image where it is kept and from the plain walk where it is not."""
    denoiser = GaussianDenoiser(NoiseSchedule(kind="cosine"), MEAN, DEVIATION)
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(1, 1, 12)
    known, mask = torch.cos(3 * x), torch.arange(12).view(1, 1, 12) % 3 == 0
    times = denoiser.schedule.times(50)
    pinned = walk(Pinned(denoiser, known, mask), DDIM(), x, times)
    return float((pinned - torch.where(mask, walk(denoiser, DDIM(), x, times), known)).abs().max())


def noise_batch_error() -> float:
    """Values that differ between a sample's noise alone and in a batch, over steps."""
    seeds = (11, 12, 13, 14)
    together = torch.empty(4, 2, 5, 3)
    differing = 0
    for step in range(3):
        batch = SeededNoise(seeds)(together, step)
        for row, seed in enumerate(seeds):
            differing += int((SeededNoise([seed])(together[:1], step)[0] != batch[row]).sum())
    return float(differing)


def input_scale_error() -> float:
    """log SNR' - log SNR - 2 ln b, largest over t (log SNR = 2 log(alpha / sigma))."""
    worst = 0.0
    for t in (1, 250, 500, 999):
        plain, scaled = NoiseSchedule(kind="cosine").level(t), NoiseSchedule(kind="cosine", input_scale=0.3).level(t)
        shift = 2 * torch.log(scaled.alpha / scaled.sigma) - 2 * torch.log(plain.alpha / plain.sigma)
        worst = max(worst, abs(float(shift) - 2 * math.log(0.3)))
    return worst


def _name(solver: AnySolver) -> str:
    return f"DDIM(eta={solver.eta})" if isinstance(solver, DDIM) else type(solver).__name__
