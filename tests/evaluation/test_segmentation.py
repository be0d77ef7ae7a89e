"""Metrics of predictions whose numbers are known by construction."""

import csv
import dataclasses
import json
import logging

import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.results import read_result
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.evaluation.catalogue import SEGMENTATION
from medseg_diff.metrics.overlap import dice
from tests.made import BRAIN, LPS, NOTHING, SHAPE, TUMOUR, Study, ball


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def test_a_perfect_prediction_is_perfect_in_every_measure(study):
    raters = [TUMOUR, TUMOUR]
    for name in ("a", "b"):
        study.add(name, raters=raters).predict(name, probability=TUMOUR, members=raters)
    summary = study.evaluate()
    values = {key: metric["value"] for key, metric in summary["metrics"].items()}
    assert values.pop("auroc_error") is None  # there is no error to find
    assert values.pop("ece_calibrated") is None and values.pop("brier_calibrated") is None  # nothing was calibrated
    assert values.pop("ece_band") is None and values.pop("auroc_error_band") is None  # nothing is in doubt
    promised = ("coverage90", "width90_ml", "guaranteed_missed", "guaranteed_ratio", "presence_brier", "typicality")
    assert all(values.pop(name) is None for name in (*promised, "atypical"))  # nothing was promised
    ones = {"dice", "dice_raw", "dice_raters", "dice_slices", "iou", "surface_dice_1mm"}
    ones |= {"lesion_sensitivity", "lesion_precision", "lesion_f1"}
    assert values == {key: pytest.approx(1.0 if key in ones else 0.0) for key in values}
    assert all(metric["cases"] == 2 for key, metric in summary["metrics"].items() if key in values)


def test_known_errors_give_known_numbers(study):
    larger = ball((12, 11, 8), 4)
    study.add("a").predict("a", larger, probability=larger * 0.8 + ~larger * 0.1)
    values = {key: metric["value"] for key, metric in study.evaluate()["metrics"].items()}
    extra, voxel_ml = np.count_nonzero(larger) - np.count_nonzero(TUMOUR), 2 * 2 * 3 / 1000
    assert values["dice"] == values["dice_raw"] == pytest.approx(dice(larger, TUMOUR))
    assert values["volume_error_ml"] == values["volume_bias_ml"] == pytest.approx(extra * voxel_ml)
    brain = np.count_nonzero(BRAIN)
    right, wrong = np.count_nonzero(TUMOUR), extra
    expected = (right * 0.2**2 + wrong * 0.8**2 + (brain - right - wrong) * 0.1**2) / brain
    assert values["brier"] == pytest.approx(expected, rel=1e-4)  # over the brain, not over the volume
    assert values["auroc_error"] > 0.9
    assert values["hd95_mm"] == pytest.approx(3.0)  # one slice thickness


def test_cases_without_a_lesion_are_left_out_of_means_over_lesions_only(study):
    study.add("sick").predict("sick").add("healthy", seg=NOTHING).predict("healthy", NOTHING)
    study.add("alarm", seg=NOTHING).predict("alarm", TUMOUR).add("missed").predict("missed", NOTHING)
    metrics = study.evaluate()["metrics"]
    assert (metrics["dice"]["value"], metrics["dice"]["cases"]) == (pytest.approx(0.5), 2)
    assert (metrics["hd95_mm"]["value"], metrics["hd95_mm"]["cases"]) == (0.0, 1)  # undefined where missed
    assert metrics["volume_error_ml"]["cases"] == 4
    rows = list(csv.DictReader((study.predictions / "per_case.csv").open()))
    assert {row["case"]: row["dice"] for row in rows} == {"sick": "1", "healthy": "1", "alarm": "0", "missed": "0"}
    assert {row["case"]: row["hd95_mm"] for row in rows}["missed"] == ""
    assert list(rows[0]) == [
        "case",
        "patient",
        "split",
        "region",
        "reference_ml",
        "low90_ml",
        "high90_ml",
        *SEGMENTATION,
    ]


