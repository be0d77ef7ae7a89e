"""The numbers that a scan looks by change with what they are called after, and with nothing else."""

import math

import pytest
import torch

from medseg_diff.data.appearance import appearance_of

SPACING = (2.0, 2.0, 3.0)


def head(seed=0, side=40, depth=12):
    """Two channels of smooth shapes in a ball."""
    x, y, z = torch.meshgrid(torch.arange(side), torch.arange(side), torch.arange(depth), indexing="ij")
    brain = ((x - 20) ** 2 + (y - 20) ** 2 < 15**2) & (z > 1) & (z < depth - 2)
    first = torch.sin(x / 5) * torch.cos(y / 6)
    second = -0.5 * first + 0.3 * torch.sin(z / 3 + y / 9)
    image = torch.where(brain, torch.stack([first, second]), -1.0)
    return image, brain[None]


def look(image, brain, spacing=SPACING):
    return appearance_of(image, brain, spacing, ("t1", "t2"))


def test_every_channel_every_pair_and_the_brain_have_their_numbers():
    found = look(*head())
    own = [
        f"{channel} {kind}"
        for channel in ("t1", "t2")
        for kind in ("q5", "q25", "q50", "q75", "q95", "sharpness", "noise")
    ]
    assert set(found) == {*own, "t1~t2", "brain", "slices"} and all(map(math.isfinite, found.values()))
    assert found["t1 q5"] < found["t1 q50"] < found["t1 q95"] and found["t1~t2"] < -0.3
    _, brain = head()
    assert found["brain"] == pytest.approx(math.log(float(brain.sum()) * 12 / 1000), abs=1e-4)
    assert found["slices"] == pytest.approx(math.log(3), abs=1e-4)


def test_noise_and_blur_and_contrast_move_the_numbers_that_are_called_so():
    image, brain = head()
    plain = look(image, brain)
    noisy = image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0)) * brain
    assert look(noisy, brain)["t1 noise"] > plain["t1 noise"] + 1
    assert look(noisy, brain)["t1 sharpness"] > plain["t1 sharpness"]
    bright = torch.where(brain, image + 0.5, -1.0)
    assert look(bright, brain)["t2 q50"] == pytest.approx(plain["t2 q50"] + 0.5, abs=1e-4)
    assert look(bright, brain)["t1~t2"] == pytest.approx(plain["t1~t2"], abs=1e-3)
    assert look(image, brain, (1.0, 1.0, 3.0))["t1 sharpness"] == pytest.approx(
        plain["t1 sharpness"] + math.log(2), abs=1e-3
    )


def test_what_stands_outside_the_brain_does_not_count():
    image, brain = head()
    assert look(torch.where(brain, image, 7.0), brain) == look(image, brain)


def test_a_channel_that_is_not_there_has_no_numbers_and_no_brain_none_at_all():
    image, brain = head()
    image[1] = -1.0
    assert not any("t2" in name for name in look(image, brain))
    assert look(image, torch.zeros_like(brain)) == {}
