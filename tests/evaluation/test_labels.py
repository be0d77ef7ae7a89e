"""Numbers of labels that mean another thing in the masks than in the references."""

from medseg_diff.evaluation.labels import interchanged


def test_labels_are_interchanged_where_each_lies_on_the_other():
    assert interchanged({(1, 2): 90, (2, 1): 30, (1, 1): 10, (2, 2): 20, (3, 3): 9}) == [(1, 2)]


def test_a_poor_mask_is_not_taken_for_one_of_another_convention():
    assert interchanged({(1, 2): 90, (1, 1): 10, (2, 2): 200, (2, 1): 5}) == []  # label 1 is found in the wrong place
    assert interchanged({(1, 3): 90, (3, 3): 10, (2, 2): 1}) == []
    assert interchanged({}) == []
