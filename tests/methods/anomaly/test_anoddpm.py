"""AnoDDPM with the exact denoiser of healthy data: what is healthy comes back, what is not does not."""

import torch

from medseg_diff.diffusion import DDIM, NoiseSchedule
from medseg_diff.diffusion.exact import GaussianDenoiser
from medseg_diff.diffusion.noise import SeededNoise, SimplexNoise
from medseg_diff.methods.anomaly.anoddpm import AnoDDPM
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.recipes.lookup import load_recipe

SCHEDULE = NoiseSchedule(kind="linear")
HEALTHY = GaussianDenoiser(SCHEDULE, mean=-0.5, deviation=0.1)  # never saw a lesion


def score(image, noise=None, **settings):
    engine = AnoDDPM(**{"depth": 400, "steps": 50} | settings)
    noise = noise or SeededNoise(range(len(image)))
    return engine.score(image, Networks(HEALTHY), noise)


def with_lesion():
    image = torch.full((2, 1, 16, 16), -0.5, dtype=torch.float64)
    image[:, :, 4:8, 4:8] = 1.0
    return image


def test_a_lesion_that_the_denoiser_has_never_seen_is_not_put_back():
    image = with_lesion()
    evidence = score(image)
    lesion = image > 0
    assert (evidence.healthy - -0.5).abs().max() < 0.5
    torch.testing.assert_close(evidence.score, (image - evidence.healthy).square())
    assert evidence.score[lesion].min() > 3 * evidence.score[~lesion].max()
    assert evidence.score[lesion].mean() > 50 * evidence.score[~lesion].mean()


def test_the_shallower_the_noise_the_more_of_the_lesion_is_kept():
    kept = [float(score(with_lesion(), depth=depth).healthy[:, :, 4:8, 4:8].mean()) for depth in (50, 150, 400)]
    assert kept[0] > kept[1] > kept[2] and kept[0] > -0.2 > kept[1]


def test_its_noise_is_the_one_that_it_is_given_from_the_first_step_on():
    image = torch.full((1, 1, 16, 16), -0.5, dtype=torch.float64)
    plain = score(image, SeededNoise([0]), solver=DDIM()).healthy
    smooth = score(image, SeededNoise([0], SimplexNoise(wavelength=16)), solver=DDIM()).healthy

    def roughness(x):
        return float(x.diff(dim=-1).square().mean() / x.var())

    assert roughness(smooth) < 0.5 * roughness(plain)
    assert not torch.equal(score(image, SeededNoise([1])).healthy, score(image, SeededNoise([0])).healthy)


def test_it_needs_one_network_learned_from_the_healthy():
    assert AnoDDPM().networks == ("denoiser",) and AnoDDPM.learns_from == "healthy"
    assert AnoDDPM(steps=25).evaluations == {"denoiser": 25}


def test_the_papers_recipe_is_the_papers():
    recipe = load_recipe("anoddpm", task="anomaly")
    assert recipe.noise == SimplexNoise(octaves=6, persistence=0.8, wavelength=64)
    assert (recipe.engine.depth, recipe.engine.steps, recipe.schedule.length) == (250, 250, 1000)
    assert recipe.channels == ("t1",) and recipe.denoiser.target == "noise"
    with torch.device("meta"):
        assert sum(p.numel() for p in recipe.build_denoiser().network.parameters()) > 1e8
