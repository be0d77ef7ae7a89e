"""The figure of an evaluated folder: drawn from its two files, whole, and the same twice."""

import pytest

from medseg_diff.errors import UsageError
from medseg_diff.files import write_json, write_table
from medseg_diff.reporting.evaluation import evaluation_figure

CURVES = {
    "reliability": {"probability": [0.01, 0.5, 0.98], "frequency": [0.0, 0.4, 1.0], "voxels": [90000, 300, 2000]},
    "risk_coverage": {"coverage": [0.5, 0.9, 1.0], "risk": [0.0, 0.001, 0.02]},
}
COLUMNS = ["case", "region", "reference_ml", "dice", "dice_raters", "volume_bias_ml"]


def evaluated(folder, *, regions=("whole",), rows=(("a", 12.0, 0.9, 0.8, 1.0), ("b", 0.0, 1.0, None, 0.0)), **changes):
    summary = {"data": "phantom", "cases": len(rows), "patients": len(rows), "metrics": {"ece": {"value": 0.01}}}
    summary |= {"curves": dict.fromkeys(regions, CURVES)} | changes
    write_json(folder / "metrics.json", summary)
    write_table(folder / "per_case.csv", COLUMNS, [[row[0], region, *row[1:]] for region in regions for row in rows])
    return folder


def size_of(png):
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_a_row_of_panels_for_each_region_and_the_same_bytes_twice(tmp_path):
    one, two = evaluated(tmp_path / "one"), evaluated(tmp_path / "two", regions=("whole", "core"))
    for folder in (one, two):
        evaluation_figure(folder, folder / "evaluation.png")
    assert size_of(two / "evaluation.png")[1] > 1.6 * size_of(one / "evaluation.png")[1]
    evaluation_figure(one, one / "again.png")
    assert (one / "again.png").read_bytes() == (one / "evaluation.png").read_bytes()


def test_what_is_missing_is_left_empty(tmp_path):
    healthy = evaluated(tmp_path, rows=(("a", 0.0, 1.0, None, 0.0),), curves={"whole": {}})
    evaluation_figure(healthy, healthy / "evaluation.png")
    assert size_of(healthy / "evaluation.png")[0] > 1000


@pytest.mark.parametrize("broken", ["absent", "{}", "no JSON"])
def test_a_folder_without_an_evaluation_is_refused(tmp_path, broken):
    evaluated(tmp_path)
    (tmp_path / "metrics.json").unlink()
    if broken != "absent":
        (tmp_path / "metrics.json").write_text(broken)
    with pytest.raises(UsageError, match=r"holds no metrics\.json and per_case\.csv of a segmentation"):
        evaluation_figure(tmp_path, tmp_path / "evaluation.png")
    assert not (tmp_path / "evaluation.png").exists()
