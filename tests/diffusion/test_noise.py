"""A sample's noise: standard normal, and new for every seed and every step. (`laws` has that the batch has no say.)"""

import pytest
import torch

from medseg_diff.diffusion import SeededNoise
from medseg_diff.diffusion.noise import CoarseNoise, GaussianNoise, SimplexNoise

ROWS = torch.empty(3, 1, 100_000)


def correlation(one, other):
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def test_it_is_standard_normal():
    drawn = SeededNoise([1, 2, 3])(ROWS, 0)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01) and float(drawn.std()) == pytest.approx(1, abs=0.01)
    assert float(drawn.pow(4).mean()) == pytest.approx(3, abs=0.1)


def test_every_step_and_every_seed_has_noise_of_its_own():
    source = SeededNoise([1, 2, 3])
    first, second = source(ROWS, 0), source(ROWS, 1)
    assert correlation(first, second) == pytest.approx(0, abs=0.01)
    assert correlation(first[0], first[1]) == pytest.approx(0, abs=0.02)
    assert correlation(first[0], second[1]) == pytest.approx(0, abs=0.02)  # the next seed's is not the next step's
    assert torch.equal(source(ROWS, 1), second)


def test_it_comes_in_the_images_dtype():
    assert SeededNoise([1])(torch.empty(1, 2, 3, dtype=torch.float64), 0).dtype == torch.float64


@pytest.mark.parametrize("size", [(48, 40), (20, 16, 12)])
def test_simplex_noise_has_unit_size_and_is_smooth_and_each_field_its_own(size):
    noise = SimplexNoise(wavelength=16).draw(torch.empty(2, 3, *size), torch.Generator().manual_seed(0))
    fields = noise.flatten(2)
    torch.testing.assert_close(fields.mean(2), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(fields.square().mean(2), torch.ones(2, 3))
    gaussian = GaussianNoise().draw(noise, torch.Generator().manual_seed(0))
    assert noise.diff(dim=-1).square().mean() < 0.5 * gaussian.diff(dim=-1).square().mean()
    correlation = torch.corrcoef(fields.flatten(0, 1)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.7


def test_simplex_noise_without_octaves_is_continuous_and_varies_over_its_wavelength():
    one = SimplexNoise(octaves=1, wavelength=32).draw(torch.empty(64, 1, 64, 64), torch.Generator().manual_seed(0))[
        :, 0
    ]
    neighbours = (one[:, :, 1:] * one[:, :, :-1]).mean()
    far = (one[:, :, 32:] * one[:, :, :-32]).mean()
    assert neighbours > 0.97 and abs(far) < 0.15
    assert one.diff(dim=2).abs().max() < 0.6  # no seams between simplices


def test_octaves_get_rougher_with_their_persistence():
    def roughness(persistence):
        kind = SimplexNoise(octaves=4, persistence=persistence, wavelength=32)
        return float(
            kind.draw(torch.empty(4, 1, 64, 64), torch.Generator().manual_seed(0)).diff(dim=-1).square().mean()
        )

    assert roughness(0.2) < roughness(0.5) < roughness(0.9)


def test_a_samples_simplex_noise_is_the_same_in_any_batch():
    like, kind = torch.empty(3, 2, 12, 10), SimplexNoise(wavelength=8)
    batch = SeededNoise([5, 6, 7], kind)(like, 2)
    assert torch.equal(SeededNoise([6], kind)(like[:1], 2)[0], batch[1])
    assert not torch.equal(SeededNoise([6], kind)(like[:1], 3)[0], batch[1])


@pytest.mark.parametrize("size", [(24, 20), (15, 9), (8, 6, 7), (40,), (5, 1)])
def test_coarse_noise_has_mean_0_and_deviation_1_at_every_voxel(size):
    """Whatever the size and wherever the voxel: near a grid's point as between them, at an edge as in the middle."""
    fields = CoarseNoise(cells=5).draw(torch.empty(4000, 2, *size), torch.Generator().manual_seed(0))
    assert fields.shape == (4000, 2, *size) and fields.isfinite().all()
    count = 8000
    assert fields.flatten(0, 1).mean(0).abs().max() < 5 / count**0.5
    assert (fields.flatten(0, 1).square().mean(0) - 1).abs().max() < 5 * (4 / count) ** 0.5  # kurtosis is above 3
    assert abs(correlation(fields[:, 0], fields[:, 1])) < 0.05


def test_coarse_noise_is_straight_between_points_and_ends_where_it_begins():
    (field,) = CoarseNoise(cells=4).draw(torch.empty(1, 1, 64, 64), torch.Generator().manual_seed(0))[0]
    bends = field.diff(n=2, dim=0).abs().max(dim=1).values > 1e-4
    assert 1 <= bends.sum() <= 2 * 4  # at the points alone
    steps, across = field.diff(dim=0).abs().max(), (field[0] - field[-1]).abs().max()
    assert across <= steps + 1e-5
    assert roughness_of(field) < 0.1 * roughness_of(GaussianNoise().draw(field, torch.Generator().manual_seed(0)))


def roughness_of(field):
    return float(field.diff(dim=-1).square().mean() / field.var())


def test_coarse_noise_varies_over_an_axis_divided_by_its_cells():
    fields = CoarseNoise(cells=8).draw(torch.empty(200, 1, 64, 32), torch.Generator().manual_seed(0))[:, 0]
    along = [float((fields[:, lag:] * fields[:, : -lag or None]).mean()) for lag in (2, 16)]
    across = [float((fields[:, :, lag:] * fields[:, :, : -lag or None]).mean()) for lag in (1, 8)]
    assert along[0] == pytest.approx(across[0], abs=0.03) and along[0] > 0.85
    assert max(abs(along[1]), abs(across[1])) < 0.1


def test_a_samples_coarse_noise_is_the_same_in_any_batch():
    like, kind = torch.empty(3, 2, 12, 10, dtype=torch.float64), CoarseNoise(cells=3)
    batch = SeededNoise([5, 6, 7], kind)(like, 2)
    assert batch.dtype == torch.float64
    assert torch.equal(SeededNoise([6], kind)(like[:1], 2)[0], batch[1])
    assert not torch.equal(SeededNoise([6], kind)(like[:1], 3)[0], batch[1])
