"""A sample's noise: standard normal, and new for every seed and every step. (`laws` has that the batch has no say.)"""

import pytest
import torch

from medseg_diff.diffusion import SeededNoise

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
