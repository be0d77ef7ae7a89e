"""A trajectory shows what the walk did, changes nothing about it, and is the same picture every time."""

import pytest
import torch
from lightning_fabric import Fabric
from matplotlib.image import imread

from medseg_diff.diffusion import DDPM, Condition, NoiseSchedule, SeededNoise, walk
from medseg_diff.diffusion.exact import GaussianDenoiser
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.tasks.train import trajectories
from medseg_diff.tasks.train.study import ValidationSlices
from medseg_diff.tasks.train.trajectories import draw_masks, record, shown_channel, worth_showing

SCHEDULE = NoiseSchedule(kind="cosine", length=100)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("steps", "frames", "times"), [(3, 6, [100, 67, 33]), (10, 3, [100, 60, 10]), (1, 6, [100])])
def test_frames_are_of_the_walk_first_and_last_included(monkeypatch, dims, steps, frames, times):
    monkeypatch.setattr(trajectories, "FRAMES", frames)
    denoiser, noise = GaussianDenoiser(SCHEDULE), SeededNoise([1, 2])
    begin = noise(torch.empty(2, 1, *(4,) * dims), 0)
    path = SCHEDULE.times(steps)
    seen = record(denoiser, DDPM(), begin, path, Condition(), SeededNoise([1, 2]))
    assert [frame.t for frame in seen.frames] == times
    assert torch.equal(seen.frames[0].noisy, begin)
    assert torch.equal(seen.end, walk(denoiser, DDPM(), begin, path, Condition(), SeededNoise([1, 2])))
    for frame in seen.frames:
        assert torch.equal(frame.clean, denoiser(frame.noisy, frame.t, Condition()).clean)


def test_the_slices_are_spread_over_those_with_something_in_them():
    mask = torch.zeros(20, 4, 4)
    mask[[3, 5, 9, 12, 17], 1] = 1
    assert worth_showing(mask, 3) == [3, 9, 17] and worth_showing(mask, 4) == [3, 5, 12, 17]
    assert worth_showing(mask[:5], 3) == [3]
    assert worth_showing(torch.zeros(6, 4, 4), 3) == [1, 3, 5]


@pytest.mark.parametrize(("words", "number"), [([], 3), (["view.context=1"], 10), (["channels=[t1,t2]"], 0)])
def test_of_the_channels_flair_is_shown_and_in_25d_the_slice_itself(words, number):
    assert shown_channel(load_recipe("quick/mask_logits", task="segment", overrides=words)) == number


@pytest.mark.parametrize("dims", [2, 3])
def test_a_segmentation_is_drawn_in_2d_and_3d(tmp_path, dims):
    recipe = load_recipe("quick/phantom", task="segment", overrides=["channels=[t1]"])
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(5, 1, *(8,) * dims, generator=generator)
    mask = torch.zeros(image.shape, dtype=torch.bool)
    mask[1:, 0, 2:5] = True
    slices, denoiser = ValidationSlices(image, mask, mask, ("p",) * 5), GaussianDenoiser(recipe.schedule)
    for name in ("first.png", "again.png"):
        draw_masks(denoiser, recipe, slices, tmp_path / name, Fabric(accelerator="cpu", devices=1))
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    height, width, _ = imread(tmp_path / "first.png").shape
    assert abs(height - (0.28 + 6 * 1.15) * 160) < 1 and abs(width - (0.95 + 5 * 1.15) * 160) < 1  # 3 slices, 3 steps
