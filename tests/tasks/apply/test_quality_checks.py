"""Whether a map is to be trusted: the checks of a volume against what its system showed of healthy brains."""

from dataclasses import replace

import pytest
import torch

from medseg_diff.run import Run
from medseg_diff.tasks.apply.anomaly_volume import AnomalyVolume, open_system
from medseg_diff.tasks.apply.quality_checks import quality_checks
from medseg_diff.tasks.options import Compute


@pytest.fixture
def system(untrained_anomaly):
    return recalibrated(open_system(Run(untrained_anomaly.folder), compute=Compute(device="cpu")), called_diseased=0.1)


def recalibrated(system, **reference):
    known = system.calibration
    return replace(system, calibration=known.but(reference=known.reference | reference))


def checked(system, before, after, mean_score, trip=0.01, gain=1.0, lesions=1):
    """The checks by name, and their warnings, of a volume of which this was measured."""
    values = {"p_healthy_before": before, "p_healthy_noisy": before, "p_healthy_after": after, "mean_score": mean_score}
    facts = {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
    volume = AnomalyVolume(list(range(len(before))), None, None, {}, facts, trip)
    checks = quality_checks(volume, system, gain, lesions=lesions)
    return {check.name: check.values for check in checks}, [check.warning for check in checks if check.warning]


def test_checks_warn_of_what_cannot_be_trusted(system):
    drift, limit = system.calibration.reference["drift"], system.calibration.round_trip.limit
    checks, warnings = checked(system, [0.1, 0.2, 0.9], [0.8, 0.9, 0.9], [9, 9, drift], limit / 2)
    assert warnings == [] and checks["calibration"]["holds"]
    assert checks["p_healthy"]["rose"] and checks["drift"]["within"] and checks["round_trip"]["within"]
    assert checks["p_healthy"]["slices"] == 2 and checks["p_healthy"]["before"] == pytest.approx(0.15)
    for said, measured in {
        "did not rise": ([0.3, 0.2], [0.2, 0.1], [1, 1]),
        "look healthy changed": ([0.9], [0.9], [3 * drift]),
        "without guidance with an error": ([0.9], [0.9], [0], 2 * limit),
        "1.6 times as much as healthy brains": ([0.9], [0.9], [0], 0.0, 1.6),
    }.items():
        _, warnings = checked(system, *measured)
        assert [said in warning for warning in warnings] == [True]


def test_with_other_settings_than_those_of_the_calibration_nothing_is_claimed(system):
    checks, warnings = checked(system.but(scale=1.0), [0.1], [0.9], [1])
    assert ["no normative mean was subtracted" in warning for warning in warnings] == [True]
    assert checks["round_trip"]["within"] is None and checks["calibration"] == {"holds": False}


def test_a_classifier_that_knows_places_only_is_warned_of(system):
    _, warnings = checked(recalibrated(system, called_diseased=0.6), [0.9], [0.9], [0])
    assert ["60% of healthy slices diseased" in warning for warning in warnings] == [True]


def test_a_scan_that_is_called_diseased_and_in_which_nothing_is_marked_is_no_all_clear(system):
    drift = system.calibration.reference["drift"]
    before = [0.1] * 4 + [0.9] * 4
    for lesions, said in ((0, ["4 of 8 slices are called diseased, but nothing is marked"]), (1, [])):
        checks, warnings = checked(system, before, [0.9] * 8, [drift] * 8, lesions=lesions)
        assert [warning.split(":")[0] for warning in warnings] == said
        assert checks["marked"] == {"called_diseased": 4, "lesions": lesions}
    usual = recalibrated(system, called_diseased=0.3)  # as often as that healthy slices are called so too
    assert checked(usual, before, [0.9] * 8, [drift] * 8, lesions=0)[1] == []


def test_slices_that_stay_diseased_are_counted(system):
    checks, warnings = checked(system, [0.01] * 8, [0.2] * 7 + [0.9], [0] * 8)
    assert checks["p_healthy"]["still_diseased"] == 7 and checks["p_healthy"]["rose"]
    assert ["7 of 8 slices that are called diseased are still called so after it" in each for each in warnings] == [
        True
    ]
