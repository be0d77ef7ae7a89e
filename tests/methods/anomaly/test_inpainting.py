"""Inpainting with the exact answer of a Gaussian: surprise has the distribution that it claims, and what stands out is
hidden as a whole and filled in from what is left."""

import pytest
import torch

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.diffusion.denoiser import Prediction
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.methods.anomaly.inpainting import Inpainting, Usual, filled, halves
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.spaces import PLAIN, ImageSpace

SCHEDULE = NoiseSchedule(kind="cosine")
SIZE, MEAN, SLOPE, DEVIATION = (40, 36), 0.1, 0.5, 0.15
CHANNELS = ("t1", "flair")


class Exact:
    """x = MEAN + level + DEVIATION eps, the level one number for each sample and channel, known from what is shown."""

    schedule = SCHEDULE

    def __init__(self):
        self.asked = []

    def __call__(self, x_t, t, condition):
        seen, hidden = condition.image[:, :-1], condition.image[:, -1:] > 0
        self.asked.append((t, hidden, x_t))
        shown = (~hidden & (seen > -1).any(dim=1, keepdim=True)).expand_as(seen)
        mean = (seen * shown).flatten(2).sum(2) / shown.flatten(2).sum(2)
        clean = mean[..., None, None].expand_as(seen)
        return Prediction(clean, torch.zeros_like(clean), deviation=torch.full_like(clean, DEVIATION))


def images(count=3, *, lesion=0.0, seed=0):
    """A brain in a frame of background; `lesion` is added to FLAIR and taken from T1 in a square of 8 voxels."""
    generator = torch.Generator().manual_seed(seed)
    level = SLOPE * torch.rand(count, 2, 1, 1, generator=generator, dtype=torch.float64)
    x = MEAN + level + DEVIATION * torch.randn(count, 2, *SIZE, generator=generator, dtype=torch.float64)
    x[:, 0, 6:14, 6:14] -= lesion
    x[:, 1, 6:14, 6:14] += lesion
    brain = torch.zeros(SIZE, dtype=torch.bool)
    brain[2:-2, 2:-2] = True
    return torch.where(brain, x, -1.0), brain


def networks(denoiser=None, space=PLAIN):
    return Networks(denoiser or Exact(), channels=CHANNELS, space=space)


def score(image, denoiser=None, *, seeds=None, space=PLAIN, **settings):
    engine = Inpainting(**{"patch": 3.0, "blur": 1.0} | settings)
    return engine.score(image, networks(denoiser, space), SeededNoise(seeds or range(len(image))))


def test_every_voxel_of_the_brain_is_hidden_once_in_each_look_and_nothing_else_is():
    image, brain = images()
    exact = Exact()
    score(image, exact, looks=3, refills=1)
    assert len(exact.asked) == 2 * 3 + 1 == Inpainting(looks=3, refills=1).evaluations["denoiser"]
    looks = [hidden for _, hidden, _ in exact.asked[:-1]]
    for one, other in zip(looks[::2], looks[1::2], strict=True):
        assert torch.equal(one ^ other, brain.expand_as(one))
        assert abs(int(one.sum()) - int(other.sum())) <= len(image)
    assert not torch.equal(looks[0], looks[2]) and not torch.equal(looks[0][0], looks[0][1])
    assert {t for t, *_ in exact.asked} == {SCHEDULE.length} and not any(x_t.any() for *_, x_t in exact.asked)


def test_patches_are_larger_than_voxels():
    half, _ = halves(SeededNoise([0])(torch.zeros(1, 1, 64, 64), 0), torch.ones(1, 1, 64, 64, dtype=torch.bool), 4.0)
    changes = (half[..., 1:] != half[..., :-1]).float().mean()
    assert 0.01 < changes < 0.15  # 0.5 of independent voxels


def test_the_surprise_of_healthy_tissue_is_a_standard_normal_number():
    image, brain = images(8)
    half, _ = halves(torch.randn(8, 1, *SIZE), brain.expand(8, 1, *SIZE), 3.0)
    _, surprise = filled(image, half, networks())
    values = surprise[half.expand_as(surprise)]
    assert float(values.mean()) == pytest.approx(0, abs=0.05) and float(values.std()) == pytest.approx(1, abs=0.05)
    assert not surprise[~half.expand_as(surprise)].any()


@pytest.mark.parametrize("directions", [{}, {"t1": -1.0, "flair": 1.0}], ids=["any change", "dark and bright"])
def test_a_lesion_is_hidden_as_a_whole_filled_with_the_level_around_it_and_scored_in_deviations(directions):
    image, brain = images(lesion=1.2)
    twin, _ = images()
    found = score(image, directions=directions, suspicious=2.0)
    inside = torch.zeros(SIZE, dtype=torch.bool)
    inside[6:14, 6:14] = True
    healthy = found.healthy[..., inside]
    level = twin[..., brain].mean(-1, keepdim=True)
    torch.testing.assert_close(healthy, level.expand_as(healthy), atol=0.05, rtol=0)
    expected = 1.2 / DEVIATION * 2**0.5 if directions else 1.2 / DEVIATION - 1  # two of one direction add up, over √2
    assert float(found.score[..., inside].mean()) == pytest.approx(expected, rel=0.1)
    far = brain.clone()
    far[2:18, 2:18] = False
    assert torch.equal(found.healthy[..., far], image[..., far]) and not found.score[..., far].any()


