"""Patched DDPM: every voxel is denoised in a box once, and what the denoiser sees of the rest never shows the box."""

import pytest
import torch

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.diffusion.denoiser import Prediction
from medseg_diff.diffusion.exact import GaussianDenoiser
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.errors import ConfigError
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.methods.anomaly.patched import Patched
from medseg_diff.recipes.lookup import load_recipe

SCHEDULE = NoiseSchedule(kind="linear")
HEALTHY = GaussianDenoiser(SCHEDULE, mean=-0.5, deviation=0.1)


class Seeing:
    """What is there is what is seen around it, as the healthy denoiser has it: notes what it is shown."""

    schedule = SCHEDULE

    def __init__(self):
        self.shown = []

    def __call__(self, x_t, t, condition):
        self.shown.append(condition.image)
        return HEALTHY(x_t, t)


def image_of(*size):
    image = torch.full((2, 1, *size), -0.5, dtype=torch.float64)
    image[:, :, :2] = image[..., :1] = -1  # background
    image[:, :, 6:10, 5:9] = 1.0
    return image


def score(image, denoiser=HEALTHY, **settings):
    return Patched(**settings).score(image, Networks(denoiser), SeededNoise(range(len(image))))


@pytest.mark.parametrize("steps", [1, 4])
def test_a_lesion_that_the_denoiser_has_never_seen_is_not_put_back(steps):
    image = image_of(20, 24)
    evidence = score(image, steps=steps)
    lesion, brain = image > 0, image > -1
    assert evidence.score[lesion].min() > 4 * evidence.score[brain & ~lesion].max()
    torch.testing.assert_close(evidence.healthy[~brain], image[~brain], rtol=0, atol=0)


@pytest.mark.parametrize(("size", "share", "boxes"), [((20, 24), 0.5, 4), ((21, 17), 0.4, 9), ((6, 7, 8), 0.5, 8)])
def test_all_of_the_brain_is_hidden_and_no_box_is_seen(size, share, boxes):
    seeing, image = Seeing(), torch.rand(1, 2, *size, dtype=torch.float64)
    engine = Patched(share=share, steps=2)
    engine.score(image, Networks(seeing), SeededNoise([0]))
    assert len(seeing.shown) == 2 * boxes
    if len(size) == 2:
        assert engine.evaluations == {"denoiser": 2 * boxes}
    hidden = torch.stack([each[:, -1:] > 0 for each in seeing.shown])
    assert hidden.any(dim=0).all()
    for shown, gap in zip(seeing.shown, hidden, strict=True):
        assert not shown[:, :-1][gap.expand_as(image)].any()
        assert torch.equal(shown[:, :-1][~gap.expand_as(image)], image[~gap.expand_as(image)])


def test_where_boxes_overlap_their_mean_counts():
    class Counting:
        schedule = SCHEDULE
        asked = 0

        def __call__(self, x_t, t, condition):
            self.asked += 1
            return Prediction(torch.full_like(x_t, float(self.asked)), torch.zeros_like(x_t))

    healthy = score(torch.zeros(1, 1, 10, 4, dtype=torch.float64), Counting(), share=0.6).healthy
    # Rows 0-5 and 4-9, columns 0-1 and 2-3: boxes 1 and 2, then 3 and 4.
    assert healthy[0, 0, :, 0].tolist() == pytest.approx([1.0] * 4 + [2.0] * 2 + [3.0] * 4)


def test_the_size_of_its_boxes_is_learned():
    recipe = load_recipe("quick/patched", task="anomaly")
    assert recipe.with_overrides(["engine.steps=2"]).engine.steps == 2
    with pytest.raises(ConfigError, match=r"`engine.share` is fixed by the training"):
        recipe.with_overrides(["engine.share=0.25"])


def test_the_papers_recipe_is_the_papers():
    recipe = load_recipe("patched", task="anomaly")
    assert recipe.view.size == (96, 96) and recipe.engine.hiding.sides((96, 96)) == [48, 48]
    assert (recipe.engine.depth, recipe.engine.steps, recipe.noise.kind) == (500, 1, "simplex")
    assert recipe.engine.learns_from == "healthy" and recipe.names.image == ("seen t2", "hidden")
