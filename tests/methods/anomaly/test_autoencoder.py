"""Autoencoders with networks whose answers are known: what is healthy comes back, what is not is taken for noise."""

import pytest
import torch

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.diffusion.denoiser import Prediction
from medseg_diff.diffusion.exact import GaussianDenoiser
from medseg_diff.diffusion.noise import CoarseNoise, GaussianNoise, SeededNoise
from medseg_diff.errors import ConfigError, UsageError
from medseg_diff.methods.anomaly.autoencoder import Autoencoder
from medseg_diff.methods.anomaly.engine import Networks, Reconstruction
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.spaces import PLAIN, ImageSpace

SCHEDULE = NoiseSchedule(kind="linear")
HEALTHY = GaussianDenoiser(SCHEDULE, mean=-0.5, deviation=0.1)  # never saw a lesion


def with_lesion(dims=2):
    image = torch.full((2, 1, *(12,) * dims), -0.5, dtype=torch.float64)
    image[(..., *(slice(4, 8),) * dims)] = 1.0
    return image


def score(image, denoiser=HEALTHY, *, space=PLAIN, channels=("flair",), **settings):
    noise = SeededNoise(range(len(image)))
    return Autoencoder(**settings).score(image, Networks(denoiser, channels=channels, space=space), noise)


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_healthy_comes_back_and_a_lesion_shrinks_by_what_it_takes_for_noise(dims):
    image, depth = with_lesion(dims), 120
    evidence = score(image, depth=depth)
    alpha, sigma = (float(part) for part in SCHEDULE.level(depth))
    kept = (alpha * HEALTHY.deviation) ** 2 / ((alpha * HEALTHY.deviation) ** 2 + sigma**2)
    expected = (image > 0) * (1 - kept) * (image + 0.5)
    torch.testing.assert_close(evidence.score, expected)
    torch.testing.assert_close(evidence.healthy, image - expected)


def test_the_deeper_the_less_of_a_lesion_is_kept():
    kept = [float(score(with_lesion(), depth=depth).healthy.max()) for depth in (1, 20, 80, 300)]
    assert kept == sorted(kept, reverse=True) and kept[0] > 0.98


def test_a_network_that_says_what_it_sees_scores_nothing():
    class Same:
        schedule = SCHEDULE

        def __call__(self, x_t, t, condition):
            alpha, _ = self.schedule.level(t)
            return Prediction(x_t / alpha, torch.zeros_like(x_t))

    evidence = score(with_lesion(), Same(), depth=80)
    torch.testing.assert_close(evidence.score, torch.zeros_like(evidence.score))


def test_one_pass_without_noise_in_the_space_of_the_networks():
    asked = []

    class Asked:
        schedule = SCHEDULE

        def __call__(self, x_t, t, condition):
            asked.append((x_t, t, condition))
            return HEALTHY(x_t, t)

    space = ImageSpace(scale=0.5, offset=0.5)
    image = with_lesion()
    evidence = score(image, Asked(), space=space, depth=80)
    ((x_t, t, condition),) = asked
    torch.testing.assert_close(x_t, SCHEDULE.level(80).alpha * (0.5 * image + 0.5))
    assert t == 80 and condition.batch is None and Autoencoder().evaluations == {"denoiser": 1}
    torch.testing.assert_close(space.encode(evidence.healthy), HEALTHY(x_t, 80).clean)


def test_the_score_is_of_the_channels_that_count():
    image = with_lesion().repeat(1, 2, 1, 1)
    whole = score(image, channels=("t1", "flair"), depth=80).score
    one = score(image, channels=("t1", "flair"), depth=80, map="positive", map_channels=("flair",)).score
    torch.testing.assert_close(2 * one, whole)


def test_its_network_learns_one_time_and_is_asked_about_no_other():
    engine = Autoencoder(depth=80)
    assert engine.learned_times(SCHEDULE, 1000) == (80, 80) and engine.deepest(SCHEDULE) == 80
    assert (engine.networks, engine.learns_from, engine.swept) == (("denoiser",), "healthy", ())
    assert not isinstance(engine, Reconstruction)
    with pytest.raises(UsageError, match="do not fit a schedule of 1000"):
        Autoencoder(depth=1001).deepest(SCHEDULE)
    recipe = load_recipe("quick/dae", task="anomaly")
    with pytest.raises(ConfigError, match=r"`engine.depth` is fixed by the training: the network has learned nothing"):
        recipe.with_overrides(["engine.depth=40"])
    assert recipe.with_overrides(["engine.map=squared"]).engine.map == "squared"


@pytest.mark.parametrize("name", ["dae", "quick/dae"])
def test_the_noise_of_the_denoising_autoencoder_is_that_of_the_paper(name):
    recipe = load_recipe(name, task="anomaly")
    alpha, sigma = (float(part) for part in recipe.schedule.level(recipe.engine.depth))
    # 0.2 of an image in 0 … 1 at the points of the grid, twice that in -1 … 1, two thirds of it between them in 2D.
    assert sigma / alpha == pytest.approx(2 * 0.2 * 2 / 3, rel=0.03)
    assert isinstance(recipe.noise, CoarseNoise) and recipe.network.kind == "unet"


@pytest.mark.parametrize("name", ["autoencoder", "quick/autoencoder"])
def test_an_autoencoder_learns_next_to_no_noise_and_has_no_way_round_its_code(name):
    recipe = load_recipe(name, task="anomaly")
    assert float(recipe.schedule.level(recipe.engine.depth).sigma) < 0.02
    assert recipe.noise == GaussianNoise() and recipe.network.kind == "bottleneck"
    step, network = recipe.network.step, recipe.network
    places = [-(-side // step) for side in recipe.view.size]
    assert network.code * places[0] * places[1] <= recipe.view.size[0] * recipe.view.size[1] / 20
