"""Lesions found and false alarms, on boxes that can be counted by hand."""

import numpy as np
import pytest

from medseg_diff.metrics.detection import components_of, lesion_detection

VOXEL_ML = 0.01


def boxes(*places, shape=(20, 20, 10)):
    out = np.zeros(shape, bool)
    for corner, size in places:
        out[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = True
    return out


LARGE, SMALL, FAR = ((1, 1, 1), (5, 5, 4)), ((10, 10, 2), (2, 1, 1)), ((16, 2, 7), (3, 3, 2))  # 100, 2, 18 voxels


def test_components_are_numbered_and_their_voxels_counted():
    labels, sizes = components_of(boxes(LARGE, SMALL, FAR))
    assert sorted(sizes.tolist()) == [2, 18, 100] and labels.max() == 3
    assert [np.count_nonzero(labels == number) for number in (1, 2, 3)] == sizes.tolist()
    assert labels[0, 0, 0] == 0 and np.array_equal(labels > 0, boxes(LARGE, SMALL, FAR))
    assert components_of(boxes())[1].size == 0


def test_lesions_are_counted_as_found_missed_and_invented():
    found = lesion_detection(boxes(LARGE, FAR), boxes(LARGE, SMALL), voxel_ml=VOXEL_ML)
    assert (found.lesions, found.hits, found.components, found.false_positives) == (2, 1, 2, 1)
    assert (found.sensitivity, found.precision, found.f1) == (0.5, 0.5, 0.5)
    assert found.false_positive_ml == pytest.approx(0.18)


def test_a_match_needs_its_share_and_is_exact_at_the_edge():
    truth = boxes(LARGE)
    for voxels, share, hits in ((10, 0.1, 1), (9, 0.1, 0), (9, 0.09, 1), (1, 0.001, 1)):
        marked = np.zeros_like(truth)
        marked[tuple(np.argwhere(truth)[:voxels].T)] = True
        assert lesion_detection(marked, truth, voxel_ml=VOXEL_ML, hit=share).hits == hits


def test_marking_everything_finds_everything_and_is_a_false_alarm():
    found = lesion_detection(np.ones((20, 20, 10), bool), boxes(LARGE, SMALL), voxel_ml=VOXEL_ML)
    assert (found.sensitivity, found.precision, found.f1) == (1.0, 0.0, 0.0)


def test_what_is_too_small_is_neither_a_lesion_nor_an_alarm():
    found = lesion_detection(boxes(LARGE, FAR), boxes(LARGE, SMALL), voxel_ml=VOXEL_ML, smallest_ml=0.2)
    assert (found.lesions, found.hits, found.components, found.false_positives) == (1, 1, 1, 0)
    only_small = lesion_detection(boxes(SMALL), boxes(SMALL), voxel_ml=VOXEL_ML, smallest_ml=0.2)
    assert (only_small.lesions, only_small.components, only_small.false_positives) == (0, 1, 0)


def test_corners_connect_and_two_dimensions_do():
    truth = np.zeros((6, 6), bool)
    truth[1, 1] = truth[2, 2] = truth[5, 0] = True
    found = lesion_detection(truth, truth, voxel_ml=0.001)
    assert (found.lesions, found.hits, found.false_positives) == (2, 2, 0)


def test_with_nothing_to_find_shares_are_undefined():
    nothing, something = boxes(), boxes(LARGE)
    both = lesion_detection(nothing, nothing, voxel_ml=VOXEL_ML)
    assert (both.sensitivity, both.precision, both.f1) == (None, None, None)
    missed = lesion_detection(nothing, something, voxel_ml=VOXEL_ML)
    assert (missed.sensitivity, missed.precision, missed.f1) == (0.0, None, 0.0)
    alarm = lesion_detection(something, nothing, voxel_ml=VOXEL_ML)
    assert (alarm.sensitivity, alarm.precision, alarm.f1) == (None, 0.0, None)
    assert alarm.false_positive_ml == pytest.approx(1.0)


def test_counts_do_not_change_when_axes_are_turned():
    rng = np.random.default_rng(0)
    mask, truth = rng.random((12, 10, 8)) < 0.03, rng.random((12, 10, 8)) < 0.03
    assert lesion_detection(mask, truth, voxel_ml=0.001) == lesion_detection(
        mask.transpose(2, 0, 1)[::-1], truth.transpose(2, 0, 1)[::-1], voxel_ml=0.001
    )


@pytest.mark.parametrize("change", [{"hit": 0.0}, {"hit": 1.1}, {"reference": np.zeros((20, 20, 9), bool)}])
def test_what_makes_no_sense_is_refused(change):
    words = {"mask": boxes(LARGE), "reference": boxes(LARGE), "voxel_ml": VOXEL_ML} | change
    with pytest.raises(ValueError, match=r"share above 0|one shape"):
        lesion_detection(**words)
