"""The study of a BraTS folder in miniature, on phantoms named like BraTS and on real patients where they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medseg_diff import phantom
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import UsageError
from pipelines.brats_segmentation import hold_out_last, study
from tests.scans import SCANS, with_scans

ROOT = Path(__file__).parents[2]
SMALL = ("training.steps=2", "training.batch=2", "network.width=8", "network.groups=4", "validation.slices=2")
COARSE = ("preparation.spacing_mm=[null,null,null]", "view.size=[32,32]", "sampling.members=2", "sampling.steps=1")


def make_scans(folder, cases):
    phantom(folder, cases=cases, shape=(32, 32, 32), healthy=0)
    return folder


def check(out, metrics, cases, dice_of):
    assert metrics["cases"] == cases
    assert metrics["split"] == "test"
    assert (out / "montage.png").stat().st_size > 10_000
    root = None if (out / "scans").is_dir() else out.parent / "scans"
    assert metrics["metrics"]["dice"]["value"] == dice_of(out / "segment", out / "cases.csv", data_root=root)
    tested = read_manifest(out / "cases.csv", data_root=root)
    assert {case.name for case in tested.of("test")} == {path.parent.name for path in out.glob("segment/*/mask.nii.gz")}


def test_enough_patients_are_split_by_prepare(tmp_path, dice_of):
    scans, out = make_scans(tmp_path / "scans", 5), tmp_path / "study"
    metrics = study(scans, out, config="quick/mask_logits", overrides=SMALL + COARSE, device="cpu", mlflow=False)
    check(out, metrics, 1, dice_of)


def test_of_three_patients_the_last_is_tested(tmp_path, caplog, dice_of):
    scans = make_scans(tmp_path / "scans", 3)
    metrics = study(scans, tmp_path, config="quick/mask_logits", overrides=SMALL + COARSE, device="cpu", mlflow=False)
    check(tmp_path, metrics, 1, dice_of)
    assert (tmp_path / "segment" / "phantom_0002" / "mask.nii.gz").is_file()
    assert "not how good" in caplog.text


def test_a_single_patient_is_refused(tmp_path):
    table = phantom(tmp_path, cases=1, shape=(32, 32, 32))
    with pytest.raises(UsageError, match="one patient"):
        hold_out_last(table, data_root=None)


def test_it_runs_as_a_script():
    asked = [sys.executable, "pipelines/brats_segmentation.py", "--help"]
    shown = subprocess.run(asked, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert "--quick" in shown.stdout


@with_scans("brats")
def test_real_patients(tmp_path):
    coarse = ("preparation.spacing_mm=[4.0,4.0,4.0]", "view.size=[40,48]", "sampling.members=2", "sampling.steps=1")
    metrics = study(
        SCANS / "brats", tmp_path, config="quick/mask_logits", overrides=SMALL + coarse, device="cpu", mlflow=False
    )
    assert metrics["cases"] == 1
    assert metrics["metrics"]["dice"]["value"] is not None
