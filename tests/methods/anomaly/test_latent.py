"""The latent engine: how unlikely a latent is, what is drawn anew, and that nothing else of an image changes."""

import math

import pytest
import torch

from medseg_diff.diffusion import NoiseSchedule, SeededNoise
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.errors import CheckpointError
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.methods.anomaly.latent import UNLIKELY, LatentAnomaly
from medseg_diff.networks.autoencoders import Autoencoder, AutoencoderSettings, Coded
from medseg_diff.spaces import LatentSpace

SCHEDULE = NoiseSchedule(kind="linear", length=1000)
DEVIATION = 0.5  # of healthy latents, whose mean is 0


class Halves(Autoencoder):
    """Latents are the image at every second voxel; the way back repeats them."""

    def __init__(self):
        super().__init__(AutoencoderSettings(widths=(8, 8), latent=2), dims=2)

    def raw(self, image):
        return image[..., ::2, ::2]

    def image_of(self, raw):
        return raw.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def forward(self, image):
        return Coded(image, torch.zeros(()))


def ideal(x_t, t, condition):
    """The clean image that healthy latents, independent normal numbers, are expected to have."""
    alpha, sigma = SCHEDULE.level(t, like=x_t)
    return alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2) * x_t


def networks(**reference):
    denoiser = DenoiserSettings(target="clean").around(ideal, SCHEDULE)
    return Networks(denoiser, None, ("t1", "flair"), LatentSpace(Halves()), -3.0, reference)


def noise(count, seed=0):
    return SeededNoise([seed * 100 + each for each in range(count)])


def healthy(count=4, seed=0):
    return DEVIATION * torch.randn(count, 2, 16, 12, generator=torch.Generator().manual_seed(seed)).clamp(-2.9, 2.9)


def test_unlikeliness_is_the_mean_of_the_steps_divergence():
    """Of DDPM's L_{t-1}, with the ideal denoiser of normal numbers: one number that can be computed."""
    engine, t = LatentAnomaly(first=500, last=500), 500
    x = torch.zeros(400, 1, 4, 4)
    found = engine.unlikeliness(x, networks(), noise(400))
    now, then = SCHEDULE.level(t), SCHEDULE.level(t - 1)
    beta = 1 - (now.alpha / then.alpha) ** 2
    of_clean, variance = then.alpha * beta / now.sigma**2, then.sigma**2 / now.sigma**2 * beta
    gain = now.alpha * DEVIATION**2 / (now.alpha**2 * DEVIATION**2 + now.sigma**2)
    # x_t is sigma eps, so the predicted clean image has variance gain² sigma² around the true one, 0
    expected = of_clean**2 * gain**2 * now.sigma**2 / (2 * variance)
    assert found.mean() == pytest.approx(float(expected), rel=0.05)
    assert found.std() / found.mean() == pytest.approx(math.sqrt(2), rel=0.1)  # a chi-square of one degree


def test_what_is_far_from_healthy_is_unlikely():
    x = healthy()[..., ::2, ::2].clone()
    x[:, :, 2:4, 1:3] = 4.0
    found = LatentAnomaly(every=20).unlikeliness(x, networks(), noise(4))
    assert found.shape == (4, 1, 8, 6)
    assert found[:, :, 2:4, 1:3].min() > 2 * found[:, :, 5:].max()


def test_the_threshold_is_that_of_healthy_places_in_the_brain():
    engine, image = LatentAnomaly(percentile=0.9), healthy(8)
    image[:, :, :4] = -3.0
    measured = engine.measure(image, networks(), noise(8))
    assert measured.shape == (8, 8 * 6) and measured.isnan().float().mean() == pytest.approx(0.25)
    kept = measured[~measured.isnan()]
    limit = engine.of_healthy(kept)[UNLIKELY]
    assert (kept > limit).float().mean() == pytest.approx(0.1, abs=0.01)


def scored(image, **settings):
    engine = LatentAnomaly(every=20, steps=10, softness=0.5, **settings)
    values = engine.measure(healthy(8, 5), networks(), noise(8, 5))
    known = networks(**engine.of_healthy(values[~values.isnan()]))
    return engine.score(image, known, noise(len(image)), baselines=True)


def test_a_lesion_is_drawn_anew_and_scores():
    image = healthy()
    image[:, :, 4:8, 2:6] = 2.5
    evidence = scored(image)
    assert evidence.score.shape == (4, 1, 16, 12) and evidence.healthy.shape == image.shape
    assert evidence.healthy[:, :, 4:8, 2:6].abs().mean() < 0.8  # healthy values have a mean size of 0.4
    assert evidence.score[:, :, 4:8, 2:6].mean() > 10 * evidence.score[:, :, 10:].mean()
    assert (evidence.facts["drawn_anew"] > 4 / 48 - 1e-6).all() and (evidence.facts["drawn_anew"] < 0.3).all()
    assert evidence.baselines["unlikely"].shape == evidence.score.shape


def test_what_is_likely_stays_as_the_autoencoder_has_it():
    image = healthy()
    engine = LatentAnomaly(every=50, steps=5)
    evidence = engine.score(image, networks(**{UNLIKELY: 1e9}), noise(4))
    space = LatentSpace(Halves())
    assert torch.allclose(evidence.healthy, space.decode(space.encode(image)), atol=1e-5)
    assert not evidence.score.any() and not evidence.facts["drawn_anew"].any()


def test_without_a_measured_limit_no_map_is_made():
    with pytest.raises(CheckpointError, match="no healthy slice was held out"):
        LatentAnomaly(every=50, steps=5).score(healthy(), networks(), noise(4))


def test_sizes_that_are_no_multiple_of_the_step_keep_their_place():
    image = healthy()[:, :, :15, :11].contiguous()
    evidence = scored(image)
    assert evidence.score.shape == (4, 1, 15, 11) and evidence.healthy.shape == image.shape


def test_a_samples_map_is_its_own():
    image = healthy()
    image[:, :, 4:8, 2:6] = 2.5
    engine, known = LatentAnomaly(every=50, steps=4), networks(**{UNLIKELY: 0.001})
    together = engine.score(image, known, noise(4))
    turned = engine.score(image.flip(0), known, SeededNoise([3, 2, 1, 0]))
    assert torch.equal(turned.score.flip(0), together.score) and torch.equal(turned.healthy.flip(0), together.healthy)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"first": 700}, "first 700 is later than last 600"), ({"steps": 600, "depth": 500}, "600 steps do not fit")],
)
def test_settings_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        LatentAnomaly(**settings)


def test_the_limit_is_found_of_any_number_of_places():
    measured = torch.linspace(0, 1, 2**24 + 1)  # one more than torch's quantile takes
    found = LatentAnomaly().of_healthy(measured[None])
    assert found[UNLIKELY] == pytest.approx(LatentAnomaly().percentile, abs=1e-4)
