"""Every target tells the same story; learned variance, clipping, losses."""

import pytest
import torch

from medseg_diff.diffusion import DDIM, DDPM, Clipped, Condition, Denoiser, NoiseSchedule, trajectory, walk
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.diffusion.exact import GaussianDenoiser
from medseg_diff.diffusion.losses import denoising_loss, hybrid, noised, vlb_term
from medseg_diff.diffusion.solvers import mixed_log_variance, posterior

SCHEDULE = NoiseSchedule(kind="cosine")


class Oracle:
    """A network that says the exact answer for N(0, 0.5²) in the units of `target`."""

    def __init__(self, target, schedule=SCHEDULE, mix=None):
        self.target, self.exact, self.mix = target, GaussianDenoiser(schedule), mix

    def __call__(self, x_t, t, condition):
        seen = self.exact(x_t, t)
        level = self.exact.schedule.level(t, like=x_t)
        value = {
            "noise": lambda: seen.noise,
            "clean": lambda: seen.clean,
            "velocity": lambda: level.alpha * seen.noise - level.sigma * seen.clean,
            "logits": lambda: 2 * torch.atanh(seen.clean.clamp(-0.999999, 0.999999)),
        }[self.target]()
        return value if self.mix is None else torch.cat([value, torch.full_like(value, 2 * self.mix - 1)], dim=1)


@pytest.mark.parametrize("target", ["noise", "clean", "velocity", "logits"])
@pytest.mark.parametrize("dims", [2, 3])
def test_all_targets_believe_the_same(target, dims):
    x = 0.3 * torch.randn(4, 1, *(5,) * dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0, 1, 300, torch.tensor([0, 1, 500, 999])):
        seen = Denoiser(Oracle(target), SCHEDULE, target=target)(x, t, Condition())
        exact = GaussianDenoiser(SCHEDULE)(x, t)
        # At t = 0 the exact belief is x itself; a network is asked at t = 1.
        torch.testing.assert_close(seen.clean, exact.clean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(seen.noise, exact.noise, atol=0.03, rtol=0.03)


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


def test_learned_variance_mixes_logs():
    x = torch.randn(2, 1, 4, 4)
    denoiser = Denoiser(Oracle("noise", mix=0.25), SCHEDULE, learned_variance=True)
    seen = denoiser(x, 500, Condition())
    torch.testing.assert_close(seen.variance_mix, torch.full_like(x, 0.25))
    step = posterior(SCHEDULE.level(500), SCHEDULE.level(400))
    expected = 0.25 * step.beta.log() + 0.75 * step.variance.log()
    assert mixed_log_variance(step, torch.tensor(0.25, dtype=torch.float64)) == pytest.approx(float(expected))


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_learned_variance_sets_the_spread_of_a_step(mix):
    x = torch.zeros(1, 1, 400, 400)
    denoiser = Denoiser(Oracle("noise", mix=mix), SCHEDULE, learned_variance=True)
    generator = torch.Generator().manual_seed(0)
    step = next(
        trajectory(
            denoiser,
            DDPM(variance="learned"),
            x,
            [500, 250, 0],
            noise=lambda like, _: torch.randn(like.shape, generator=generator),
        )
    )
    law = posterior(SCHEDULE.level(500), SCHEDULE.level(250))
    expected = (mix * law.beta.log() + (1 - mix) * law.variance.log()).exp().sqrt()
    assert float(step.x.std()) == pytest.approx(float(expected), rel=0.01)


def test_clipping_leaves_t_zero_alone_and_bounds_the_rest():
    clipped = Clipped(GaussianDenoiser(SCHEDULE, 0.0, 3.0))
    x = torch.linspace(-4, 4, 9).view(-1, 1, 1)
    assert clipped(x, 500, Condition()).clean.abs().max() <= 1
    assert walk(clipped, DDPM(), x, SCHEDULE.times(20)).abs().max() <= 1


@pytest.mark.parametrize("target", ["noise", "clean", "velocity", "logits"])
def test_the_oracle_has_the_lowest_loss(target):
    generator = torch.Generator().manual_seed(1)
    clean = 0.5 * torch.randn(512, 1, 4, 4, generator=generator)
    if target == "logits":
        clean = clean.sign()
    noise = torch.randn(clean.shape, generator=generator)
    t = torch.randint(1, 1001, (512,), generator=generator)

    class Worse(Oracle):
        def __call__(self, x_t, t, condition):
            return super().__call__(x_t, t, condition) * 0.5 + 0.3

    best, worse = (
        hybrid(denoising_loss(Denoiser(net, SCHEDULE, target=target), clean, t, noise, Condition()), 1000).mean()
        for net in (Oracle(target), Worse(target))
    )
    assert best < worse


def test_vlb_is_zero_for_a_perfect_step_and_teaches_only_the_variance():
    clean, noise = 0.5 * torch.randn(8, 1, 4, 4), torch.randn(8, 1, 4, 4)
    t = torch.full((8,), 300)
    level = SCHEDULE.level(t, like=clean)
    from medseg_diff.diffusion import Prediction

    perfect = Prediction(clean, noise, torch.zeros_like(clean))
    assert vlb_term(SCHEDULE, clean, noised(clean, noise, level), t, perfect).abs().max() < 1e-5

    value = torch.zeros(8, 2, 4, 4, requires_grad=True)
    denoiser = Denoiser(lambda x, t, c: value, SCHEDULE, learned_variance=True)
    denoising_loss(denoiser, clean, t, noise, Condition())["vlb"].sum().backward()
    assert value.grad[:, 0].abs().max() == 0 and value.grad[:, 1].abs().max() > 0


def test_vlb_at_the_first_level_is_a_likelihood():
    clean = torch.zeros(4, 1, 8, 8)
    t = torch.ones(4, dtype=torch.long)
    x_t = noised(clean, torch.randn_like(clean), SCHEDULE.level(t, like=clean))
    from medseg_diff.diffusion import Prediction

    near, far = (vlb_term(SCHEDULE, clean, x_t, t, Prediction(clean + d, clean)) for d in (0.0, 0.1))
    assert torch.isfinite(far).all() and (near < far).all()
