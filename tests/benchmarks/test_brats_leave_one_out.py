"""Leave one out, whole, in miniature: phantoms in the place of patients."""

import pytest

from benchmarks.brats_leave_one_out import folds_of, how_to_read, measure, show
from medseg_diff import phantom
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import UsageError
from medseg_diff.files import write_json

TINY = (
    "training.steps=2",
    "training.batch=2",
    "network.width=8",
    "network.groups=4",
    "view.size=[32,32]",
    "preparation.spacing_mm=[null,null,null]",
    "sampling.members=2",
    "validation.slices=2",
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("scans"), cases=3, shape=(32, 32, 32), healthy=0)


def test_each_patient_is_tested_once_and_never_trained_on(table, tmp_path):
    manifest = read_manifest(table)
    tested = []
    for fold in folds_of(manifest, tmp_path):
        split = read_manifest(fold.table, data_root=fold.root)
        assert {case.patient for case in split.of("test")} == {fold.patient}
        assert len(split.of("train")) == 2
        tested.append(fold.patient)
    assert sorted(tested) == sorted(case.patient for case in manifest.cases)


def test_one_patient_is_refused(tmp_path):
    alone = read_manifest(phantom(tmp_path / "scan", cases=1, shape=(32, 32, 32)))
    with pytest.raises(UsageError, match="one patient"):
        folds_of(alone, tmp_path)


def test_both_methods_are_measured_on_every_patient(tmp_path, dice_of):
    table = phantom(tmp_path / "scans", cases=2, shape=(32, 32, 32), healthy=0)
    result = measure(table, tmp_path / "out", overrides=TINY, device="cpu")
    write_json(tmp_path / "result.json", result)
    assert len(result["folds"]) == result["patients"] == 2
    for number, fold in enumerate(result["folds"], start=1):
        for method in ("diffusion", "monai"):
            assert fold[method]["metrics"]["dice"] == dice_of(tmp_path / "out" / f"fold_{number}" / method, table)
            assert fold[method]["seconds_per_case"] > 0
        pace = fold["monai"]["pace"]
        apart = abs(fold["diffusion"]["training_seconds"] - fold["monai"]["training_seconds"])
        assert apart <= pace["baseline_seconds_per_step"] + 0.01
    text = show(result)
    assert "phantom_0001" in text
    assert "2 patients: this shows that the pipeline works" in text


def test_many_patients_need_no_excuse():
    assert "not how good" in how_to_read(3)
    assert "not how good" not in how_to_read(100)
