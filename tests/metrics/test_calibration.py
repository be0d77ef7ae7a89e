"""Calibration measures against closed forms and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from medseg_diff.metrics.anomaly import rank
from medseg_diff.metrics.calibration import aurc, brier, ece, reliability, reliability_curve, tally


def auroc_error(uncertainty, error):
    return rank(uncertainty, error).auroc()


@pytest.fixture
def drawn():
    """100,000 voxels whose probability is true by construction."""
    generator = np.random.default_rng(0)
    probability = generator.beta(0.3, 0.7, 100_000)
    return probability, generator.random(100_000) < probability


def test_a_true_probability_is_calibrated_and_a_distorted_one_is_not(drawn):
    probability, outcome = drawn
    assert ece(probability, outcome) < 0.005
    shrunk = 0.5 * probability
    # Halving every probability misses by half of its mean, in every bin in the same direction.
    assert ece(shrunk, outcome) == pytest.approx(0.5 * probability.mean(), abs=0.005)


def test_a_constant_probability_is_off_by_its_distance_to_the_frequency():
    outcome = np.arange(1000) < 300
    assert ece(np.full(1000, 0.5), outcome) == pytest.approx(0.2)
    assert ece(np.full(1000, 0.3), outcome) == pytest.approx(0.0, abs=1e-12)


def test_order_of_voxels_does_not_matter_even_with_ties(drawn):
    probability, outcome = drawn
    rounded = np.round(probability, 1)
    order = np.random.default_rng(1).permutation(len(rounded))
    for measure in (ece, aurc, auroc_error):
        assert measure(rounded, outcome) == measure(rounded[order], outcome[order])


def test_bins_hold_equal_mass(drawn):
    probability, outcome = drawn
    curve = reliability_curve(probability, outcome, bins=10)
    thirds = np.sort(probability).reshape(10, -1).mean(axis=1)
    assert curve.probability == pytest.approx(thirds)
    assert curve.frequency == pytest.approx(outcome[np.argsort(probability)].reshape(10, -1).mean(axis=1))
    assert len(reliability_curve(probability, outcome).probability) == 15


def test_ece_of_four_voxels_in_two_bins_of_two():
    probability, outcome = np.array([0.9, 0.1, 0.3, 0.2]), np.array([True, False, False, True])
    # {0.1, 0.2}: 0.15 against 1/2; {0.3, 0.9}: 0.6 against 1/2. Bins of equal width would part them 3 to 1: 0.125.
    assert ece(probability, outcome, bins=2) == pytest.approx((0.35 + 0.1) / 2)
    curve, wide = reliability_curve(probability, outcome, bins=2), reliability(probability, outcome, bins=2)
    assert curve.probability.tolist() == pytest.approx([0.15, 0.6]) and curve.frequency.tolist() == [0.5, 0.5]
    assert wide.voxels.tolist() == [3, 1] and wide.probability.tolist() == pytest.approx([0.6, 0.9])
    assert wide.events.tolist() == [1, 1]


def test_brier_equals_scikit_learn(drawn):
    probability, outcome = drawn
    assert brier(probability, outcome) == pytest.approx(brier_score_loss(outcome, probability))


@pytest.mark.parametrize("decimals", [1, 12])
def test_auroc_equals_scikit_learn_with_and_without_ties(drawn, decimals):
    probability, outcome = drawn
    assert auroc_error(np.round(probability, decimals), outcome) == pytest.approx(
        roc_auc_score(outcome, np.round(probability, decimals)), abs=1e-12
    )


def test_auroc_is_undefined_without_errors_or_without_right_voxels():
    assert auroc_error(np.array([0.1, 0.2]), np.array([False, False])) is None
    assert auroc_error(np.array([0.1, 0.2]), np.array([True, True])) is None


def test_aurc_by_hand_and_at_its_best_and_worst():
    error = np.array([False, False, True, True])
    assert aurc(np.array([0.1, 0.2, 0.3, 0.4]), error) == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)
    assert aurc(np.array([0.4, 0.3, 0.2, 0.1]), error) == pytest.approx((1 + 1 + 2 / 3 + 2 / 4) / 4)
    # An uncertainty that says nothing: the error rate at every coverage.
    assert aurc(np.zeros(4), error) == pytest.approx(0.5)


def test_a_tally_keeps_every_voxel_and_event():
    groups = tally(np.array([[0.2, 0.1], [0.2, 0.5]]), np.array([[True, False], [False, True]]))
    assert groups.scores.tolist() == [0.1, 0.2, 0.5]
    assert groups.voxels.tolist() == [1, 2, 1]
    assert groups.events.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("scores", "events"),
    [
        (np.array([0.1, np.nan]), np.array([True, False])),
        (np.array([0.1, 0.2]), np.array([1, 0])),
        (np.array([0.1, 0.2]), np.array([True])),
        (np.array([]), np.array([], bool)),
    ],
)
def test_senseless_input_is_refused(scores, events):
    with pytest.raises(ValueError, match=r"finite|needs"):
        tally(scores, events)


@pytest.mark.timeout(120)  # seconds, unless it grows faster than the voxels
def test_ten_million_voxels():
    generator = np.random.default_rng(0)
    uncertainty = generator.random(10_000_000, dtype=np.float32)
    error = generator.random(10_000_000, dtype=np.float32) < uncertainty
    # P(error | u) = u for uniform u: AUROC = 5/6.
    assert auroc_error(uncertainty, error) == pytest.approx(5 / 6, abs=0.001)
