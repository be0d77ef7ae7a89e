"""The benchmark of the second stage, whole, in miniature: that it measures is the test; and what its numbers mean."""

import pytest
import torch

from benchmarks.enhancement import Size, compared, measure, show
from medseg_diff.diffusion.coarse import coarse, enlarged

TINY = Size(
    cases=5,
    shape=(32, 32, 32),
    measured=1,
    draws=2,
    steps=1,
    overrides=(
        "preparation.spacing_mm=[8.0,8.0,8.0]",
        "view.size=[16,16,16]",
        "network.width=8",
        "network.multipliers=[1,1]",
        "network.groups=4",
        "training.steps=2",
        "training.batch=2",
        "training.validate_every=2",
        "validation.images=2",
        "validation.drawn=1",
    ),
)


def test_every_way_is_measured_on_the_same_phantom(tmp_path):
    result = measure(tmp_path, size=TINY)
    names = [row["name"] for row in result["rows"]]
    assert names[:3] == ["linear interpolation", "cubic interpolation", "the network without noise, L1"]
    assert names[3:] == ["one draw, condition noise 50", "mean of 2 draws", "one draw, condition noise 0"]
    assert all(name in show(result) for name in names)
    linear, cubic, *_ = result["rows"]
    assert 0 < linear["sharpness"] < cubic["sharpness"] < 1 and linear["psnr"] > 5


def test_the_truth_is_as_sharp_as_itself_and_blurred_less_so():
    image = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    low, brain = coarse(image[None], 2)[0], torch.ones(1, 16, 16, 16, dtype=torch.bool)
    same, blurred = compared(image, image, low, brain), compared(enlarged(low[None], 2)[0], image, low, brain)
    assert same["sharpness"] == 1 and same["consistency"] < 1e-6 and same["ms_ssim"] == pytest.approx(1)
    assert blurred["sharpness"] < 0.2 and blurred["consistency"] > 0.01
    off = compared(image + 0.2, image, low, brain)
    assert off["psnr"] == pytest.approx(20, abs=1e-3) and off["consistency"] == pytest.approx(0.2, abs=1e-5)
