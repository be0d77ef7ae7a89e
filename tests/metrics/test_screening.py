"""The threshold of a look: as high as what is missed below it allows."""

import pytest

from medseg_diff.metrics.screening import choose_screening


def test_as_much_is_left_out_as_may_be_missed():
    largest, lesion = [0.01, 0.4, 0.02, 0.03, 0.9, 0.2], [[0], [90], [0], [1], [900], [9]]
    found = choose_screening(largest, lesion, missed=0.001)
    assert found.threshold == 0.2 and found.missed == pytest.approx(0.001) and found.left_out == 0.5
    none = choose_screening(largest, lesion, missed=0.0005)
    assert none.threshold == 0.03 and none.missed == 0 and none.left_out == pytest.approx(2 / 6)
    assert choose_screening(largest, lesion, missed=0.5).threshold == 0.5  # never above one half


def test_every_region_counts():
    largest, lesion = [0.01, 0.1, 0.3, 0.4], [[0, 0], [1, 5], [500, 5], [499, 5]]
    assert choose_screening(largest, lesion, missed=0.01).threshold == 0.1  # a third of the inner one
    outer = [each[:1] for each in lesion]
    assert choose_screening(largest, outer, missed=0.01).threshold == 0.3


def test_slices_that_look_alike_are_treated_alike():
    found = choose_screening([0.1, 0.1, 0.1, 0.2], [[0], [0], [5], [5]], missed=0.01)
    assert found.threshold == 0.1 and found.left_out == 0 and found.missed == 0


def test_without_a_lesion_nothing_is_known():
    assert choose_screening([0.1, 0.2], [[0], [0]]) is None
    assert choose_screening([0.1, 0.2], [[3, 0], [0, 0]]) is None
    assert choose_screening([], [[]]) is None
