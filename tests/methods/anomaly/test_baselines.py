"""The maps that need no network: what they are made of, and that the edge of the brain is not darkened."""

import numpy as np
import pytest
import torch

from medseg_diff.methods.anomaly.baselines import bright_channels, brightness, smoothed, unlike_its_blur


@pytest.fixture
def ball():
    """A brain [1, 24, 24, 24] that fills a ball."""
    grid = np.stack(np.meshgrid(*[np.arange(24) - 11.5] * 3, indexing="ij"))
    return torch.from_numpy(np.linalg.norm(grid, axis=0) < 10)[None]


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (("t1", "t1ce", "t2", "flair"), {"flair": ("flair",), "flair_t2": ("flair", "t2")}),
        (("t1", "t2"), {"t2": ("t2",)}),
        (("t1",), {"t1": ("t1",)}),
    ],
)
def test_the_bright_channels_are_those_that_there_are(channels, expected):
    assert bright_channels(channels) == expected


def test_brightness_adds_channels_above_the_darkest_voxel(ball):
    image = torch.stack([ball[0] * 2.0 - 1, ball[0] * 0.5 - 1, torch.full(ball.shape[1:], 7.0)])
    image[0, 12, 12, 12] = 4.0
    found = brightness(image, ball, [0, 1])
    assert found[~ball].abs().max() == 0 and found[0, 12, 12, 12] == 3.0
    assert found[ball].min() == 0


def test_smoothing_keeps_a_constant_brain_constant_up_to_its_edge(ball):
    found = smoothed(ball * 3.0, ball, spacing_mm=(1, 1, 2), deviation_mm=3.0)
    torch.testing.assert_close(found, ball * 3.0, atol=1e-4, rtol=0)


def test_smoothing_is_in_millimetres(ball):
    spot = torch.zeros(ball.shape)
    spot[0, 11, 11, 11] = 1.0
    found = smoothed(spot, ball, spacing_mm=(1, 1, 4), deviation_mm=2.0)[0]
    assert found[13, 11, 11] == pytest.approx(float(found[11, 13, 11]), rel=1e-3)
    assert found[11, 11, 12] < 0.3 * found[12, 11, 11]  # 4 mm away against 1 mm
    assert torch.equal(smoothed(spot, ball, spacing_mm=(1, 1, 1), deviation_mm=0.0), spot)


def test_a_small_bright_spot_differs_from_its_blur_and_a_flat_brain_does_not(ball):
    flat = torch.where(ball, 0.5, -1.0)
    assert unlike_its_blur(flat, ball, spacing_mm=(1, 1, 1)).max() < 1e-4
    flat[0, 10:13, 10:13, 10:13] += 1.0
    found = unlike_its_blur(flat, ball, spacing_mm=(1, 1, 1))
    assert found[0, 11, 11, 11] > 0.8 and found[0, 3, 11, 11] < 0.1
