"""Intervals and thresholds hold for a new patient as often as they say."""

import numpy as np
import pytest

from medseg_diff.metrics.conformal import (
    FALSE_POSITIVES_ML,
    LEAST_UNCERTAINTY,
    THRESHOLDS,
    fewest_patients,
    missed_shares,
    threshold_of_risk,
    threshold_of_volume,
    thresholds_of_volumes,
    volume_error,
    volume_interval,
    volume_uncertainty,
)


def test_a_level_needs_so_many_patients():
    assert [fewest_patients(level) for level in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    for level in (0.8, 0.9, 0.95):
        scores = [0.1] * fewest_patients(level)
        expected = (10 / np.exp(0.2) - 1, 10 * np.exp(0.2) - 1)
        assert volume_interval(9.0, 2.0, scores, level) == pytest.approx(expected)
        assert volume_interval(9.0, 2.0, scores[1:], level) is None


@pytest.mark.parametrize(("patients", "level"), [(19, 0.95), (40, 0.9), (60, 0.9), (100, 0.8)])
def test_an_interval_holds_the_next_volume_as_often_as_it_says(patients, level):
    """Over many draws the coverage lies between the level and the level + 1 / (n + 1), whatever is said of it."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(4000):
        uncertainty = rng.uniform(0.1, 2, patients + 1)
        off = rng.exponential(size=patients + 1) * rng.choice([-1, 1], size=patients + 1, p=[0.3, 0.7])
        true = 31 * np.exp(off) - 1
        errors = [volume_error(30.0, *each) for each in zip(true[:-1], uncertainty[:-1], strict=True)]
        low, high = volume_interval(30.0, uncertainty[-1], errors, level)
        covered.append(low <= max(true[-1], 0) <= high)
    assert level - 0.015 < np.mean(covered) < level + 1 / (patients + 1) + 0.015


def test_a_volume_lies_in_its_interval_exactly_where_its_score_is_within_the_bound():
    rng = np.random.default_rng(1)
    found, true = rng.gamma(1, 40, size=(2, 60)) * (rng.random((2, 60)) > 0.2)
    uncertainties = rng.uniform(0.2, 2, 60)
    scores = [volume_error(*each) for each in zip(found, true, uncertainties, strict=True)]
    farthest = sorted(scores)[48]  # the 49th of 60: ceil(61 x 0.8)
    for each, volume, uncertainty in zip(found, true, uncertainties, strict=True):
        interval = volume_interval(each, uncertainty, scores, 0.8)
        assert interval.low <= each <= interval.high and interval.low >= 0
        inside = interval.low - 1e-9 <= volume <= interval.high + 1e-9
        assert inside == (volume_error(each, volume, uncertainty) <= farthest + 1e-12)
    assert volume_error(0, 0, 0.2) == 0 and volume_interval(30.0, 0.2, scores[:3], 0.8) is None


def test_the_uncertainty_of_a_volume_is_how_much_of_it_is_neither_sure_nor_impossible():
    probability = np.zeros((10, 10, 10), np.float32)
    probability[0, 0] = 1.0
    assert volume_uncertainty(probability, 0.1) == pytest.approx(LEAST_UNCERTAINTY)  # sure of itself
    probability[1, 0] = 0.5
    assert volume_uncertainty(probability, 0.1) == pytest.approx(
        np.log((2 + 1) / (1 + 1)) + LEAST_UNCERTAINTY
    )  # 2 ml or 1
    probability[2, 0] = 0.04
    assert volume_uncertainty(probability, 0.1) == pytest.approx(np.log(3 / 2) + LEAST_UNCERTAINTY)


def test_the_share_missed_is_that_of_the_references_voxels_below_a_threshold():
    probability = np.array([0.9, 0.5, 0.3, 0.0, 1.0], np.float32)
    reference = np.array([True, True, True, True, False])
    missed = dict(zip(THRESHOLDS, missed_shares(probability, reference), strict=True))
    assert (missed[0.0001], missed[0.2], missed[0.3], missed[0.5], missed[0.99]) == (0.25, 0.25, 0.5, 0.75, 1.0)
    assert not missed_shares(probability, np.zeros(5, bool)).any()


@pytest.mark.parametrize("risk", [0.1, 0.2])
def test_the_next_patient_misses_no_more_than_the_risk_on_average(risk):
    """Lesions whose voxels have probabilities of a beta distribution that differs from patient to patient."""
    rng = np.random.default_rng(2)

    def shares():
        voxels = rng.beta(rng.uniform(0.5, 6), rng.uniform(0.3, 2), size=200).astype(np.float32)
        return missed_shares(voxels, np.ones(200, bool))

    missed = []
    for _ in range(300):
        threshold = threshold_of_risk(np.mean([shares() for _ in range(25)], axis=0), 25, risk)
        missed.append(0.0 if threshold is None else shares()[THRESHOLDS.index(threshold)])
    assert 0.3 * risk < np.mean(missed) < risk + 0.015
    assert threshold_of_risk([0.0] * len(THRESHOLDS), 3, 0.1) is None
    assert threshold_of_risk([0.0] * len(THRESHOLDS), 9, 0.1) == THRESHOLDS[-1]


def test_the_next_healthy_brain_has_no_more_marked_than_was_said():
    """Brains of 2000 voxels whose scores are exponential, each with a scale of its own."""
    rng = np.random.default_rng(4)

    def brain():
        return rng.exponential(rng.uniform(0.5, 2), size=2000).astype(np.float32)

    marked = []
    for _ in range(400):
        threshold = threshold_of_volume([thresholds_of_volumes(brain(), 0.01) for _ in range(24)], 0.3, 0.9)
        marked.append((brain() > threshold).sum() * 0.01)
    assert 0.87 < np.mean(np.array(marked) <= 0.2 + 1e-9) < 0.96  # 0.2 ml is the next below that is listed
    known = thresholds_of_volumes(np.arange(100, dtype=np.float32), 0.1)
    assert dict(zip(FALSE_POSITIVES_ML, known, strict=True))[1.0] == 89  # ten voxels lie above
    assert threshold_of_volume([known] * 8, 1.0, 0.9) is None and threshold_of_volume([known] * 9, 0.05, 0.9) is None
