"""From a map to a mask and its components, on maps that can be counted by hand."""

import numpy as np
import pytest

from medseg_diff.methods.components import LESION_COLUMNS, Findings, find_lesions, find_mask

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


def test_lesions_are_found_measured_and_placed():
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = [90, -60, 10]
    score = np.zeros((20, 20, 12), dtype=np.float32)
    score[2:6, 3:7, 4:8] = 1.0  # 64 voxels of 12 mm³
    score[4, 4, 5] = 3.0
    score[12:14, 12:14, 2:4] = 2.0  # 8 voxels
    score[18, 18, 10] = 9.0  # one voxel: too small
    score[10, 2, 2] = 9.0  # outside the brain
    brain = np.ones(score.shape, dtype=bool)
    brain[10, 2, 2] = False
    found = find_lesions(score, brain, threshold=0.5, smallest_ml=0.05, affine=affine)
    assert found.mask.sum() == 72 and found.removed == 1
    rows = [dict(zip(LESION_COLUMNS, row, strict=True)) for row in found.rows]
    assert [row["volume_ml"] for row in rows] == [0.768, 0.096] and found.volume_ml == 0.864
    assert (rows[0]["x_mm"], rows[0]["y_mm"], rows[0]["z_mm"]) == (83.0, -51.0, 26.5)  # the middle, in RAS
    assert rows[0]["peak"] == 3.0 and rows[0]["mean"] == pytest.approx(1 + 2 / 64, abs=1e-4)
    assert not find_lesions(score, brain, threshold=10.0, smallest_ml=0, affine=affine).mask.any()


def test_lesions_of_one_size_keep_their_order_however_the_voxels_lie():
    score, affine = np.zeros((20, 20, 20), np.float32), np.diag([2.0, 2.0, 2.0, 1.0])
    for number, corner in enumerate([(2, 12, 3), (12, 3, 12), (4, 4, 14)]):
        score[tuple(slice(start, start + 3) for start in corner)] = 1 + number
    turned = affine @ np.array([[-1, 0, 0, 19], [0, -1, 0, 19], [0, 0, -1, 19], [0, 0, 0, 1]])
    tables = [
        find_lesions(each, each > -1, threshold=0.5, smallest_ml=0.1, affine=space).rows
        for each, space in ((score, affine), (score[::-1, ::-1, ::-1].copy(), turned))
    ]
    assert tables[0] == tables[1] and [row[0] for row in tables[0]] == [1, 2, 3]
