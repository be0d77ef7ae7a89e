"""Threshold and temperature on probabilities whose fault is known."""

import numpy as np
import pytest

from medseg_diff.metrics.calibration import ece, reliability, reliability_curve, risk_coverage
from medseg_diff.metrics.tuning import choose_threshold, fit_temperature, log_loss, tempered


def drawn(temperature, seed=0, voxels=20000):
    """Probabilities that are true once they are tempered, and what happened."""
    rng = np.random.default_rng(seed)
    said = rng.beta(0.3, 1.0, voxels)
    return said, rng.random(voxels) < tempered(said, temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_was_hidden_is_found_and_calibrates(temperature):
    said, events = drawn(temperature)
    found = fit_temperature(said, events)
    assert found == pytest.approx(temperature, rel=0.06)
    other, happened = drawn(temperature, seed=1)  # on voxels that it has not seen
    assert ece(tempered(other, found), happened) < 0.012
    if temperature != 1:
        assert ece(other, happened) > 0.03
        assert log_loss(tempered(other, found), happened) < log_loss(other, happened)


def test_temperature_keeps_order_and_the_ends():
    p = np.array([0, 1e-9, 0.01, 0.3, 0.5, 0.7, 1.0])
    for temperature in (0.2, 1.0, 10.0):
        out = tempered(p, temperature)
        assert out[0] == 0 and out[4] == 0.5 and out[-1] == 1
        assert (np.diff(out) >= 0).all()
    np.testing.assert_allclose(tempered(p, 1.0), p, rtol=1e-6)
    assert tempered(np.float32([0.9]), 2.0)[0] == pytest.approx(0.75)  # logit ln 9, halved: odds 3


def test_nothing_is_learned_from_a_reference_of_one_kind():
    assert fit_temperature([0.1, 0.2], [False, False]) == 1.0
    assert fit_temperature([0.1, 0.2], [True, True]) == 1.0


def patients(count, *, seed=0):
    """Probabilities of which everything above 0.3 is lesion, exactly."""
    rng = np.random.default_rng(seed)
    values = [rng.random(400) for _ in range(count)]
    return values, [value > 0.3 for value in values]


def test_a_clearly_better_threshold_is_chosen():
    found = choose_threshold(*patients(6))
    assert found.chosen == found.best == pytest.approx(0.3, abs=0.011)
    assert found.dice_at_best == pytest.approx(1.0, abs=0.01) and found.dice_at_half < 0.9


def test_few_patients_or_little_gain_keep_one_half():
    few = choose_threshold(*patients(4))
    assert few.chosen == 0.5 and few.best == pytest.approx(0.3, abs=0.011)
    rng = np.random.default_rng(0)
    values = [rng.random(400) for _ in range(8)]
    slight = choose_threshold(values, [value > 0.497 for value in values])
    assert slight.chosen == 0.5 and slight.dice_at_best - slight.dice_at_half < 0.005


def test_one_patient_alone_does_not_decide():
    values, truth = patients(1)
    rng = np.random.default_rng(1)
    others = [rng.random(400) for _ in range(5)]
    wide = [np.tile(values[0], 4), *others]
    found = choose_threshold(wide, [np.tile(truth[0], 4), *(other > 0.55 for other in others)])
    assert found.dice_at_best - found.dice_at_half > 0.005 and found.chosen == 0.5


def test_without_any_lesion_one_half_stays():
    empty = [np.zeros(10)] * 6
    found = choose_threshold(empty, [np.zeros(10, bool)] * 6)
    assert (found.chosen, found.best, found.dice_at_half) == (0.5, 0.5, 1.0)


def test_reliability_adds_up_over_cases_and_counts_its_bins():
    p, y = np.array([0.0, 0.05, 0.5, 0.95, 1.0]), np.array([False, False, True, True, True])
    whole = reliability(p, y, bins=10)
    parts = reliability(p[:2], y[:2], bins=10) + reliability(p[2:], y[2:], bins=10)
    assert whole.as_dict() == parts.as_dict()
    assert whole.as_dict() == {"probability": [0.025, 0.5, 0.975], "frequency": [0.0, 1.0, 1.0], "voxels": [2, 1, 2]}
    equal_mass = reliability_curve(p, y, bins=1)
    assert equal_mass.probability[0] == pytest.approx(whole.probability.sum() / 5)


def test_risk_rises_with_coverage_to_the_error_rate():
    uncertainty, error = np.array([0.0, 0.1, 0.2, 0.3]), np.array([False, False, True, True])
    risk = risk_coverage(uncertainty, error, coverage=[0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(risk, [0, 0, 1 / 3, 1 / 2])
    ties = risk_coverage(np.zeros(4), error, coverage=[0.25, 1.0])
    np.testing.assert_allclose(ties, [0.5, 0.5])


def test_a_threshold_is_chosen_as_it_is_used():
    """Of ten hard members a probability of 0.3 is not above a threshold of 0.3, in float32 as where a mask is cut."""
    draw, patients = np.random.default_rng(0), 6
    votes = draw.integers(0, 11, (patients, 4000))
    probability = votes.astype(np.float32) / np.float32(10)
    found = choose_threshold(list(probability), list(votes >= 4))
    assert found.dice_at_best == 1 and 0.3 <= found.best < 0.4
    assert ((probability > np.float32(found.best)) == (votes >= 4)).all()
