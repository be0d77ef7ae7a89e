"""Structural similarity and signal-to-noise ratio."""

import math

import pytest
import torch

from medseg_diff.metrics.likeness import diversity, ms_ssim, psnr


@pytest.mark.parametrize("size", [(48, 40), (24, 24), (9, 12), (20, 24, 20), (32, 40, 33)])
def test_equal_images_are_alike_and_noise_makes_them_less_so(size):
    torch.manual_seed(0)
    image = torch.rand(2, 1, *size) * 2 - 1
    assert torch.allclose(ms_ssim(image, image), torch.ones(2), atol=1e-5)
    little, much = (ms_ssim(image, image + size * torch.randn_like(image)) for size in (0.05, 0.2))
    assert ((much > 0) & (much < little) & (little < 1)).all()


@pytest.mark.parametrize("side", [*range(5, 50), *range(85, 101), 128, 174, 175, 176, 177])
def test_images_of_any_size_have_a_likeness(side):
    image = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(side))
    assert float(ms_ssim(image, image)) == pytest.approx(1, abs=1e-5)


def test_the_ratio_is_its_formula():
    image = torch.zeros(2, 1, 4, 4)
    assert psnr(image, image + 0.2).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)  # 10 log10(4 / 0.04)
    assert psnr(image, image).tolist() == pytest.approx([120.0] * 2, abs=1e-3)
    assert math.isclose(float(psnr(image, image + 1, span=1.0)[0]), 0.0, abs_tol=1e-5)


def test_images_of_one_kind_are_more_alike_than_of_many():
    torch.manual_seed(0)
    common = torch.rand(1, 1, 24, 24)
    alike, unlike = common + 0.05 * torch.randn(8, 1, 24, 24), torch.rand(8, 1, 24, 24)
    assert diversity(alike, pairs=20) > diversity(unlike, pairs=20) + 0.2
    assert (
        diversity(alike, pairs=20, seed=1) == diversity(alike, pairs=20, seed=1) != diversity(alike, pairs=20, seed=2)
    )
    every = [float(ms_ssim(unlike[[a]], unlike[[b]])) for a in range(3) for b in range(a + 1, 3)]
    assert diversity(unlike[:3]) == pytest.approx(sum(every) / 3)
    assert math.isnan(diversity(unlike[:1]))
