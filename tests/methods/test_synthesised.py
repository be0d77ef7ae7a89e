"""Drawing: of normal numbers the mean and deviation are known, and each image owns its noise."""

import pytest
import torch

from medseg_diff.diffusion import DDIM, DDPM, NoiseSchedule
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.diffusion.guidance import DynamicallyClipped
from medseg_diff.methods.synthesised import Drawing
from medseg_diff.spaces import PLAIN, ImageSpace

SCHEDULE = NoiseSchedule(kind="cosine", length=1000)
DEVIATION = 0.2


def ideal(x_t, t, condition):
    """The expected clean image of independent normal numbers whose mean is the covariate, or 0 where it is not known."""
    alpha, sigma = SCHEDULE.level(t, like=x_t)
    mean = torch.zeros(1) if condition.covariates is None else condition.covariates[:, 0]
    if condition.keep is not None:
        mean = torch.where(condition.keep, mean, 0)
    mean = mean.view(-1, *(1,) * (x_t.ndim - 1))
    gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
    return mean + gain * (x_t - alpha * mean)


DENOISER = DenoiserSettings(target="clean").around(ideal, SCHEDULE)


def drawing(**changes):
    known = {"space": PLAIN, "shape": (1, 24, 24), "solver": DDIM(), "times": SCHEDULE.times(40), "network_batch": 4}
    return Drawing(**(known | changes))


def images(covariates=None, count=6, seeds=None, **changes):
    known = None if covariates is None else torch.tensor([[float(value)] for value in covariates])
    return drawing(**changes).images(DENOISER, seeds or list(range(count)), known, torch.device("cpu"))


@pytest.mark.parametrize("solver", [DDIM(), DDPM()], ids=["ddim", "ddpm"])
def test_mean_and_deviation_are_those_asked_for(solver):
    drawn = images([-0.5, 0.0, 0.5, -0.5, 0.0, 0.5], solver=solver)
    assert drawn.shape == (6, 1, 24, 24)
    for value, image in zip([-0.5, 0.0, 0.5] * 2, drawn, strict=True):
        assert float(image.mean()) == pytest.approx(value, abs=0.04)
        assert float(image.std()) == pytest.approx(DEVIATION, rel=0.2)  # of 40 steps


def test_guidance_exaggerates_and_none_forgets():
    plain, more, none = (images([0.2] * 4, count=4, guidance=scale).mean() for scale in (1.0, 2.0, 0.0))
    assert plain == pytest.approx(0.2, abs=0.03)
    assert more > plain + 0.1 and none == pytest.approx(0.0, abs=0.03)


def test_an_image_is_its_own_whatever_stands_beside_it():
    together = images([0.1, 0.2, 0.3, 0.4, 0.5], count=5)
    alone = images([0.4], seeds=[3])
    assert torch.equal(alone[0], together[3])


def test_a_space_is_decoded():
    drawn = images(space=ImageSpace(scale=0.5), limit=100.0)
    assert torch.allclose(drawn, 2 * images(limit=100.0))


def test_a_limit_holds_for_the_share_that_was_said():
    torch.manual_seed(0)
    wide = DenoiserSettings(target="clean").around(lambda x_t, t, condition: 3 * torch.randn_like(x_t), SCHEDULE)
    x = torch.randn(2, 1, 40, 40)
    clean = DynamicallyClipped(wide, 1.0, share=0.9)(x, 500, None).clean
    assert clean.abs().max() <= 1.0 and (clean.abs() > 0.999).float().mean() == pytest.approx(0.1, abs=0.01)
    narrow = DenoiserSettings(target="clean").around(lambda x_t, t, condition: 0.1 * x_t.clamp(-2, 2), SCHEDULE)
    assert torch.equal(DynamicallyClipped(narrow, 1.0, share=0.9)(x, 500, None).clean, 0.1 * x.clamp(-2, 2))
    prediction = DynamicallyClipped(wide, 1.0, share=0.9)(x, 500, None)
    level = SCHEDULE.level(500)
    assert torch.allclose(level.alpha.float() * prediction.clean + level.sigma.float() * prediction.noise, x, atol=1e-5)