def test_diversity_is_measured_against_the_raters(study):
    small, large = ball((12, 11, 8), 2), ball((12, 11, 8), 4)
    study.add("a", raters=[small, large]).predict("a", members=[small, large])
    study.add("b", raters=[small, large]).predict("b", members=[TUMOUR, TUMOUR])
    study.evaluate()
    of = {row["case"]: float(row["ged2"]) for row in csv.DictReader((study.predictions / "per_case.csv").open())}
    assert of["a"] == pytest.approx(0.0, abs=1e-9)
    assert of["b"] > 0.2


def test_without_a_reference_the_majority_of_raters_stands_for_it(study):
    small, large = ball((12, 11, 8), 2), ball((12, 11, 8), 4)
    study.add("a", seg=None, raters=[small, TUMOUR, large]).predict("a", TUMOUR)
    metrics = study.evaluate()["metrics"]
    assert metrics["dice"]["value"] == pytest.approx(1.0)
    expected = np.mean([dice(TUMOUR, rater) for rater in (small, TUMOUR, large)])
    assert metrics["dice_raters"]["value"] == pytest.approx(expected)


def test_labels_are_grouped_into_regions_and_keys_carry_the_region(study):
    core = ball((12, 11, 8), 1.5)
    labels = np.where(core, 4, 2)
    regions = {"whole_tumour": [1, 2, 4], "core": [1, 4]}
    study.add("a", labels=labels).predict("a", np.where(core, 1, 2) * TUMOUR, regions=regions)
    metrics = study.evaluate()["metrics"]
    assert metrics["whole_tumour_dice"]["value"] == metrics["core_dice"]["value"] == pytest.approx(1.0)
    assert "dice" not in metrics


def test_labels_that_no_region_counts_are_told(study, caplog):
    study.add("a", labels=np.where(ball((12, 11, 8), 1.5), 3, 2)).predict("a", regions={"whole_tumour": [1, 2, 4]})
    study.add("b", labels=2).predict("b", regions={"whole_tumour": [1, 2, 4]})
    with caplog.at_level(logging.WARNING):
        study.evaluate()
    assert "1 of 2 references hold the label 3, which belongs to no region: a" in caplog.text


def test_scans_of_one_patient_give_no_interval(study):
    for name in "ab":
        study.add(name, patient="one").predict(name)
    summary = study.evaluate()
    assert summary["patients"] == 1
    assert summary["metrics"]["dice"]["low"] is None


def test_lesions_are_counted_as_well_as_voxels(study):
    far, speck = ball((20, 11, 8), 2), np.zeros(SHAPE, bool)
    speck[1, 1, 1] = True  # 0.012 ml
    study.add("a", seg=TUMOUR | speck).predict("a", TUMOUR | far).add("b", seg=NOTHING).predict("b", far)
    values = {key: metric["value"] for key, metric in study.evaluate()["metrics"].items()}
    assert (values["lesion_sensitivity"], values["lesion_precision"]) == (1.0, pytest.approx((0.5 + 0.0) / 2))
    assert values["lesion_f1"] == pytest.approx(2 / 3)
    assert values["false_positive_lesions"] == 1.0
    assert values["false_positives_ml"] == pytest.approx(np.count_nonzero(far) * 0.012)


def test_each_axial_slice_has_a_row(study):
    larger = ball((12, 11, 8), 4)
    study.add("a").predict("a", larger, probability=larger * 0.8, members=[larger, TUMOUR])
    summary = study.evaluate()
    rows = list(csv.DictReader((study.predictions / "per_slice.csv").open()))
    assert [int(row["slice"]) for row in rows] == np.flatnonzero(BRAIN.any((0, 1))).tolist()
    assert {(row["case"], row["region"], row["axis"]) for row in rows} == {("a", "whole_tumour", "2")}
    middle = next(row for row in rows if row["slice"] == "8")
    assert float(middle["dice"]) == pytest.approx(dice(larger[..., 8], TUMOUR[..., 8]), rel=1e-5)
    assert float(middle["error_ml"]) == pytest.approx((larger ^ TUMOUR)[..., 8].sum() * 0.012, rel=1e-5)
    assert float(middle["expected_error_ml"]) == pytest.approx(larger[..., 8].sum() * 0.16 * 0.012, rel=1e-5)
    assert sum(float(row["mask_ml"]) for row in rows) == pytest.approx(larger.sum() * 0.012, rel=1e-5)
    assert rows[0]["dice"] == "" and rows[0]["ged2"] == ""  # nothing is marked there
    marked = [float(row["dice"]) for row in rows if float(row["reference_ml"])]
    assert summary["metrics"]["dice_slices"]["value"] == pytest.approx(np.mean(marked), rel=1e-5)
    ged2 = [float(row["ged2"]) for row in rows if row["ged2"]]
    assert summary["metrics"]["ged2"]["value"] == pytest.approx(np.mean(ged2), rel=1e-5)


