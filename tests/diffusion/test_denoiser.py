"""Every target tells the same story; learned variance, clipping."""

import math

import pytest
import torch

from medseg_diff.diffusion import DDIM, DDPM, Clipped, Condition, Denoiser, NoiseSchedule, walk
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.diffusion.exact import GaussianDenoiser

SCHEDULE = NoiseSchedule(kind="cosine")


class Oracle:
    """A network that says the exact answer for N(0, 0.5²) in the units of `target`."""

    def __init__(self, target, schedule=SCHEDULE, mix=None):
        self.target, self.exact, self.mix = target, GaussianDenoiser(schedule), mix

    def __call__(self, x_t, t, condition):
        prediction = self.exact(x_t, t)
        level = self.exact.schedule.level(t, like=x_t)
        value = {
            "noise": lambda: prediction.noise,
            "clean": lambda: prediction.clean,
            "velocity": lambda: level.alpha * prediction.noise - level.sigma * prediction.clean,
            "logits": lambda: 2 * torch.atanh(prediction.clean.clamp(-0.999999, 0.999999)),
        }[self.target]()
        return value if self.mix is None else torch.cat([value, torch.full_like(value, 2 * self.mix - 1)], dim=1)


@pytest.mark.parametrize("target", ["noise", "clean", "velocity", "logits"])
@pytest.mark.parametrize("dims", [2, 3])
def test_all_targets_predict_the_same(target, dims):
    x = 0.3 * torch.randn(4, 1, *(5,) * dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0, 1, 300, torch.tensor([0, 1, 500, 999])):
        prediction = Denoiser(Oracle(target), SCHEDULE, target=target)(x, t, Condition())
        exact = GaussianDenoiser(SCHEDULE)(x, t)
        # At t = 0 the exact prediction is x itself; a network is asked at t = 1.
        torch.testing.assert_close(prediction.clean, exact.clean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(prediction.noise, exact.noise, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("target", ["noise", "clean", "velocity"])
def test_encoding_from_zero_works_for_every_target(target):
    denoiser = Denoiser(Oracle(target), SCHEDULE, target=target)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64).view(-1, 1, 1)
    times = SCHEDULE.times(250, start=0, stop=500)
    back = walk(denoiser, DDIM(), walk(denoiser, DDIM(), x, times), times[::-1])
    assert ((back - x).norm() / x.norm()) < 0.02


@pytest.mark.parametrize(("first_time", "asked"), [(1, [1, 1, 300, 1000]), (0, [0, 0, 299, 999])])
def test_foreign_weights_may_count_their_times_from_zero(first_time, asked):
    heard = []

    def network(x, t, condition):
        heard.append(int(t[0]))
        return Oracle("noise")(x, t + (1 - first_time), condition)  # as if trained on its own count

    denoiser = DenoiserSettings(target="noise", first_time=first_time).around(network, SCHEDULE)
    x = 0.3 * torch.randn(4, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0, 1, 300, 1000):
        torch.testing.assert_close(
            denoiser(x, t, Condition()).clean, GaussianDenoiser(SCHEDULE)(x, t).clean, atol=1e-4, rtol=1e-4
        )
    assert heard == asked


def test_a_network_that_learns_its_variance_says_two_things():
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prediction = Denoiser(Oracle("noise", mix=0.25), SCHEDULE, learned_variance=True)(x, 500, Condition())
    torch.testing.assert_close(prediction.variance_mix, torch.full_like(x, 0.25))
    torch.testing.assert_close(prediction.clean, GaussianDenoiser(SCHEDULE)(x, 500).clean)


def test_clipping_bounds_what_is_predicted_and_where_a_walk_ends():
    clipped = Clipped(GaussianDenoiser(SCHEDULE, 0.0, 3.0))
    x = torch.linspace(-4, 4, 9).view(-1, 1, 1)
    assert clipped(x, 500, Condition()).clean.abs().max() <= 1
    assert walk(clipped, DDPM(), x, SCHEDULE.times(20)).abs().max() <= 1


def test_a_network_that_learns_how_sure_it_is_says_mean_and_deviation():
    def network(x_t, t, condition):
        return torch.cat([0.5 * x_t, torch.full_like(x_t, 2 * math.log(0.3))], dim=1)

    denoiser = Denoiser(network, SCHEDULE, target="clean", learned_deviation=True)
    x_t = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    said = denoiser(x_t, 700, Condition())
    torch.testing.assert_close(said.clean, 0.5 * x_t)
    torch.testing.assert_close(said.deviation, torch.full_like(x_t, 0.3))
    assert said.variance_mix is None and Clipped(denoiser)(x_t, 700, Condition()).deviation is not None
    assert denoiser(1e9 * x_t, 0, Condition()).clean.equal(1e9 * x_t)


@pytest.mark.parametrize("said", [-50.0, 50.0])
def test_a_deviation_stays_within_what_a_scan_can_show(said):
    denoiser = Denoiser(
        lambda x, t, c: torch.cat([x, torch.full_like(x, said)], 1), SCHEDULE, target="clean", learned_deviation=True
    )
    deviation = denoiser(torch.zeros(1, 1, 2, 2), 5, Condition()).deviation
    assert 0.02 < float(deviation.mean()) < 5


@pytest.mark.parametrize("wrong", [{"target": "velocity"}, {"target": "clean", "learned_variance": True}], ids=str)
def test_a_deviation_is_of_the_clean_image(wrong):
    with pytest.raises(ValueError, match="learned_deviation is for the clean image"):
        DenoiserSettings(**wrong, learned_deviation=True)
    assert (DenoiserSettings(target="clean", learned_deviation=True).outputs, DenoiserSettings().outputs) == (2, 1)
