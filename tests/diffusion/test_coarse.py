"""Means of blocks, their enlargement, and what a denoiser is shown of them."""

import pytest
import torch

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.diffusion.coarse import Detail, coarse, enlarged, shown_coarse

SCHEDULE = NoiseSchedule(kind="cosine", length=100)
SIZES = {2: (8, 12), 3: (8, 12, 4)}


def ramp(size):
    """Rises evenly along every axis: [1, 1, *S]."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
    return sum((axis + 1) * (number + 1) for number, axis in enumerate(axes))[None, None]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("factor", [2, 4])
def test_a_ramp_comes_back_in_its_place(dims, factor):
    """Means lie at the middles of blocks, and so does what is enlarged: no half voxel is lost on the way."""
    image = ramp(SIZES[dims])
    back = enlarged(coarse(image, factor), factor)
    assert back.shape == image.shape
    inside = (..., *(slice(factor // 2, n - factor // 2) for n in SIZES[dims]))
    torch.testing.assert_close(back[inside], image[inside])


def test_a_coarse_image_that_is_not_noised_is_shown_as_it_is():
    low, noise = torch.rand(2, 1, 4, 4, 4), torch.randn(2, 1, 4, 4, 4)
    shown = shown_coarse(low, torch.tensor([0, 0]), noise, schedule=SCHEDULE, factor=2)
    assert torch.equal(shown.image, enlarged(low, 2)) and torch.equal(shown.covariates, torch.zeros(2, 1))


def test_the_noise_of_each_sample_is_that_of_its_time_and_told():
    low, noise = torch.zeros(2, 1, 16, 16, 16), torch.randn(2, 1, 16, 16, 16)
    shown = shown_coarse(low, torch.tensor([10, 60]), noise, schedule=SCHEDULE, factor=2)
    deviations = coarse(shown.image, 2).flatten(1).std(dim=1)
    sigma = torch.stack([SCHEDULE.level(t).sigma for t in (10, 60)]).float()
    torch.testing.assert_close(shown.covariates[:, 0], sigma)
    assert deviations[1] > 3 * deviations[0] > 0 and (deviations < sigma).all()  # enlarging smooths


@pytest.mark.parametrize("gain", [0.0, 3.0])
def test_an_image_comes_back_of_its_detail(gain):
    image, shown = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    x = Detail(gain).encode(image, shown)
    assert torch.equal(x, image) if not gain else (x - gain * (image - shown)).abs().max() < 1e-6
    torch.testing.assert_close(Detail(gain).decode(x, shown), image)