def test_a_direction_overlooks_what_goes_the_other_way():
    image, _ = images(lesion=-1.2)
    assert score(image, directions={"t1": -1.0, "flair": 1.0}, suspicious=2.0).score[..., 6:14, 6:14].max() < 4
    assert score(image, suspicious=2.0).score[..., 8:12, 8:12].mean() > 4


def test_of_two_channels_that_agree_half_of_the_difference_is_taken_off():
    surprise = torch.tensor([[3.0, 1.0, 2.0]]).view(1, 3, 1, 1)
    engine = Inpainting(directions={"t1ce": 0.5, "t2": 1.0, "flair": 1.0})
    channels, norm = ("t2", "flair", "t1ce"), 1.5
    assert float(engine.oddness(surprise, channels)) == pytest.approx((3 + 1 + 0.5 * 2) / norm)
    agreeing = engine.but(agreeing=("t2", "flair"))
    assert float(agreeing.oddness(surprise, channels)) == pytest.approx((3 + 1 + 0.5 * 2 - 0.5 * 2) / norm)
    assert float(agreeing.oddness(-surprise, channels)) == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"directions": {"flair": 0.0}}, "directions needs a weight"),
        ({"directions": {"flair": 1.0}, "agreeing": ("t2", "flair")}, "agreeing needs two channels of directions"),
    ],
)
def test_directions_that_point_nowhere_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Inpainting(**wrong)


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_what_surprises_everywhere_surprises_nowhere(shift, scale):
    """A scanner that is not the training's: every voxel is off, and by more than the denoiser believes."""
    brain = torch.ones(2, 1, 60, 60, dtype=torch.bool)
    surprise = shift + scale * torch.randn(2, 2, 60, 60, generator=torch.Generator().manual_seed(0))
    lesion = surprise.clone()
    lesion[:, :, :10, :10] += 10 * scale
    rest = Usual.of(lesion, brain).less(lesion)[:, :, 10:]
    assert float(rest.mean()) == pytest.approx(0, abs=0.1) and float(rest.std()) == pytest.approx(1, abs=0.1)
    assert float(Usual.of(lesion, brain).less(lesion)[:, :, :10, :10].mean()) == pytest.approx(10, rel=0.1)


def test_less_surprise_than_expected_is_not_blown_up():
    quiet = 0.1 * torch.randn(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    assert float(Usual.of(quiet, torch.ones(1, 1, 40, 40, dtype=torch.bool)).less(quiet).std()) < 0.15


def test_never_more_is_hidden_than_leaves_something_to_see():
    image, brain = images()
    exact = Exact()
    score(image, exact, suspicious=0.0, directions={}, refills=1)
    hidden = exact.asked[-1][1]
    assert float(hidden.sum() / brain.sum() / len(image)) == pytest.approx(0.4, abs=0.01)


def test_a_healthy_brain_stays_as_it_is():
    image, _ = images()
    found = score(image, suspicious=2.5)
    assert torch.equal(found.healthy, image) and not found.score.any()


def test_a_second_refill_hides_by_what_the_first_has_found():
    """The first look sees a large lesion through the half of it that is left: less surprise than there is."""
    image, _ = images(lesion=1.2)
    exact = Exact()
    score(image, exact, refills=2, suspicious=2.5)
    first, second = (hidden for _, hidden, _ in exact.asked[-2:])
    assert int(second.sum()) >= int(first.sum())


def test_it_is_measured_in_deviations_whatever_the_space_and_beside_whomever():
    image, _ = images(lesion=1.2)

    class Scaled(Exact):
        def __call__(self, x_t, t, condition):
            seen = condition.image.clone()
            hidden = seen[:, -1:] > 0
            seen[:, :-1] = torch.where(hidden, 0, seen[:, :-1] * 2)
            said = super().__call__(x_t, t, condition._replace(image=seen))
            return said._replace(clean=said.clean / 2, deviation=said.deviation / 2)

    plain, halved = score(image, suspicious=2.0), score(image, Scaled(), space=ImageSpace(scale=0.5), suspicious=2.0)
    torch.testing.assert_close(halved.score, plain.score)
    torch.testing.assert_close(halved.healthy, plain.healthy)
    alone = score(image[1:2], seeds=[1], suspicious=2.0)
    assert torch.equal(alone.score, plain.score[1:2])


def test_the_round_trip_fills_in_everything():
    image, brain = images()
    trip = Inpainting(patch=3.0).round_trip(image, networks())
    lost = (image - trip)[..., brain]
    assert float(lost.std()) == pytest.approx(DEVIATION, rel=0.1)
    assert torch.equal(trip[..., ~brain], image[..., ~brain])


@pytest.mark.parametrize("name", ["inpainting", "quick/inpainting"])
def test_its_recipe_teaches_healthy_tissue_at_the_last_time_alone(name):
    recipe = load_recipe(name, task="anomaly")
    assert recipe.engine.networks == ("denoiser", "classifier") and recipe.engine.learns_from == "tissue"
    assert recipe.denoised_times == (recipe.schedule.length,) * 2 and recipe.denoiser.learned_deviation
    assert recipe.names.image == (*(f"seen {name}" for name in recipe.channels), "hidden")
