"""The picture of a registration shows both images in squares, before and after."""

import numpy as np
import pytest

from medseg_diff.data.geometry import Volume
from medseg_diff.reporting.registration import PLANES, Shown, _checkerboard, _through_the_middle, draw_registration

AFFINE = np.diag([-2.0, 2.0, 5.0, 1.0])


@pytest.fixture
def fixed():
    return Volume(np.random.default_rng(0).random((40, 50, 16), dtype=np.float32), AFFINE)


def test_squares_of_both_images_in_turn(fixed):
    other = Volume(np.ones(fixed.shape, np.float32), AFFINE)
    other.voxels[:2], other.voxels[:, :, 0] = 0, 0
    for axis in PLANES.values():
        plane = _through_the_middle(fixed, axis)
        assert plane.shape[axis] == 1
        picture, spacing = _checkerboard(plane, other, axis)
        share = float((picture == 1).mean())
        assert 0.3 < share < 0.7  # the other image is bright all over
        assert spacing == {2: [2.0, 2.0], 1: [5.0, 2.0], 0: [5.0, 2.0]}[axis]
    same, _ = _checkerboard(_through_the_middle(fixed, 2), fixed, 2)
    assert same.shape == (50, 40) and same.std() > 0.1


def test_the_same_images_give_the_same_picture(fixed, tmp_path):
    shown = {"t2": Shown(fixed, fixed, "0.0 mm, 0.0°"), "flair": Shown(fixed, fixed, "1.2 mm, 0.3°")}
    for name in "ab":
        draw_registration(fixed, "t1", shown, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
