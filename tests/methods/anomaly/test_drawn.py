"""Reconstructions that are drawn: with the exact denoiser their distance has the distribution that it claims."""

import pytest
import torch

from medseg_diff.diffusion import DDIM, NoiseSchedule
from medseg_diff.diffusion.exact import GaussianDenoiser
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.methods.anomaly.anoddpm import AnoDDPM
from medseg_diff.methods.anomaly.drawn import mahalanobis
from medseg_diff.methods.anomaly.engine import LEAST_DEVIATION, Networks
from medseg_diff.settings import parse_settings

SCHEDULE = NoiseSchedule(kind="cosine")
MEAN, DEVIATION = 0.2, 0.6
EXACT = Networks(GaussianDenoiser(SCHEDULE, MEAN, DEVIATION), channels=("t1", "flair"))
# Nothing is left of the image: the draws are independent samples.
FROM_NOISE = {"depth": 1000, "steps": 60, "solver": DDIM()}


def score(image, seeds=None, **settings):
    return AnoDDPM(**FROM_NOISE | settings).score(image, EXACT, SeededNoise(seeds or range(len(image))))


@pytest.mark.parametrize("size", [(24, 24), (8, 8, 9)])
def test_of_an_image_like_its_draws_the_squared_distance_is_the_number_of_channels(size):
    image = MEAN + DEVIATION * torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    distance = score(image, draws=150, distance="mahalanobis").score
    expected = 2 * DEVIATION**2 / (DEVIATION**2 + LEAST_DEVIATION**2)
    assert float(distance.square().mean()) == pytest.approx(expected, rel=0.1)
    away = torch.full_like(image, MEAN + 3 * DEVIATION)
    far = score(away, draws=150, distance="mahalanobis").score
    assert float(far.mean()) == pytest.approx(3 * expected**0.5, rel=0.08)


def test_the_distance_is_the_textbooks_and_knows_what_varies_together():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[1.0, 0.0], [0.8, 0.3]], dtype=torch.float64)
    draws = torch.einsum("ij,njv->niv", mixing, torch.randn(500, 2, 7, generator=generator, dtype=torch.float64))
    x = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    found = mahalanobis(x[None], draws[:, None])[0, 0]
    for voxel in range(7):
        covariance = torch.cov(draws[:, :, voxel].T) + LEAST_DEVIATION**2 * torch.eye(2)
        change = x[:, voxel] - draws[:, :, voxel].mean(0)
        torch.testing.assert_close(found[voxel], (change @ covariance.inverse() @ change).sqrt(), rtol=1e-4, atol=0)
    points = torch.tensor([[2.0, 1.6], [2.0, -1.6]], dtype=torch.float64)
    along, across = mahalanobis(points.T[None], draws[:, None, :, :1].expand(-1, -1, -1, 2))[0, 0]
    assert across > 3 * along  # as far from the mean, but never seen together


def test_draws_are_independent_and_their_mean_is_the_reconstruction():
    image = torch.zeros(2, 2, 16, 16, dtype=torch.float64)
    one, many = score(image), score(image, draws=40)
    deviations = [float((each.healthy - MEAN).std()) for each in (one, many)]
    assert deviations[0] == pytest.approx(DEVIATION, rel=0.1)
    assert deviations[1] == pytest.approx(DEVIATION / 40**0.5, rel=0.15)
    torch.testing.assert_close(many.score, (image - many.healthy).square().sum(1, keepdim=True))
    assert AnoDDPM(steps=5, draws=8).evaluations == {"denoiser": 40}


def test_named_channels_alone_are_looked_at():
    image = torch.full((1, 2, 8, 8), MEAN, dtype=torch.float64)
    image[:, 0] += 5
    seen = score(image, draws=20, distance="mahalanobis", map_channels=("t1",)).score
    blind = score(image, draws=20, distance="mahalanobis", map_channels=("flair",)).score
    assert seen.min() > 5 > blind.max()


def test_one_draw_has_no_deviation():
    from medseg_diff.errors import ConfigError

    with pytest.raises(ConfigError, match="set draws to 2 or more"):
        parse_settings(AnoDDPM, {"distance": "mahalanobis"}, source="engine")
