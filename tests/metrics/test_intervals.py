"""Bootstrap intervals: coverage, patients, and the cases without an answer."""

import numpy as np
import pytest

from medseg_diff.metrics.intervals import Interval, interval_together, mean_interval


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = mean_interval(list(generator.normal(0.8, 0.1, 30)))
        covered += interval.low <= 0.8 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval_and_another_another():
    values = list(np.random.default_rng(1).random(12))
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_undefined_values_are_left_out_and_counted():
    interval = mean_interval([0.5, None, 0.7, None])
    assert interval.value == pytest.approx(0.6)
    assert interval.cases == 2
    assert mean_interval([0.5, None]) == Interval(0.5, None, None, 1)
    assert mean_interval([None, None]) == mean_interval([]) == Interval(None, None, None, 0)


def test_scans_of_one_patient_are_drawn_together():
    values = [0.5] * 10 + [0.9] * 10
    alone = mean_interval(values)
    together = mean_interval(values, patients=["a"] * 10 + ["b"] * 10)
    assert together.value == alone.value == pytest.approx(0.7)
    assert (together.low, together.high) == (pytest.approx(0.5), pytest.approx(0.9))
    assert alone.high - alone.low < 0.5 * (together.high - together.low)
    assert mean_interval(values, patients=["a"] * 20) == Interval(pytest.approx(0.7), None, None, 20)


def test_equal_values_have_an_interval_of_no_width():
    interval = mean_interval([0.8, 0.8, 0.8])
    assert (interval.low, interval.high) == (pytest.approx(0.8), pytest.approx(0.8))


def test_every_case_needs_a_patient():
    with pytest.raises(ValueError, match="argument 2 is"):
        mean_interval([0.1, 0.2], patients=["a"])


def test_a_statistic_of_all_cases_draws_whole_patients():
    values = np.array([0.5] * 10 + [0.9] * 10)

    def largest(cases):
        return float(values[cases].mean())

    together = interval_together(largest, ["a"] * 10 + ["b"] * 10)
    assert (together.value, together.low, together.high) == (pytest.approx(0.7), pytest.approx(0.5), pytest.approx(0.9))
    assert interval_together(largest, ["a"] * 20) == Interval(pytest.approx(0.7), None, None, 20)
    assert interval_together(lambda cases: None, range(4)) == Interval(None, None, None, 4)
    same = mean_interval(values.tolist())
    alone = interval_together(largest, range(20))
    assert (alone.low, alone.high) == (pytest.approx(same.low), pytest.approx(same.high))  # the same patients are drawn
