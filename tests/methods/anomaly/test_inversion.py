"""Healing where denoiser and classifier are known exactly, and what heal, the maps and their settings promise."""

import pytest
import torch

from medseg_diff.diffusion import ClassifierGuided, Condition, Denoiser, NoiseSchedule
from medseg_diff.diffusion.exact import GaussianDenoiser, MixtureDenoiser
from medseg_diff.errors import UsageError
from medseg_diff.methods.anomaly.inversion import HealingSettings, difference, heal, probability, saliency

SCHEDULE = NoiseSchedule(kind="linear")
MIXTURE = MixtureDenoiser(SCHEDULE)  # component 0 (healthy) at -1, component 1 at +1, deviation 0.25
SETTINGS = HealingSettings(depth=500, steps=200, scale=1.0)
WELL, ILL = ([centre + MIXTURE.deviation * z for z in (-1.0, 0.0, 1.0)] for centre in MIXTURE.centres)


def samples(values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def healed(values, settings=SETTINGS, **options):
    return heal(
        samples(values),
        denoiser=MIXTURE,
        guided=settings.guided(MIXTURE, MIXTURE.classifier),
        levels=settings.levels(SCHEDULE),
        classifier=MIXTURE.classifier,
        **options,
    )


def arrives(settings):
    """Whether diseased samples end within 2 deviations of the healthy centre and healthy ones within 1 of their place."""
    moved, kept = healed(ILL, settings).healed, healed(WELL, settings).healed
    near = (moved - MIXTURE.centres[0]).abs().max() < 2 * MIXTURE.deviation
    return bool(near and (kept - samples(WELL)).abs().max() < MIXTURE.deviation)


def test_a_diseased_sample_becomes_healthy_and_a_healthy_one_stays():
    assert arrives(SETTINGS)


def test_with_the_sign_of_the_guidance_flipped_it_does_not():
    assert not arrives(SETTINGS.but(scale=-1.0))
    assert healed(ILL, SETTINGS.but(scale=-1.0)).healed.min() > 1.5  # it runs away from healthy


def test_without_guidance_everything_comes_back():
    result = healed(WELL + ILL, SETTINGS.but(scale=0.0))
    torch.testing.assert_close(result.healed, samples(WELL + ILL), atol=0.01, rtol=0)
    assert SETTINGS.but(scale=0.0).guided(MIXTURE, MIXTURE.classifier) is MIXTURE


def test_p_healthy_is_told_before_along_and_after():
    result = healed(ILL)
    assert result.before.shape == (3,) and result.believed.shape == (201, 3)
    assert result.before.max() < 1e-6 and result.believed[-1].min() > 0.999
    assert (result.believed[-1] > result.believed[0] + 0.4).all()
    noisy = MIXTURE.classifier(result.noisy, 500).softmax(1)[:, 0].float()
    torch.testing.assert_close(result.believed[0], noisy)
    unwatched = heal(samples(ILL), denoiser=MIXTURE, guided=MIXTURE, levels=[0, 100, 200])
    assert unwatched.before is None and unwatched.believed is None


class Recording:
    """A Gaussian denoiser that notes what it is asked, and believes in images far outside [-1, 1]."""

    def __init__(self):
        self.schedule, self.times, self.labels = SCHEDULE, [], []
        self.exact = GaussianDenoiser(SCHEDULE, 0.0, 3.0)

    def __call__(self, x_t, t, condition):
        self.times.append(t)
        self.labels.append(None if condition.label is None else condition.label.tolist())
        return self.exact(x_t, max(t, 1))


def test_both_ways_take_the_same_times_told_healthy_on_the_way_back_only():
    up, back = Recording(), Recording()
    settings = HealingSettings(depth=40, steps=4, told_healthy=True)
    image = torch.zeros(2, 1, 4, 4)
    heal(image, denoiser=up, guided=back, levels=settings.levels(SCHEDULE), way_back=settings.way_back(image))
    assert up.times == [0, 10, 20, 30] and back.times == [40, 30, 20, 10]
    assert up.labels == [None] * 4 and back.labels == [[0, 0]] * 4
    assert settings.but(told_healthy=False).way_back(image) == Condition()


def test_nothing_is_clipped():
    image = torch.tensor([5.0, -7.0], dtype=torch.float64).view(2, 1, 1)
    levels = SCHEDULE.times(250, start=0, stop=250)
    back = heal(image, denoiser=Recording(), guided=Recording(), levels=levels).healed
    torch.testing.assert_close(back, image, rtol=0.02, atol=0)


def test_the_scale_of_the_image_is_undone():
    levels = SETTINGS.levels(SCHEDULE)
    half = heal(samples([-2.0, 2.0]), denoiser=MIXTURE, guided=MIXTURE, levels=levels, image_scale=0.5)
    full = heal(samples([-1.0, 1.0]), denoiser=MIXTURE, guided=MIXTURE, levels=levels)
    torch.testing.assert_close(half.healed, 2 * full.healed)
    torch.testing.assert_close(half.noisy, full.noisy)


class Told:
    """A network of noise with the exact answer of the component that the label names, of the mixture for no label."""

    def __call__(self, x_t, t, condition):
        kept = torch.ones(len(x_t), dtype=torch.bool) if condition.kept is None else condition.kept
        if condition.label is None:
            return MIXTURE(x_t, t).noise
        said = torch.stack([MIXTURE.component(k)(x_t, t).noise for k in (0, 1)])
        mine = said[condition.label, torch.arange(len(x_t))]
        return torch.where(kept.view(-1, 1, 1), mine, MIXTURE(x_t, t).noise)


def test_classifier_free_guidance_heals_as_exactly():
    settings = SETTINGS.but(engine="classifier_free")
    denoiser = Denoiser(Told(), SCHEDULE, target="noise")
    image = samples(WELL + ILL)
    free = heal(
        image,
        denoiser=denoiser,
        guided=settings.guided(denoiser, MIXTURE.classifier),
        levels=settings.levels(SCHEDULE),
        way_back=settings.way_back(image),
    )
    torch.testing.assert_close(free.healed, healed(WELL + ILL).healed, atol=0.02, rtol=0)


def test_times():
    assert HealingSettings(depth=250, steps=5).levels(SCHEDULE) == [0, 50, 100, 150, 200, 250]
    bent = HealingSettings(depth=250, steps=10, spacing="quadratic").levels(SCHEDULE)
    assert bent == [0, 3, 10, 23, 40, 63, 90, 122, 160, 203, 250]
    assert HealingSettings(depth=10, steps=10, spacing="quadratic").levels(SCHEDULE) == list(range(11))
    for wrong in ({"depth": 5, "steps": 6}, {"depth": 1001}):
        with pytest.raises(UsageError, match="do not fit a schedule of 1000"):
            HealingSettings(**wrong).levels(SCHEDULE)


def test_passes_are_counted():
    assert HealingSettings(steps=10).passes == {"denoiser": 20, "classifier": 10}
    assert HealingSettings(steps=10, engine="classifier_free").passes == {"denoiser": 30, "classifier": 0}


@pytest.mark.parametrize("size", [(5, 4), (5, 4, 3)])
def test_maps(size):
    generator = torch.Generator().manual_seed(0)
    image, other = torch.randn(2, 2, 3, *size, generator=generator)
    assert difference(image, other).shape == (2, 1, *size)
    torch.testing.assert_close(difference(image, other), (image - other).abs().sum(1, keepdim=True))
    one = difference(image, other, kind="positive", channels=[2])
    torch.testing.assert_close(one, (image - other)[:, 2:].clamp(min=0))
    both = difference(image, other, kind="positive") + difference(other, image, kind="positive")
    torch.testing.assert_close(both, difference(image, other))
    assert not difference(image, image).any()


def bright_spot(x_t, t, condition):
    """Logits of a classifier that calls a sample diseased by the brightness of its corner."""
    corner = 4 * x_t[:, :, 0, 0].sum(1)
    return torch.stack([-corner, corner], dim=1)


def test_saliency_shows_where_the_classifier_looks_and_only_in_what_looks_diseased():
    image = torch.full((2, 2, 4, 4), -0.5)
    image[0, :, 0, 0] = 1.0
    found = saliency(bright_spot, image, schedule=SCHEDULE)
    assert found.shape == (2, 1, 4, 4) and found[0, 0, 0, 0] > 15
    assert found.flatten(1).count_nonzero(1).tolist() == [1, 1]
    assert found[1].max() < 0.02 * found[0].max()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(saliency(bright_spot, image, schedule=SCHEDULE, t=300, noise=noise), found)


def test_a_clean_image_is_asked_about_at_the_first_time_that_was_learned():
    asked = []

    def classifier(x_t, t, condition):
        asked.append(t.tolist())
        return torch.zeros(len(x_t), 2)

    assert probability(classifier, torch.zeros(3, 1, 2, 2), 0).tolist() == [0.5, 0.5, 0.5]
    assert asked == [[1]]


def test_guidance_is_that_of_the_settings():
    guided = HealingSettings(scale=30.0).guided(MIXTURE, MIXTURE.classifier)
    assert isinstance(guided, ClassifierGuided) and (guided.label, guided.scale) == (0, 30.0)
