"""From probability to mask, interval and the slices to review, on maps that can be counted by hand."""

import numpy as np
import pytest

from medseg_diff.methods.components import Findings, find_mask
from medseg_diff.tasks.apply.findings import slices_to_review, volume_interval

VOXEL_ML = 0.001


def blobs(*places, shape=(20, 16, 12)):
    """A map that is 0.9 in boxes (corner, size)."""
    out = np.full(shape, 0.2, np.float32)
    for corner, size in places:
        out[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = 0.9
    return out


LARGE, MIDDLE, SPECK = ((2, 2, 2), (5, 5, 4)), ((12, 10, 6), (3, 2, 2)), ((17, 2, 10), (1, 2, 2))  # 100, 12, 4 voxels


def test_components_below_a_share_of_the_largest_are_removed_and_counted():
    mask, removed = find_mask(blobs(LARGE, MIDDLE, SPECK), Findings(), VOXEL_ML)
    assert np.array_equal(mask, blobs(LARGE, MIDDLE) > 0.5)
    assert (removed.components, removed.volume_ml) == (1, pytest.approx(0.004))


def test_the_share_is_of_the_largest_component_and_exact_at_its_edge():
    probability = blobs(LARGE, MIDDLE, SPECK)
    for share, kept in ((0.04, 116), (0.041, 112), (0.12, 112), (0.121, 100), (1.0, 100), (0.0, 116)):
        mask, removed = find_mask(probability, Findings(smallest_component=share), VOXEL_ML)
        assert mask.sum() == kept
        assert removed.volume_ml == pytest.approx((116 - kept) * VOXEL_ML)


def test_corners_connect():
    probability = blobs(((2, 2, 2), (3, 3, 3)), ((5, 5, 5), (1, 1, 1)))
    mask, removed = find_mask(probability, Findings(smallest_component=0.5), VOXEL_ML)
    assert mask.sum() == 28 and removed.components == 0


def test_the_threshold_is_exclusive_and_an_empty_map_stays_empty():
    mask, _ = find_mask(np.full((3, 3, 3), 0.5, np.float32), Findings(), VOXEL_ML)
    assert not mask.any()
    mask, removed = find_mask(np.zeros((3, 3, 3), np.float32), Findings(), VOXEL_ML)
    assert not mask.any() and removed.components == 0
    assert find_mask(blobs(LARGE), Findings(threshold=0.1), VOXEL_ML)[0].all()


def test_the_probability_is_left_as_it_was():
    probability = blobs(LARGE, SPECK)
    find_mask(probability, Findings(), VOXEL_ML)
    assert np.array_equal(probability, blobs(LARGE, SPECK))


def test_the_volume_interval_is_the_central_95_percent_of_members():
    found = volume_interval(list(range(101)), 0.01)
    assert found == {"mean": 0.5, "low": 0.025, "high": 0.975}
    assert volume_interval([700], VOXEL_ML) == {"mean": 0.7, "low": 0.7, "high": 0.7}


def uncertain(expected_ml, axis):
    """Uncertainty whose slices along `axis` sum to `expected_ml`, in voxels of 0.1 ml."""
    out = np.zeros((4, 4, len(expected_ml)), np.float32)
    out[1, 2] = np.asarray(expected_ml) / 0.1
    return np.moveaxis(out, 2, axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_worst_slices_come_first_along_the_patients_long_axis(axis):
    affine = np.zeros((4, 4))
    affine[2, axis], affine[0, (axis + 1) % 3], affine[1, (axis + 2) % 3], affine[3, 3] = -3, 1, 1, 1
    found = slices_to_review(uncertain([0.0, 0.2, 0.04, 0.9, 0.2, 0.06, 0.3, 0.1], axis), affine, 0.1)
    assert [item["slice"] for item in found] == [3, 6, 1, 4, 7]  # at most five; equals in their order
    assert {item["axis"] for item in found} == {axis}
    assert found[0]["expected_error_ml"] == pytest.approx(0.9)


def test_slices_with_little_to_say_need_no_look():
    assert slices_to_review(uncertain([0.0, 0.049, 0.02], 2), np.eye(4), 0.1) == []
    assert [item["slice"] for item in slices_to_review(uncertain([0.0, 0.051, 0.02], 2), np.eye(4), 0.1)] == [1]
