"""The study of painted scans in miniature, on phantoms named like BraTS: that it runs, and says what it found."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medseg_diff import phantom
from medseg_diff.data.tables.manifest import read_manifest
from pipelines.mask_to_mr import WITH, WITHOUT, in_words, study

ROOT = Path(__file__).parents[2]
COARSE = ("preparation.spacing_mm=[8.0,8.0,8.0]", "view.size=[24,24]", "network.width=8", "network.groups=4")
SMALL = (*COARSE, "training.steps=2", "training.batch=2")
PAINTER = (*SMALL, "network.hidden=4", "sampling.steps=2", "validation.images=2", "validation.drawn=0")
SEGMENTER = (*SMALL, "network.correction.width=8", "network.correction.groups=4", "validation.slices=2")


def test_it_compares_two_models_on_the_same_patients(tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "study"
    phantom(scans, cases=5, shape=(32, 32, 32), healthy=0)
    sampling = ("sampling.members=2", "sampling.steps=1")
    options = {"overrides": (*SEGMENTER, *sampling), "painter": PAINTER, "device": "cpu", "mlflow": False}
    found = study(scans, out, quick=True, **options)
    assert (found["first"], found["second"], found["patients"]) == (WITHOUT, WITH, 1)
    both = read_manifest(out / f"{WITH}.csv", data_root=tmp_path)
    real, painted = (read_manifest(table, data_root=root) for table, root in tables(out, scans))
    assert [case.name for case in both.cases] == [case.name for case in (*real.cases, *painted.cases)]
    assert {case.patient for case in painted.cases} == {case.patient for case in real.of("train")}
    assert in_words(found).endswith("may be chance")


def tables(out, scans):
    return ((out / "cases.csv", scans), (out / "painted" / "cases.csv", None))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.03, "help"), (-0.03, -0.01, "harm"), (-0.01, 0.03, "may be chance"), (None, None, "may be chance")],
)
def test_its_answer_falls_either_way(low, high, said):
    middle = 0.02 if low is None else math.fsum([low, high]) / 2
    dice = {"first": 0.8, "second": 0.8 + middle, "difference": middle, "low": low, "high": high}
    assert said in in_words({"metrics": {"dice": dice}, "patients": 9})


def test_it_runs_as_a_script():
    asked = [sys.executable, "pipelines/mask_to_mr.py", "--help"]
    shown = subprocess.run(asked, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert "--quick" in shown.stdout
