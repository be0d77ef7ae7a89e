"""The conditional difference of two exact Gaussians: known at every noise level, whatever the image and the noise."""

import pytest
import torch

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.diffusion.denoiser import Prediction
from medseg_diff.diffusion.exact import MixtureDenoiser
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.methods.anomaly.conditional_difference import ConditionalDifference
from medseg_diff.methods.anomaly.engine import Networks, Reconstruction
from medseg_diff.networks.noisy_classifier import DISEASED, HEALTHY
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.spaces import PLAIN, ImageSpace

SCHEDULE = NoiseSchedule(kind="linear")
MIXTURE = MixtureDenoiser(SCHEDULE, centres=(-0.5, 0.7), deviation=0.25)  # healthy, diseased


class Told:
    """The ideal denoiser of either component, as it is told."""

    schedule = SCHEDULE

    def __init__(self):
        self.asked = []

    def __call__(self, x_t, t, condition):
        (label,) = set(condition.label.tolist())
        self.asked.append((t, label))
        return MIXTURE.component(label)(x_t, t)


def score(image, denoiser=None, *, seeds=None, space=PLAIN, **settings):
    engine, noise = ConditionalDifference(**settings), SeededNoise(seeds or range(len(image)))
    return engine.score(image, Networks(denoiser or Told(), channels=("t1", "flair"), space=space), noise)


def known(times):
    """E[x_0 | x_t, diseased] - E[x_0 | x_t, healthy] = (c_1 - c_0) sigma² / (alpha² s² + sigma²), meant over the times."""
    healthy, diseased = MIXTURE.centres
    shares = []
    for t in times:
        alpha, sigma = (float(part) for part in SCHEDULE.level(t))
        shares.append(sigma**2 / (alpha**2 * MIXTURE.deviation**2 + sigma**2))
    return (diseased - healthy) * sum(shares) / len(shares)


@pytest.mark.parametrize(("depth", "steps", "times"), [(300, 3, (100, 200, 300)), (400, 1, (400,))])
def test_it_is_the_distance_of_the_two_predictions(depth, steps, times):
    image = torch.randn(3, 2, 6, 5, dtype=torch.float64)
    evidence = score(image, depth=depth, steps=steps)
    torch.testing.assert_close(evidence.score, torch.full((3, 1, 6, 5), 2 * known(times), dtype=torch.float64))
    assert evidence.healthy is None


def test_each_label_is_asked_of_every_time_and_noise_once():
    told = Told()
    score(torch.zeros(1, 2, 4, 4), told, steps=3, noises=2)
    expected = [(t, label) for t in (100, 200, 300) for _ in range(2) for label in (DISEASED, HEALTHY)]
    assert told.asked == expected and ConditionalDifference().evaluations == {"denoiser": len(expected)}


def test_both_labels_see_the_same_noise_and_every_noise_is_its_own():
    seen = []

    class Seeing(Told):
        def __call__(self, x_t, t, condition):
            seen.append(x_t.clone())
            return Prediction(x_t * (1 + condition.label.view(-1, 1, 1, 1)), x_t)

    together = score(torch.zeros(2, 2, 4, 4), Seeing(), seeds=[5, 6], steps=2, noises=2).score
    assert all(torch.equal(seen[n], seen[n + 1]) for n in range(0, 8, 2))
    assert len({float(each.sum()) for each in seen[::2]}) == 4
    alone = score(torch.zeros(1, 2, 4, 4), Seeing(), seeds=[6], steps=2, noises=2).score
    assert torch.equal(together[1:], alone)


def test_it_is_measured_in_the_units_of_the_image_in_the_channels_that_count():
    image = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    halved = score(image, space=ImageSpace(scale=0.5), map_channels=("flair",), map="positive").score
    assert float(halved.mean()) == pytest.approx(2 * known((100, 200, 300)))


@pytest.mark.parametrize("name", ["conditional_difference", "quick/conditional_difference"])
def test_its_recipe_trains_one_network_with_labels_and_has_no_trajectory_to_show(name):
    engine = load_recipe(name, task="anomaly").engine
    assert (engine.networks, engine.needs_labels, engine.learns_from) == (("denoiser",), True, "all")
    assert not isinstance(engine, Reconstruction)
