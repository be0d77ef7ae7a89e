"""The benchmark of thresholds: what is above a threshold is counted in whole brains, and its widening is taken off."""

import numpy as np
import pytest

from benchmarks import thresholds
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.recipes.calibration import AnomalyCalibration
from medseg_diff.run import Run
from medseg_diff.settings import parse_settings


def test_shares_are_counted_over_whole_brains(tmp_path, monkeypatch):
    size = (10, 10, 10)
    brain = np.zeros(size, dtype=np.float32)
    brain[2:8] = 1  # 600 voxels
    own = {"normative_mean": {"depth_mm": [0.0], "score": [0.0]}, "threshold": 0.5}
    calibration = {
        "source": "slices",
        "widened": 2.5,
        "engine": {"kind": "anoddpm"},
        "findings": {"false_positive_rate": 0.01},
    }
    calibration |= {"voxels": 9, "slices": 3, "classifier": {}, "maps": {"anomaly": own}}
    known = parse_settings(AnomalyCalibration, calibration, source="test")

    def made(out, *, cases, healthy, seed):
        out.mkdir(parents=True, exist_ok=True)
        rows = ["case,t1"]
        for n in range(cases):
            write_volume(out / f"c{n}.nii.gz", brain, np.eye(4))
            rows.append(f"c{n},c{n}.nii.gz")
        (out / "cases.csv").write_text("\n".join(rows))
        return out / "cases.csv"

    def mapped(*, data, model, out, **options):
        score = np.zeros(size, dtype=np.float32)
        score[2, :6] = 0.25  # 60 of 600 voxels at 1.25 times the threshold without widening
        for n in range(thresholds.TESTED):
            (out / f"c{n}").mkdir(parents=True, exist_ok=True)
            write_volume(out / f"c{n}" / "anomaly.nii.gz", score, np.eye(4))

    monkeypatch.setattr(thresholds, "phantom", made)
    monkeypatch.setattr(thresholds, "train_anomaly", lambda *args, out, **options: Run(out))
    monkeypatch.setattr(thresholds, "anomaly", mapped)
    monkeypatch.setattr(thresholds, "read_calibration", lambda run, kind: known)
    result = thresholds.measure(tmp_path, config="quick/anoddpm", seeds=2, device="cpu")
    assert [row["seed"] for row in result["rows"]] == [1, 2]
    row = result["rows"][0]
    assert row["threshold"] == pytest.approx(0.2) and row["shares"]["1"] == pytest.approx(0.1)
    assert row["shares"]["1.5"] == 0 and row["needed"] == pytest.approx(1.25)
    assert row["needed_by_brain"] == [1.25] * thresholds.TESTED
    text = thresholds.show(result)
    assert "10.00%" in text and "1.00%" in text and "1.2" in text