def test_curves_add_up_over_cases_and_end_at_the_error_rate(study):
    larger = ball((12, 11, 8), 4)
    for name, certain in (("a", 0.9), ("b", 0.7)):
        study.add(name).predict(name, larger, probability=larger * certain)
    curves = study.evaluate()["curves"]["whole_tumour"]
    reliability = curves["reliability"]
    assert sum(reliability["voxels"]) == 2 * np.count_nonzero(BRAIN)
    assert reliability["probability"] == pytest.approx([0, 0.7, 0.9])
    share = np.count_nonzero(TUMOUR) / np.count_nonzero(larger)
    assert reliability["frequency"] == pytest.approx([0, share, share], abs=1e-5)
    risk = curves["risk_coverage"]
    assert risk["coverage"][-1] == 1.0 and risk["risk"][0] == 0
    assert risk["risk"][-1] == pytest.approx((larger & ~TUMOUR).sum() / BRAIN.sum(), rel=1e-4)


def test_the_band_sees_what_the_whole_brain_hides(study):
    """Half of the doubtful voxels are given 0.8 and half 0.2, all of them truly one in two: certain, and never right."""
    random = np.random.default_rng(0)
    doubtful = ball((12, 11, 8), 5)
    truth = TUMOUR & ~doubtful | doubtful & (random.random(SHAPE) < 0.5)
    said = np.where(doubtful, np.where(random.random(SHAPE) < 0.5, 0.8, 0.2), truth.astype(float))
    study.add("a", seg=truth).predict("a", said > 0.5, probability=said)
    values = {key: metric["value"] for key, metric in study.evaluate()["metrics"].items()}
    share = doubtful.sum() / BRAIN.sum()
    assert values["ece_band"] == pytest.approx(0.3, abs=0.04) and values["ece"] < 2 * 0.3 * share
    assert values["auroc_error"] > 0.85 and values["auroc_error_band"] == pytest.approx(0.5, abs=0.1)


def test_a_calibrated_map_is_measured_beside_the_plain_one(study):
    study.add("a").predict("a", probability=TUMOUR * 0.6)
    write_volume(study.predictions / "a" / "calibrated.nii.gz", (TUMOUR * 0.95).astype(np.float32), LPS)
    summary = study.evaluate()
    values = {key: metric["value"] for key, metric in summary["metrics"].items()}
    share = TUMOUR.sum() / BRAIN.sum()
    assert values["ece"] == pytest.approx(0.4 * share, rel=1e-4)
    assert values["ece_calibrated"] == pytest.approx(0.05 * share, rel=1e-4)
    assert values["brier_calibrated"] == pytest.approx(0.05**2 * share, rel=1e-4)
    assert summary["curves"]["whole_tumour"]["reliability_calibrated"]["probability"] == pytest.approx([0, 0.95])


def test_the_brain_is_that_of_a_channel_which_the_model_read(tmp_path):
    """The table's first channel may lie on another grid, or show the skull."""
    study = Study(tmp_path).add("a", labels=TUMOUR.astype(np.uint8)).predict("a", TUMOUR.astype(np.uint8))
    case = read_manifest(study.table).cases[0]
    write_volume(tmp_path / "other.nii.gz", np.ones((6, 5, 4), np.float32), np.diag([9.0, 9.0, 9.0, 1.0]))
    facts = study.predictions / "a" / "case.json"
    read = next(iter(case.images))
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"channels": [read]}))
    odd = dataclasses.replace(case, images={"odd": tmp_path / "other.nii.gz", **case.images})
    result = read_result(study.predictions / "a", "a")
    assert np.array_equal(result.brain_seen(odd), result.brain(case, [read]))
