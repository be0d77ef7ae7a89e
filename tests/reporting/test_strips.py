"""Film strips: every picture where it belongs, radiological, and the same bytes for the same film."""

import numpy as np
import pytest
import torch

from medseg_diff.diffusion.exact import GaussianDenoiser
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.reporting.strips import Line, Picture, displayed, strip
from medseg_diff.tasks.train.trajectories import film_segmentation, shown_channel, worth_showing


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


def test_pictures_stand_in_their_places(tmp_path):
    white, black = Picture(np.ones((6, 4))), Picture(np.zeros((6, 4)))
    strip(
        [Line("a", [white, black, None]), Line("b", [black, white, white])],
        columns=["x", "y", "z"],
        path=tmp_path / "s.png",
    )
    shown = pixels(tmp_path / "s.png").mean(axis=2)
    height, width = shown.shape
    left, pitch, head = 0.95 / 4.4, 1.15 / 4.4, 0.28 / 2.58

    def middle(row, column):
        return shown[int(height * (head + (row + 0.5) * 1.15 / 2.58)), int(width * (left + (column + 0.5) * pitch))]

    found = [[round(float(middle(row, column))) for column in range(3)] for row in range(2)]
    assert found == [[1, 0, 0], [0, 1, 1]]


def test_the_same_lines_give_the_same_bytes_and_an_outline_shows(tmp_path):
    outline = np.zeros((8, 8), bool)
    outline[2:6, 2:6] = True
    for name, drawn in (("a", outline), ("b", outline), ("c", None), ("d", np.zeros((8, 8), bool))):
        strip([Line("x", [Picture(np.zeros((8, 8)), outline=drawn)])], columns=["t"], path=tmp_path / name)
    a, b, c, d = ((tmp_path / name).read_bytes() for name in "abcd")
    assert a == b and a != c and c == d


def test_the_patients_right_is_on_the_left_and_anterior_up():
    plane = np.zeros((5, 4))  # [X, Y] in RAS: x grows to the right, y to the front
    plane[-1, -1] = 1  # right, anterior
    assert displayed(plane).shape == (4, 5) and displayed(plane)[0, 0] == 1


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
def test_a_segmentation_is_filmed_in_2d_and_3d(tmp_path, dims):
    recipe = load_recipe("quick/phantom", task="segment", overrides=["channels=[t1]"])
    generator = torch.Generator().manual_seed(0)
    image, mask = (
        torch.randn(5, 1, *(8,) * dims, generator=generator),
        torch.zeros(5, 1, *(8,) * dims, dtype=torch.bool),
    )
    mask[1:, 0, 2:5] = True
    for name in ("first.png", "again.png"):
        film_segmentation(GaussianDenoiser(recipe.schedule), recipe, image, mask, tmp_path / name, device="cpu")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    height, width, _ = pixels(tmp_path / "first.png").shape
    assert abs(height - (0.28 + 6 * 1.15) * 160) < 1 and abs(width - (0.95 + 5 * 1.15) * 160) < 1  # 3 slices, 3 steps
