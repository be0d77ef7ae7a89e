"""The benchmark of masks to start from, whole, in miniature: that it measures is the test, not what it measures."""

import json
from dataclasses import replace

from benchmarks.start_from import FALSE_POSITIVES, GIVEN, NOISE, QUICK, SHIFTED, SUPERVISED, measure, show

TINY = replace(
    QUICK,
    cases=5,
    tested=2,
    members=2,
    shape=(32, 32, 32),
    overrides=(
        "regions={whole_tumour: [1, 2, 4]}",
        "training={steps: 2, batch: 2, validate_every: 2, learning_rate: 0.001}",
        "network={kind: unet, width: 8, multipliers: [1, 2], blocks: 1, attention: [], groups: 4}",
        "preparation.spacing_mm=[null, null, null]",
        "view.size=[32,32]",
        "validation={slices: 2, members: 1, calibration_slices: 0}",
    ),
)


def test_every_folder_of_masks_is_refined_and_measured_on_the_same_cases(tmp_path):
    result = measure(tmp_path, size=TINY, device="cpu")
    masks = (SHIFTED, FALSE_POSITIVES, SUPERVISED)
    assert set(result["rows"]) == {NOISE, *(f"{name}, {level}" for name in masks for level in (GIVEN, "0.5"))}
    assert len({tuple(row["cases"]) for row in result["rows"].values()}) == 1
    shifted = result["rows"][f"{SHIFTED}, {GIVEN}"]["cases"].values()
    assert all(0.3 < case["dice"] < 1 and case["ged2"] > 0 and case["ece_band"] is None for case in shifted)
    read = json.loads((tmp_path / "start_from.json").read_text())
    assert read["rows"] == result["rows"]
    (facts, *_) = [json.loads(path.read_text()) for path in (tmp_path / "refined_0_0.5").glob("*/case.json")]
    assert (facts["start_from"], facts["strength"], facts["steps"]) == ("given_0", 0.5, 3)
    text = show(result)
    assert "shifted by 6 mm, 0.5" in text and "gain of Dice" in text
    assert show(read) == text
    assert sum(row["seconds"] is None for row in result["rows"].values()) == len(masks)
