"""cDDPM with the exact denoiser of healthy brains whose brightness is the code: that comes back, and a lesion does not."""

import pytest
import torch

from medseg_diff.diffusion import Condition, Denoiser, NoiseSchedule
from medseg_diff.diffusion.denoiser import Prediction
from medseg_diff.diffusion.exact import GaussianDenoiser
from medseg_diff.diffusion.noise import SeededNoise, SimplexNoise
from medseg_diff.methods.anomaly.cddpm import ConditionedDDPM
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.networks.encoded import WithEncoderSettings
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.spaces import PLAIN, ImageSpace

SCHEDULE = NoiseSchedule(kind="linear")
DEVIATION = 0.05  # of healthy voxels about the brightness of their image


class Coded:
    """The ideal denoiser of images that are healthy but for a brightness of their own, which it takes from a code: the
    middle value of the image, which a small lesion does not move."""

    schedule = SCHEDULE

    def __init__(self):
        self.encoded = 0

    def prepare(self, condition):
        self.encoded += 1
        code = condition.image.flatten(1).median(dim=1, keepdim=True).values
        return condition._replace(image=None, covariates=code)

    def __call__(self, x_t, t, condition):
        assert condition.image is None  # behind the code there is nothing to copy from
        mean = condition.covariates.view(-1, *(1,) * (x_t.ndim - 1))
        alpha, _ = self.schedule.level(t, like=x_t)
        about = GaussianDenoiser(self.schedule, 0.0, DEVIATION)(x_t - alpha * mean, t)
        return Prediction(about.clean + mean, about.noise)


def with_lesion(brightness=(-0.5, 0.1)):
    image = torch.tensor(brightness, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 1, 16, 16).clone()
    image[:, :, 4:8, 4:8] += 0.8
    return image


def score(image, denoiser=None, *, space=PLAIN, **settings):
    networks = Networks(denoiser or Coded(), channels=("t2",), space=space)
    return ConditionedDDPM(**settings).score(image, networks, SeededNoise(range(len(image))))


@pytest.mark.parametrize("steps", [1, 10])
def test_each_brain_comes_back_at_its_own_brightness_without_the_lesion(steps):
    image = with_lesion()
    evidence = score(image, steps=steps)
    healthy = image.flatten(1).median(dim=1).values.view(-1, 1, 1, 1).expand_as(image)
    assert (evidence.healthy - healthy).abs().max() < 5 * DEVIATION
    torch.testing.assert_close(evidence.score, (image - evidence.healthy).abs())
    lesion = image > healthy
    assert evidence.score[lesion].min() > 2 * evidence.score[~lesion].max()


def test_the_image_is_encoded_once_a_walk_in_the_space_of_the_networks():
    denoiser = Coded()
    score(with_lesion(), denoiser, steps=7)
    assert denoiser.encoded == 1 and ConditionedDDPM(steps=7).evaluations == {"denoiser": 7}
    image = torch.full((1, 1, 16, 16), -0.5, dtype=torch.float64)  # healthy, in whatever units
    for space in (PLAIN, ImageSpace(scale=0.5, offset=0.5)):
        assert score(image, Coded(), space=space).score.max() < 5 * DEVIATION / space.scale


def test_all_that_the_network_takes_over_of_a_clean_image_is_its_code():
    settings = WithEncoderSettings(
        width=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        code=4,
        encoder={"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (), "head_width": None},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = settings.build(dims=2, channels=1, outputs=1, image_channels=1).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
    seen = []
    network.unet.register_forward_hook(lambda module, given, said: seen.append(given[2]))
    evidence = score(with_lesion().float(), Denoiser(network, SCHEDULE, target="clean"), steps=3)
    assert evidence.healthy.isfinite().all() and len(seen) == 3
    assert all(each == Condition(covariates=each.covariates) and each.covariates.shape == (2, 4) for each in seen)


def test_it_needs_one_network_that_learns_healthy_images_from_themselves():
    engine = ConditionedDDPM()
    assert (engine.networks, engine.learns_from, engine.conditioned_on) == (("denoiser",), "healthy", "image")


def test_the_papers_recipe_is_the_papers():
    recipe = load_recipe("cddpm", task="anomaly")
    assert (recipe.engine.depth, recipe.engine.steps, recipe.schedule.length) == (500, 1, 1000)
    assert (recipe.network.width, recipe.network.multipliers, recipe.network.code) == (128, (1, 2, 2), 128)
    assert recipe.channels == ("t2",) and recipe.denoiser.target == "clean" and recipe.view.size == (96, 96)
    assert isinstance(recipe.noise, SimplexNoise)
