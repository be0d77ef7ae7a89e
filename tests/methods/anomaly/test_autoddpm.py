"""AutoDDPM with the exact denoiser of healthy data: what stands out is replaced, all else stays the scan to the last bit."""

import pytest
import torch

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.diffusion.exact import GaussianDenoiser
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.methods.anomaly.autoddpm import AutoDDPM, back_and_forth
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.recipes.lookup import load_recipe

SCHEDULE = NoiseSchedule(kind="linear")
MEAN, DEVIATION = -0.2, 0.3
HEALTHY = GaussianDenoiser(SCHEDULE, MEAN, DEVIATION)
LESION = (..., slice(4, 9), slice(5, 10))


def score(image, **settings):
    engine = AutoDDPM(**{"depth": 600, "steps": 30, "suspicious": 0.6, "blur": 0.5} | settings)
    return engine.score(image, Networks(HEALTHY), SeededNoise(range(len(image))))


def image_of(count=2):
    image = MEAN + 0.1 * torch.randn(count, 1, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image[LESION] = 2.5
    return image


def test_a_lesion_is_replaced_and_the_rest_is_the_scan():
    image = image_of()
    evidence = score(image)
    lesion = torch.zeros_like(image, dtype=torch.bool)
    lesion[LESION] = True
    changed = evidence.healthy != image
    assert changed[lesion].all() and float(changed[~lesion].double().mean()) < 0.15
    torch.testing.assert_close(evidence.healthy[~changed], image[~changed], rtol=0, atol=0)
    assert not evidence.score[~changed].any()
    assert (evidence.healthy[lesion] - MEAN).abs().max() < 4 * DEVIATION


def test_what_is_sampled_again_is_distributed_as_what_is_healthy():
    """Everything is masked and noised to where nothing is left of it: the seam is then a walk of its own, back and forth."""
    image = torch.zeros(4, 1, 40, 40, dtype=torch.float64)
    settings = {"depth": 1000, "suspicious": 0.0, "seam_depth": 1000, "seam_steps": 100, "resamplings": 3}
    healthy = score(image, **settings).healthy
    assert float(healthy.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(healthy.std()) == pytest.approx(DEVIATION, rel=0.15)  # steps of a thousandth would be exact


def test_each_step_is_gone_back_and_forth():
    assert back_and_forth([50, 25, 0], 1) == [50, 25, 0]
    assert back_and_forth([50, 25, 0], 3) == [50, 25, 50, 25, 50, 25, 0, 25, 0, 25, 0]


def test_its_evaluations_are_counted():
    asked = []

    class Counting:
        schedule = SCHEDULE

        def __call__(self, x_t, t, condition):
            asked.append(t)
            return HEALTHY(x_t, t)

    engine = AutoDDPM(steps=6, seam_steps=3, resamplings=4, draws=2)
    engine.score(image_of(1), Networks(Counting()), SeededNoise([0]))
    assert len(asked) == engine.evaluations["denoiser"] == 2 * (6 + 7 * 3)
    assert engine.deepest(SCHEDULE) == 200 and engine.but(seam_depth=300).deepest(SCHEDULE) == 300


def test_the_papers_recipe_is_the_papers():
    engine = load_recipe("autoddpm", task="anomaly").engine
    assert (engine.depth, engine.seam_depth, engine.resamplings) == (200, 50, 5)
