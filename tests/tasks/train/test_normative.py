"""Normative mean and threshold of healthy voxels whose distribution is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from medseg_diff.methods.anomaly.normative import AnomalyFindings
from medseg_diff.metrics import conformal
from medseg_diff.tasks.train.normative import MeasuredCase, _map_calibration


def measured(scores, depth_mm, name="flair", **findings):
    """Normative mean and threshold of two scans that share the voxels."""
    cases = [MeasuredCase({name: scores[half::2]}, depth_mm[half::2], volume=None, voxel_ml=0.001) for half in (0, 1)]
    recipe = SimpleNamespace(findings=AnomalyFindings(rim_mm=2.0, **findings))
    return _map_calibration(cases, name, recipe)


@pytest.mark.parametrize("rate", [0.002, 0.02, 0.2, 0.7])
@pytest.mark.parametrize("name", ["anomaly", "flair"])
def test_above_the_stored_threshold_lies_the_stated_share_of_healthy_voxels(name, rate):
    """Scores spread evenly over 0 … 1: the normative mean is 1/2, and a share r lies above 1 - r - 1/2, or above 0."""
    scores, depth_mm = np.linspace(0, 1, 100_001, dtype=np.float32), np.full(100_001, 5, dtype=np.float32)
    found = measured(scores, depth_mm, name, false_positive_rate=rate)
    assert found.normative_mean.score == pytest.approx([0.5] * 7)
    assert found.threshold == pytest.approx(max(0.5 - rate, 0), abs=1e-4)


def test_the_threshold_of_slices_without_lesion_is_widened_by_a_factor():
    scores, depth_mm = np.linspace(0, 1, 100_001, dtype=np.float32), np.full(100_001, 5, dtype=np.float32)
    cases = [MeasuredCase({"anomaly": scores}, depth_mm, volume=None, voxel_ml=0.001)]
    recipe = SimpleNamespace(findings=AnomalyFindings(rim_mm=2.0, false_positive_rate=0.1))
    plain, wide = (_map_calibration(cases, "anomaly", recipe, widened=factor) for factor in (1.0, 3.0))
    assert wide.threshold == pytest.approx(3 * plain.threshold) == pytest.approx(3 * 0.4, abs=1e-3)
    assert wide.normative_mean == plain.normative_mean


def test_voxels_of_the_rim_are_healthy_ones_that_never_count():
    """A tenth of all voxels, half of which lie in the rim, is a fifth of the others: 1 - 1/5 - 1/2."""
    scores = np.linspace(0, 1, 100_001, dtype=np.float32)
    depth_mm = np.where(np.arange(100_001) // 2 % 2, 1, 5).astype(np.float32)
    assert measured(scores, depth_mm, false_positive_rate=0.1).threshold == pytest.approx(0.3, abs=1e-3)


def test_thresholds_of_few_false_positives_are_those_of_brains_that_the_normative_mean_has_not_seen():
    """Three whole brains of 10,000 voxels of 1 µl, scores from 0 to 1, 1.2 and 1.4: each above the mean of the others."""
    recipe = SimpleNamespace(findings=AnomalyFindings(rim_mm=2.0))
    depth_mm = np.full(10_000, 5, dtype=np.float32)
    tops = (1.0, 1.2, 1.4)
    cases = [
        MeasuredCase({"anomaly": np.linspace(0, top, 10_000, dtype=np.float32)}, depth_mm, None, 0.001, unseen=True)
        for top in tops
    ]
    partly = MeasuredCase({"anomaly": np.linspace(0, 1.2, 10_000, dtype=np.float32)}, depth_mm, None, 0.001)
    found = _map_calibration([*cases, partly], "anomaly", recipe)
    expected = []
    for top in tops:
        mean = (sum(tops) + 1.2 - top) / 6  # of the three others
        gain = max(1.0, top / 2 / mean)
        expected.append(top * (1 - 1.0 / 10) / gain - mean)  # 1 ml of 10
    one_ml = conformal.FALSE_POSITIVES_ML.index(1.0)
    assert [each[one_ml] for each in found.thresholds_by_volume] == pytest.approx(expected, abs=1e-3)
    assert _map_calibration(cases[:1], "anomaly", recipe).thresholds_by_volume == ()  # there are no others


def test_where_the_map_is_taken_as_it_is_so_are_its_thresholds():
    scores, depth_mm = np.linspace(0, 1, 10_001, dtype=np.float32), np.full(10_001, 5, dtype=np.float32)
    found = measured(scores, depth_mm, "anomaly", false_positive_rate=0.1, normative=False, threshold="otsu")
    assert found.threshold == pytest.approx(0.9, abs=1e-3)  # not 0.4, above the normative mean
