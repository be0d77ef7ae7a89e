"""The study of anomaly maps in miniature, on phantoms named like BraTS."""

import os
import subprocess
import sys
from pathlib import Path

from medseg_diff import phantom
from pipelines.brats_anomaly import study

ROOT = Path(__file__).parents[2]
SMALL = (
    "view.size=[32,32]",
    "validation.slices=4",
    "engine.steps=1",
    *(f"{part}.{size}" for part in ("training", "classifier_training") for size in ("steps=2", "batch=2")),
    *(f"{part}.{size}" for part in ("network", "classifier") for size in ("width=8", "groups=4")),
)


def test_of_three_patients_the_last_is_mapped(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        "medseg_diff.recipes.calibration.BETTER_THAN_CHANCE", 0.0
    )  # after two steps a classifier may guess
    scans = phantom(tmp_path / "scans", cases=3, shape=(32, 32, 32), healthy=0).parent
    out = tmp_path / "study"
    found = study(scans, out, config="quick/phantom", overrides=SMALL, device="cpu", mlflow=False)
    assert found["task"] == "anomaly" and found["cases"] == 1 and set(found["baselines"]) > {"flair", "flair_t2"}
    assert {path.parent.name for path in out.glob("anomaly/*/anomaly.nii.gz")} == {"phantom_0002"}
    assert (out / "montage.png").stat().st_size > 10_000
    assert "not how good" in caplog.text


def test_it_runs_as_a_script():
    asked = [sys.executable, "pipelines/brats_anomaly.py", "--help"]
    shown = subprocess.run(asked, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert "--quick" in shown.stdout
