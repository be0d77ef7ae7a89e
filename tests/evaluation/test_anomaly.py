"""Metrics of anomaly maps whose numbers are known by construction, and of baselines beside them."""

import csv

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.errors import ImageError, ManifestError
from medseg_diff.metrics.overlap import dice
from tests.made import BRAIN, LPS, NOTHING, SHAPE, TUMOUR, Study, ball


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def noisy(signal, seed=0):
    """A score that is higher where there is signal, and nothing outside the brain."""
    return (signal + np.random.default_rng(seed).normal(0, 0.5, SHAPE)) * BRAIN


def test_the_numbers_are_those_of_the_brains_voxels(study):
    maps = {"a": noisy(TUMOUR, 1), "b": noisy(TUMOUR, 2)}
    for name, score in maps.items():
        study.add(name).score(name, score, baselines={"flair": (noisy(0.5 * TUMOUR, 3), 0.7)})
    summary = study.evaluate()
    metrics, baseline = summary["metrics"], summary["baselines"]["flair"]
    truth = TUMOUR[BRAIN]
    for key, measure in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        each = [measure(truth, score[BRAIN].astype(np.float32)) for score in maps.values()]
        assert metrics[key]["value"] == pytest.approx(np.mean(each), abs=1e-9)
        gain = metrics[key]["value"] - baseline[key]["value"]
        assert baseline[f"{key}_gain"]["value"] == pytest.approx(gain, abs=1e-9)
        assert metrics[f"{key}_pooled"]["value"] == pytest.approx(np.mean(each), abs=0.02)
    preset = np.mean([dice(score > 0.5, TUMOUR) for score in maps.values()])
    assert metrics["dice_preset"]["value"] == pytest.approx(preset)
    assert metrics["dice_best"]["value"] >= preset
    assert baseline["dice_preset"]["value"] < preset


def test_a_healthy_case_needs_no_reference_and_counts_for_false_alarms_only(study):
    alarm = ball((15, 11, 8), 2)
    study.add("ill").score("ill", TUMOUR * 1.0)
    study.add("well", seg=None, label="healthy").score("well", alarm * 0.8)
    metrics = study.evaluate()["metrics"]
    assert metrics["false_positives_ml"]["value"] == pytest.approx(alarm.sum() * 0.012, rel=1e-5)
    assert (metrics["auroc"]["value"], metrics["auroc"]["cases"]) == (1.0, 1)
    assert metrics["auroc_of_volumes"]["value"] == 1.0 and metrics["lesion_sensitivity"]["cases"] == 1
    rows = list(csv.DictReader((study.predictions / "per_case.csv").open()))
    assert {row["case"]: (row["map"], row["false_positives_ml"], row["auroc"]) for row in rows} == {
        "ill": ("anomaly", "", "1"),
        "well": ("anomaly", f"{alarm.sum() * 0.012:.6g}", ""),
    }


def test_a_case_without_reference_that_is_not_healthy_is_refused_by_name(study):
    study.add("ill").score("ill", TUMOUR * 1.0).add("odd", seg=None).score("odd", TUMOUR * 1.0)
    with pytest.raises(ManifestError, match=r"no reference for 1 of 2 cases: odd.*or label them healthy"):
        study.evaluate()


def test_only_the_models_labels_count_as_disease_and_raters_stand_in(study):
    core = ball((12, 11, 8), 1.5)
    study.add("a", labels=np.where(core, 4, 2)).score("a", core * 1.0, diseased=[4])
    raters = [core, core, TUMOUR]
    study.add("b", seg=None, raters=raters).score("b", core * 1.0)
    metrics = study.evaluate()["metrics"]
    assert metrics["dice_preset"]["value"] == 1.0 and metrics["dice_preset"]["cases"] == 2


def test_each_axial_slice_with_brain_has_a_row(study):
    study.add("a").score("a", noisy(TUMOUR))
    study.evaluate()
    rows = list(csv.DictReader((study.predictions / "per_slice.csv").open()))
    assert [int(row["slice"]) for row in rows] == np.flatnonzero(BRAIN.any((0, 1))).tolist()
    assert [int(row["lesion_voxels"]) for row in rows] == [int(TUMOUR[..., int(row["slice"])].sum()) for row in rows]
    assert float(rows[1]["z_mm"]) - float(rows[0]["z_mm"]) == 3.0
    assert {row["auroc"] == "" for row in rows if row["lesion_voxels"] == "0"} == {True}


def test_a_map_that_marks_nothing_scores_by_chance(study):
    study.add("a").score("a", NOTHING * 0.0)
    metrics = study.evaluate()["metrics"]
    assert metrics["auroc"]["value"] == 0.5 and metrics["dice_preset"]["value"] == 0.0


def test_a_reconstruction_is_measured_against_the_lesion_free_twin(study):
    lesion, brain = TUMOUR & BRAIN, BRAIN & ~TUMOUR
    scan = np.where(BRAIN, 100 + np.arange(BRAIN.size).reshape(SHAPE) % 7, -3).astype(np.float32)
    deviation = (scan - 10 * TUMOUR)[BRAIN].std()
    made = scan - 6 * lesion + 0.5 * brain  # six tenths of the lesion undone, and half a unit lost everywhere else
    for name in ("ill", "well", "unknown"):
        write_volume(study.predictions / name / "healthy_flair.nii.gz", made.astype(np.float32), LPS)
    study.add("ill", twin=-10.0 * TUMOUR).score("ill", TUMOUR * 1.0)
    study.add("well", seg=None, label="healthy").score("well", NOTHING * 1.0)
    study.add("unknown").score("unknown", TUMOUR * 1.0)
    study.evaluate()
    rows = {row["case"]: row for row in csv.DictReader((study.predictions / "per_case.csv").open())}
    assert float(rows["ill"]["lesion_left"]) == pytest.approx(0.4, rel=1e-4)
    assert float(rows["ill"]["error_elsewhere"]) == pytest.approx(0.5 / deviation, rel=1e-4)
    assert rows["well"]["lesion_left"] == "" and float(rows["well"]["error_elsewhere"]) > 0
    assert (rows["unknown"]["lesion_left"], rows["unknown"]["error_elsewhere"]) == ("", "")


def test_labels_that_take_most_of_the_brain_are_no_lesion(study):
    tissue = np.where(TUMOUR, 2, 1)
    study.add("a", seg=BRAIN, labels=tissue).score("a", TUMOUR * 1.0)
    with pytest.raises(ImageError, match=r"marks 100% of the brain as lesion, with label 1, 2.*diseased=\[…\]"):
        study.evaluate()
    study.score("a", TUMOUR * 1.0, diseased=[2])  # a lesion among labels of tissue is one
    assert study.evaluate()["metrics"]["auroc"]["value"] == 1.0
