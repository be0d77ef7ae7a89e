"""Leaving one patient out with anomaly maps, in miniature."""

from benchmarks.anomaly_leave_one_out import measure, show
from medseg_diff import phantom

SMALL = (
    "view.size=[32,32]",
    "validation.slices=4",
    "engine.steps=1",
    *(f"{part}.{size}" for part in ("training", "classifier_training") for size in ("steps=1", "batch=2")),
    *(f"{part}.{size}" for part in ("network", "classifier") for size in ("width=8", "groups=4")),
)


def test_every_patient_is_left_out_once_beside_its_rivals(tmp_path, monkeypatch, auroc_of):
    monkeypatch.setattr(
        "medseg_diff.recipes.calibration.BETTER_THAN_CHANCE", 0.0
    )  # after one step a classifier may guess
    scans = phantom(tmp_path / "scans", cases=2, shape=(32, 32, 32), healthy=0)
    found = measure(scans, tmp_path / "out", config="quick/phantom", overrides=SMALL, device="cpu")
    assert [fold["patient"] for fold in found["folds"]] == ["phantom_0000", "phantom_0001"]
    for number, fold in enumerate(found["folds"], start=1):
        assert set(fold["maps"]) == {"anomaly", "flair", "flair_t2", "blur", "saliency", "scale_0"}
        for name, numbers in fold["maps"].items():
            file = "anomaly" if name == "anomaly" else f"baselines/{name}"
            assert numbers["auroc"] == auroc_of(tmp_path / "out" / f"fold_{number}" / "maps", scans, file)
    first, second = (fold["maps"]["flair"]["auroc"] for fold in found["folds"])
    assert first != second
    text = show(found)
    assert "phantom_0001" in text and "flair_t2" in text and "2 patients" in text
