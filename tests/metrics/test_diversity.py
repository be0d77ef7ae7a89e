"""Ensemble diversity against answers worked out by hand and a plain double loop."""

import numpy as np
import pytest

from medseg_diff.metrics.diversity import distances, distances_of_slices, pairwise_iou
from medseg_diff.metrics.overlap import iou


def ged2(members, raters):
    return distances(members, raters).ged2


def random_masks(number, *shape, share=0.3, seed=0):
    return np.random.default_rng(seed).random((number, *shape)) < share


def test_pairwise_measures_equal_the_measures_pair_by_pair():
    first, second = random_masks(3, 5, 7, 4), random_masks(4, 5, 7, 4, seed=1)
    first[0], second[0] = False, False
    assert pairwise_iou(first, second) == pytest.approx(np.array([[iou(a, b) for b in second] for a in first]))


def test_ged2_equals_the_three_expectations_over_all_pairs():
    members, raters = random_masks(4, 9, 9), random_masks(3, 9, 9, seed=2, share=0.5)

    def distance(first, second):
        return np.mean([1 - iou(a, b) for a in first for b in second])

    expected = 2 * distance(members, raters) - distance(members, members) - distance(raters, raters)
    assert ged2(members, raters) == pytest.approx(expected)


def test_ged2_by_hand():
    left, right = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    left[:, :2], right[:, 2:] = True, True
    # Members always say left; raters half left, half right: 2·(1/2) - 0 - 1/2.
    assert ged2(np.stack([left, left]), np.stack([left, right])) == pytest.approx(0.5)
    assert ged2(np.stack([left, right]), np.stack([left, right])) == pytest.approx(0.0)
    assert ged2(left[None], right[None]) == pytest.approx(2.0)


def test_ged2_is_zero_for_the_same_set_and_never_negative():
    masks = random_masks(5, 8, 8)
    assert ged2(masks, masks) == pytest.approx(0.0, abs=1e-12)
    assert ged2(masks, masks[::-1]) == pytest.approx(0.0, abs=1e-12)
    assert all(ged2(random_masks(3, 4, 4, seed=s), random_masks(2, 4, 4, seed=s + 100)) >= -1e-12 for s in range(200))


def test_two_empty_masks_have_no_distance():
    empty = np.zeros((2, 4, 4), bool)
    assert ged2(empty, empty) == 0.0
    full = np.ones((2, 4, 4), bool)
    assert ged2(full, empty) == pytest.approx(2.0)


def test_slices_are_those_where_any_rater_marked_a_lesion():
    members, raters = random_masks(3, 6, 8, 8), random_masks(2, 6, 8, 8, seed=3)
    raters[:, [0, 4]] = False
    raters[0, 2] = False
    found = dict(distances_of_slices(members, raters))
    assert sorted(found) == [1, 2, 3, 5]
    for index, value in found.items():
        assert value.ged2 == pytest.approx(ged2(members[:, index], raters[:, index]))
        assert value.ged2_unbiased == pytest.approx(distances(members[:, index], raters[:, index]).ged2_unbiased)


def test_members_as_diverse_as_the_raters_beat_their_consensus():
    generator = np.random.default_rng(5)
    field = np.hypot(*np.mgrid[-1:1:32j, -1:1:32j])
    raters = np.stack([field < radius for radius in generator.uniform(0.3, 0.8, 40)])
    diverse = np.stack([field < radius for radius in generator.uniform(0.3, 0.8, 40)])
    consensus = np.repeat((field < 0.55)[None], 40, axis=0)
    assert ged2(diverse, raters) < 0.2 * ged2(consensus, raters)


def test_probabilities_are_refused():
    with pytest.raises(ValueError, match="boolean"):
        ged2(np.full((2, 4, 4), 0.4), np.ones((2, 4, 4), bool))


def test_members_drawn_as_the_raters_are_have_no_unbiased_distance_however_few():
    """Five such members and three raters: the V-statistic scores them well above 0, the U-statistic 0 on average."""
    field = np.hypot(*np.mgrid[-1:1:32j, -1:1:32j])
    generator = np.random.default_rng(5)
    drawn = [
        distances(*(np.stack([field < r for r in generator.uniform(0.2, 0.9, n)]) for n in (5, 3))) for _ in range(300)
    ]
    assert np.mean([each.ged2_unbiased for each in drawn]) == pytest.approx(0, abs=0.02)
    assert np.mean([each.ged2 for each in drawn]) > 0.15
    for each in drawn[:5]:
        by_terms = 2 * each.between - 4 / 5 * each.among_members - 2 / 3 * each.among_raters
        assert each.ged2 == pytest.approx(by_terms)


def test_one_mask_alone_says_nothing_of_distances_among_its_like():
    lone = distances(random_masks(1, 6, 6), random_masks(3, 6, 6, seed=1))
    assert lone.among_members is None and lone.ged2_unbiased is None and lone.ged2 > 0
