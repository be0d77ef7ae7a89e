"""A scan is judged by how far its features lie from those of the patients, and few patients judge mildly."""

import numpy as np
import pytest

from medseg_diff.metrics.typicality import (
    LOWEST_THRESHOLD,
    Feature,
    features_of,
    in_words,
    judge,
    threshold_of,
    usual_spread,
)

NAMES = [
    "t1 q50",
    "t1 sharpness",
    "t1 noise",
    "t1~t2",
    "brain",
    "slices",
    *(f"t2 q{number}" for number in (5, 25, 50, 75, 95)),
]


def patients(count, seed=0, *, shift=0.0, spread=0.5):
    """Features whose deviation is a share of the usual one."""
    rng = np.random.default_rng(seed)
    return [{name: shift + spread * usual_spread(name) * rng.standard_normal() for name in NAMES} for _ in range(count)]


@pytest.mark.parametrize("count", [2, 5, 20, 200])
def test_patients_of_the_same_kind_are_typical_and_others_are_not(count):
    known = patients(count)
    features, threshold = features_of(known), threshold_of(known)
    same = [judge(patient, features).score for patient in patients(300, 1)]
    assert np.mean(np.array(same) > threshold) < 0.05
    far = judge(patients(1, 2, shift=1.5)[0], features)
    assert far.score > threshold >= LOWEST_THRESHOLD and far.striking and set(far.striking) <= set(NAMES)


def test_one_patient_more_or_less_counts_less_the_more_there_are():
    few, many = (features_of(patients(count, spread=0.1))["t1 noise"].deviation for count in (2, 100))
    assert 0.7 * usual_spread("t1 noise") < few < 1.3 * usual_spread("t1 noise")
    assert many < 0.3 * usual_spread("t1 noise")


def test_what_cannot_be_compared_is_left_out():
    known = [dict.fromkeys(("t1 q50", "brain"), 0.0), {"brain": 0.0}]
    assert set(features_of(known)) == {"brain"} and features_of([]) == {}
    assert judge({"t2 q50": 1.0}, features_of(known)) is None
    assert threshold_of([]) == threshold_of(known[:1]) == LOWEST_THRESHOLD


def test_the_score_is_the_root_mean_square_and_the_farthest_are_named_first():
    features = {name: Feature(0.0, 1.0) for name in ("a", "b", "c", "d")}
    judged = judge({"a": 3.0, "b": -4.0, "c": 1.0, "d": 2.5}, features)
    assert judged.score == pytest.approx(np.sqrt((9 + 16 + 1 + 6.25) / 4)) and judged.striking == ("b", "a", "d")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("t1~t2", 0.0, "the correlation of t1 and t2 is 0, in training 0 to 0.762"),
        ("flair noise", 0.0, "noise of flair is 1, in training 1 to 2.72"),
        ("flair q95", 0.8, "the value below which 95 % of flair lies is 0.8, in training 0 to 1"),
        ("brain", np.log(900), "the brain's volume in ml is 900, in training 1 to 2.72"),
        ("slices", np.log(5), "the distance of slices in mm is 5, in training 1 to 2.72"),
    ],
)
def test_what_is_striking_is_said_in_words(name, value, said):
    assert in_words(name, value, Feature(0.5, 0.5)) == said
