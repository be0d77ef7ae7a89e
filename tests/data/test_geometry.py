"""Where slices lie in the scanner."""

import numpy as np
import pytest

from medseg_diff.data.geometry import slice_heights


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_as_high_as_its_middle(axis):
    shape, order = (5, 7, 9), [(axis + 1) % 3, (axis + 2) % 3, axis]  # which axis runs R, A, S
    tilt = np.deg2rad(20)
    directions = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    for towards, place in enumerate(order):
        affine[:3, place] = directions[towards] * (towards + 1)
    affine[:3, 3] = 10, 20, 30
    heights = slice_heights(affine, shape)
    assert len(heights) == shape[axis]
    for number, height in enumerate(heights):
        middle = [(size - 1) / 2 for size in shape] + [1]
        middle[axis] = number
        assert height == pytest.approx((affine @ middle)[2], abs=0.05)
