"""Numbers of labels that mean another thing in the masks than in the references."""

from collections import Counter

import numpy as np

from medseg_diff.evaluation.labels import _together, interchanged


def test_labels_are_interchanged_where_each_lies_on_the_other():
    assert interchanged({(1, 2): 90, (2, 1): 30, (1, 1): 10, (2, 2): 20, (3, 3): 9}) == [(1, 2)]


def test_a_poor_mask_is_not_taken_for_one_of_another_convention():
    assert interchanged({(1, 2): 90, (1, 1): 10, (2, 2): 200, (2, 1): 5}) == []  # label 1 is found in the wrong place
    assert interchanged({(1, 3): 90, (3, 3): 10, (2, 2): 1}) == []
    assert interchanged({}) == []


def test_pairs_are_counted_as_they_lie():
    draw = np.random.default_rng(0)
    mask, reference = (draw.choice([0, 1, 2, 300, 32767], size=(9, 8, 7)).astype(np.int16) for _ in range(2))
    found = _together(mask, reference)
    pairs = Counter(zip(mask.ravel().tolist(), reference.ravel().tolist(), strict=True))
    assert found == {pair: count for pair, count in pairs.items() if all(pair)}
