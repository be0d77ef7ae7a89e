"""NoiseSchedule: end points, published values, and times that include both ends."""

import math

import pytest
import torch

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.errors import MedsegError, UsageError
from medseg_diff.settings import parse_settings


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("length", [50, 100, 1000, 4000])
def test_runs_from_image_to_noise(kind, length):
    schedule = NoiseSchedule(kind=kind, length=length)
    alpha, sigma = (torch.stack([schedule.level(t)[part] for t in range(length + 1)]) for part in (0, 1))
    assert alpha[0] == 1 and sigma[0] == 0
    assert (alpha.diff() < 0).all() and torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert alpha[-1] < (0.08 if kind == "scaled_linear" else 0.01)


@pytest.mark.parametrize("input_scale", [0.1, 0.3, 0.7, 1.0, 2.0])
def test_time_0_is_clean_whatever_the_input_scale(input_scale):
    level = NoiseSchedule(kind="cosine", input_scale=input_scale).level(0)
    assert (float(level.alpha), float(level.sigma)) == (1, 0) and level.is_clean


def test_linear_is_the_product_of_its_betas():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    level = NoiseSchedule(kind="linear").level(700)
    assert float(level.alpha**2) == pytest.approx(float((1 - betas[:700]).prod()), rel=1e-12)


def test_cosine_squares_its_cosine():
    def curve(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    assert float(NoiseSchedule(kind="cosine").level(500).alpha ** 2) == pytest.approx(curve(500) / curve(0), rel=1e-9)


def test_times_include_both_ends_and_reverse():
    schedule = NoiseSchedule(length=1000)
    assert schedule.times(3) == [1000, 667, 333, 0]
    assert schedule.times(1) == [1000, 0]
    assert schedule.times(4, start=0, stop=500) == [0, 125, 250, 375, 500]
    assert schedule.times(1000) == list(range(1000, -1, -1))
    for steps in (1, 7, 300, 999):
        times = schedule.times(steps)
        assert len(times) == len(set(times)) == steps + 1 and times == sorted(times, reverse=True)


@pytest.mark.parametrize("arguments", [(0,), (1001,), (5, 3, 0), (10, 2000, 0)])
def test_impossible_times_are_refused(arguments):
    with pytest.raises(UsageError, match="do not fit"):
        NoiseSchedule().times(*arguments)


def test_levels_outside_are_refused():
    with pytest.raises(UsageError, match="outside"):
        NoiseSchedule().level(1001)


def test_level_of_a_batch_broadcasts_in_the_images_dtype():
    like = torch.zeros(3, 2, 5, 6, 7)
    level = NoiseSchedule().level(torch.tensor([0, 10, 1000]), like=like)
    assert level.alpha.shape == (3, 1, 1, 1, 1) and level.alpha.dtype == like.dtype
    assert float(level.alpha[1]) == pytest.approx(float(NoiseSchedule().level(10).alpha), rel=1e-6)


def test_unknown_settings_name_the_nearest():
    with pytest.raises(MedsegError, match="did you mean `input_scale`"):
        parse_settings(NoiseSchedule, {"kind": "cosine", "input_scal": 0.3}, source="x.yaml")
    with pytest.raises(MedsegError, match="kind"):
        parse_settings(NoiseSchedule, {"kind": "cosin"}, source="x.yaml")
