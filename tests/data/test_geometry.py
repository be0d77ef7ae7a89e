"""Where slices lie in the scanner."""

import numpy as np
import pytest

from medseg_diff.data.brain import onto_grid
from medseg_diff.data.geometry import Volume, resampled, slice_heights


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


@pytest.mark.parametrize("tilt_degrees", [0, 7, 20])
def test_slices_in_the_same_planes_keep_their_ends(tilt_degrees):
    """An image of half the matrix in the same oblique slices, with headers of float32, fills the finer one to its rim."""
    tilt = np.deg2rad(tilt_degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    coarse, fine = np.eye(4), np.eye(4)
    coarse[:3, :3], fine[:3, :3] = turn @ np.diag([2.0, 2, 6]), turn @ np.diag([1.0, 1, 6])
    fine[:3, 3] = -30.3, -41.7, 11.1
    coarse[:3, 3] = (fine @ [0.5, 0.5, 0, 1])[:3]  # the middle of the four voxels that are one of the coarse
    coarse, fine = (each.astype(np.float32).astype(np.float64) for each in (coarse, fine))
    onto = Volume(np.zeros((20, 20, 4), np.float32), fine)
    values = np.arange(10 * 10 * 4, dtype=np.float32).reshape(10, 10, 4) + 100
    found = resampled(Volume(values, coarse), onto, nearest=False).voxels
    assert found.min() >= 100
    labels = resampled(Volume(np.ones((10, 10, 4), np.int16), coarse), onto, nearest=True).voxels
    assert labels.all()


def test_a_thick_first_slice_keeps_its_volume_and_what_lies_beyond_is_outside():
    thick, thin = np.diag([1.0, 1, 5, 1]), np.eye(4)
    thin[2, 3] = -2 - 3  # three slices more than the thick ones reach, at either end
    onto = Volume(np.zeros((2, 2, 21), np.float32), thin)
    labels = np.zeros((2, 2, 3), np.int16)
    labels[:, :, 0] = 1
    found = resampled(Volume(labels, thick), onto, nearest=True).voxels
    np.testing.assert_array_equal(found[0, 0], [0] * 3 + [1] * 5 + [0] * 13)
    image = resampled(Volume(np.array([[[50.0, 100, 100]]], np.float32), thick), onto, nearest=False).voxels[0, 0]
    assert (
        (image[:3] == 50).all()
        and (image[3:6] == 50).all()
        and (image[13:18] == 100).all()
        and (image[18:] == 50).all()
    )


def test_beyond_its_field_of_view_an_image_is_as_outside_the_head():
    """Negative voxels in the brain, 0 around it: the slab that a channel lacks is no brain."""
    draw = np.random.default_rng(0)
    head = ((np.indices((24, 24, 24)) - 12) ** 2).sum(0) < 81
    scan = np.where(head, draw.normal(size=head.shape), 0).astype(np.float32)[..., :16]
    found = onto_grid(Volume(scan, np.eye(4)), Volume(np.zeros(head.shape, np.float32), np.eye(4)))
    assert (found.voxels[..., 17:] == 0).all() and (found.voxels[..., :16] == scan).all()
