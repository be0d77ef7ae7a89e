"""Evaluating a folder: which cases are measured, what is refused, what is written where."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medseg_diff.errors import ImageError, ManifestError, UsageError
from medseg_diff.tasks.evaluate import evaluate
from tests.made import LPS, SHAPE, TUMOUR, Study, ball

KEYS = {"dice", "iou", "hd95_mm", "surface_dice_1mm", "volume_error_ml", "ged2", "ece", "brier", "aurc", "auroc_error"}


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def test_the_summary_has_the_promised_shape_and_is_what_was_written(study):
    study.add("a").predict("a", probability=TUMOUR * 0.9).add("b").predict("b", probability=TUMOUR * 0.9)
    summary = study.evaluate()
    assert json.loads((study.predictions / "metrics.json").read_text()) == summary
    assert {"schema", "task", "data", "cases", "metrics", "baselines", "conventions"} <= set(summary)
    assert (summary["schema"], summary["task"], Path(summary["data"]).name, summary["cases"]) == (
        1,
        "segment",
        "brains",
        2,
    )
    assert set(summary["metrics"]) >= KEYS
    for metric in summary["metrics"].values():
        assert set(metric) == {"value", "low", "high", "unit", "over", "cases"}
    assert summary["metrics"]["ged2"]["value"] is None  # no members were saved
    assert summary["conventions"]["empty"]["hd95_mm"] == {"both": 0.0, "one": None}


def test_phantoms_are_called_phantoms(study):
    study.add("phantom_0000").predict("phantom_0000")
    assert study.evaluate()["data"] == "phantom"


def test_only_splits_with_predictions_are_measured_unless_one_is_named(study):
    study.add("a", split="test").predict("a").add("b", split="train")
    summary = study.evaluate()
    assert (summary["cases"], summary["split"]) == (1, "test")
    with pytest.raises(UsageError, match="no complete result for 1 of 1 case: b"):
        study.evaluate(split="train")
    with pytest.raises(ManifestError, match="no case has split val"):
        study.evaluate(split="val")
    with pytest.raises(UsageError, match="is not a split"):
        study.evaluate(split="tests")


def test_missing_predictions_are_all_named(study):
    study.add("a").predict("a").add("b").add("c").predict("c")
    (study.predictions / "c" / "mask.nii.gz").unlink()
    with pytest.raises(UsageError, match="no complete result for 2 of 3 cases: b, c"):
        study.evaluate()


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "not JSON",
        '{"regions": {}}',
        '{"regions": {"tumour": 1}}',
        '{"regions": {"a": [1]}, "mask_labels": 1}',
    ],
)
def test_a_case_that_does_not_state_its_regions_is_refused(study, content):
    study.add("a").predict("a")
    (study.predictions / "a" / "case.json").write_text(content)
    with pytest.raises(UsageError, match=r"\[a\] case.json: does not name its regions"):
        study.evaluate()


def test_a_folder_of_other_cases_is_refused(study, tmp_path):
    study.add("a")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UsageError, match=r"no case of brains.csv has a result in elsewhere"):
        evaluate(tmp_path / "elsewhere", study.table)


def test_cases_without_reference_are_refused_by_name(study):
    study.add("a", seg=None).predict("a")
    with pytest.raises(ManifestError, match="no reference for 1 of 1 case: a"):
        study.evaluate()


def test_a_mask_on_another_grid_is_refused_and_turned_axes_are_not(study):
    moved = LPS.copy()
    moved[0, 3] = 5.0
    study.add("a").predict("a", affine=moved)
    with pytest.raises(ImageError, match=r"a/seg.*not on the grid of the result"):
        study.evaluate()
    flipped = np.diag([2.0, -2.0, 3.0, 1.0])
    flipped[0, 3] = -2.0 * (SHAPE[0] - 1)
    study.predict("a", TUMOUR[::-1], affine=flipped)
    assert study.evaluate()["metrics"]["dice"]["value"] == pytest.approx(1.0)


def test_a_map_that_is_no_probability_is_refused(study):
    study.add("a").predict("a", probability=TUMOUR * 1.5)
    with pytest.raises(ImageError, match=r"a/probability.*outside 0 to 1"):
        study.evaluate()


def test_results_may_go_elsewhere_and_are_the_same_twice(study, tmp_path):
    for name in "abc":
        study.add(name).predict(name, ball((12, 11, 8), 2 + "abc".index(name)))
    first = study.evaluate(out=tmp_path / "first")
    second = study.evaluate(out=tmp_path / "second")
    assert first == second
    assert (tmp_path / "first/metrics.json").read_bytes() == (tmp_path / "second/metrics.json").read_bytes()
    assert not (study.predictions / "metrics.json").exists()
    assert first["metrics"]["dice"]["low"] < first["metrics"]["dice"]["value"] < first["metrics"]["dice"]["high"]


def test_importing_loads_neither_torch_nor_monai():
    code = "import sys, medseg_diff.tasks.evaluate; assert not {'torch', 'monai', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_figure_is_drawn_unless_it_is_not_wanted(study):
    study.add("a").predict("a", probability=TUMOUR * 0.9)
    study.evaluate()
    assert not (study.predictions / "evaluation.png").exists()
    study.evaluate(figure=True)
    assert (study.predictions / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_two_folders_are_measured_and_compared(study, tmp_path):
    from medseg_diff.tasks.evaluate import evaluate_both

    for number, name in enumerate("abc"):
        study.add(name).predict(name, ball((12, 11, 8), 4))
        better = Study(study.folder)
        better.predictions = study.folder / "better"
        better.predict(name, ball((12, 11, 8), 3 + 0.3 * number))
    metrics, found = evaluate_both(study.predictions, study.folder / "better", study.table, figure=False)
    assert metrics == json.loads((study.predictions / "metrics.json").read_text())
    assert found == json.loads((study.predictions / "comparison.json").read_text())
    assert (found["first"], found["second"]) == ("out", "better")
    assert found["metrics"]["dice"]["better"] == "second" and found["metrics"]["dice"]["cases"] == 3
    before = (study.folder / "better" / "metrics.json").read_bytes()
    evaluate_both(study.predictions, study.folder / "better", study.table, out=tmp_path / "else", figure=False)
    assert json.loads((tmp_path / "else" / "comparison.json").read_text()) == found
    assert (tmp_path / "else/compared/metrics.json").read_bytes() == before


@pytest.mark.parametrize("task", ["synthesise", "enhance"])
def test_what_has_no_masks_to_measure_is_refused(study, task):
    study.add("a").predict("a")
    (study.predictions / "a" / "case.json").write_text(json.dumps({"task": task, "schema": 3}))
    with pytest.raises(UsageError, match=f"holds results of `{task}`"):
        study.evaluate()
