"""Two folders on the same cases: differences, intervals and p that can be worked out by hand."""

import json

import numpy as np
import pytest
from scipy.stats import wilcoxon

from medseg_diff.errors import UsageError
from medseg_diff.evaluation.comparison import compare_predictions, lines_of, wilcoxon_p
from medseg_diff.files import write_table


def table(folder, dice, *, regions=("whole",), hd95=None, volumes=None, patients=None, names=None):
    columns = ["case", "patient", "split", "region", "reference_ml", "dice", "hd95_mm"]
    names = names or [f"c{number}" for number in range(len(dice))]
    patients, volumes, hd95 = patients or names, volumes or [5.0] * len(dice), hd95 or [1.0] * len(dice)
    rows = [
        [name, patients[n], "test", region, volumes[n], dice[n], hd95[n]]
        for n, name in enumerate(names)
        for region in regions
    ]
    write_table(folder / "per_case.csv", columns, rows)
    return folder


def test_the_difference_is_paired_and_says_which_is_better(tmp_path):
    one, two = [0.5, 0.6, 0.7, 0.8, 0.9, 0.4, 0.3], [0.6, 0.65, 0.72, 0.9, 0.91, 0.43, 0.37]
    first = table(tmp_path / "one", one, hd95=[4.0] * 7)
    second = table(tmp_path / "two", two, hd95=[3.0, 3.5, 2, 1, 3, 3, 3.9])
    found = compare_predictions(first, second, out=tmp_path / "out")
    assert json.loads((tmp_path / "out/comparison.json").read_text()) == found
    assert (found["first"], found["second"], found["cases"], found["patients"]) == ("one", "two", 7, 7)
    dice = found["metrics"]["dice"]
    assert dice["difference"] == pytest.approx(np.mean(two) - np.mean(one))
    assert dice["p"] == pytest.approx(wilcoxon(two, one).pvalue) == pytest.approx(2 / 2**7)  # all seven one way
    assert 0 < dice["low"] < dice["difference"] < dice["high"]
    assert (dice["better"], found["metrics"]["hd95_mm"]["better"]) == ("second", "second")
    text = "\n".join(lines_of(found))
    assert "two against one: 7 cases of 7 patients" in text and "two is better" in text


def test_the_two_directions_mirror_each_other(tmp_path):
    first, second = table(tmp_path / "a", [0.5, 0.7, 0.6]), table(tmp_path / "b", [0.6, 0.5, 0.9])
    one, other = (compare_predictions(*pair)["metrics"]["dice"] for pair in ((first, second), (second, first)))
    assert one["difference"] == pytest.approx(-other["difference"]) and one["p"] == other["p"]
    assert (one["better"], other["better"]) == ("second", "first")


def test_equal_folders_differ_in_nothing(tmp_path):
    first = table(tmp_path / "a", [0.5, 0.7])
    dice = compare_predictions(first, first / "per_case.csv")["metrics"]["dice"]
    assert (dice["difference"], dice["p"], dice["better"]) == (0.0, None, None)


def test_cases_of_one_folder_only_are_named_and_left_out(tmp_path):
    first = table(tmp_path / "a", [0.5, 0.7], names=["x", "y"])
    second = table(tmp_path / "b", [0.6, 0.1], names=["y", "z"])
    found = compare_predictions(first, second)
    assert (found["cases"], found["only_in_first"], found["only_in_second"]) == (1, ["x"], ["z"])
    assert found["metrics"]["dice"]["difference"] == pytest.approx(-0.1)
    with pytest.raises(UsageError, match="no case was measured in both"):
        compare_predictions(first, table(tmp_path / "c", [0.1], names=["w"]))


def test_undefined_values_and_cases_without_a_lesion_do_not_count(tmp_path):
    first = table(tmp_path / "a", [0.5, 1.0, 0.6], volumes=[3, 0, 4], hd95=[None, 0.0, 2.0])
    second = table(tmp_path / "b", [0.7, 0.0, 0.7], volumes=[3, 0, 4], hd95=[2.0, None, 3.0])
    metrics = compare_predictions(first, second)["metrics"]
    assert (metrics["dice"]["cases"], metrics["hd95_mm"]["cases"]) == (2, 1)
    assert metrics["dice"]["difference"] == pytest.approx(0.15)


def test_two_scans_of_a_patient_are_one_observation():
    assert wilcoxon_p([0.1, 0.3, -0.05], patients=["a", "a", "b"]) == wilcoxon([0.2, -0.05]).pvalue
    assert wilcoxon_p([0.1, -0.1], patients=["a", "a"]) is None


def test_regions_are_compared_each(tmp_path):
    first = table(tmp_path / "a", [0.5, 0.7], regions=("whole", "core"))
    assert {"whole_dice", "core_dice"} <= set(compare_predictions(first, first)["metrics"])


def test_of_anomaly_maps_the_methods_own_are_compared_and_not_their_baselines(tmp_path):
    columns = [
        "case",
        "patient",
        "split",
        "map",
        "reference_ml",
        "score",
        "auroc",
        "auroc_of_slices",
        "false_positives_ml",
    ]
    for name, auroc in (("one", 0.7), ("two", 0.8)):
        rows = [
            ["c1", "p1", "test", map_, 5.0, 0.3, value, value, 9 * value]
            for map_, value in (("anomaly", auroc), ("t1", 0.6))
        ]
        write_table(tmp_path / name / "per_case.csv", columns, rows)
    metrics = compare_predictions(tmp_path / "one", tmp_path / "two")["metrics"]
    assert metrics["auroc"]["difference"] == pytest.approx(0.1)
    directions = {name: metrics[name]["better"] for name in ("auroc", "auroc_of_slices", "false_positives_ml", "score")}
    assert directions == {"auroc": "second", "auroc_of_slices": "second", "false_positives_ml": "first", "score": None}


def test_names_of_cases_are_text(tmp_path):
    first = table(tmp_path / "a", [0.5, 0.6, 0.7], names=["001", "NA", "1"])
    second = table(tmp_path / "b", [0.6, 0.7, 0.9], names=["01", "NA", "1"])
    found = compare_predictions(first, second)
    assert (found["cases"], found["only_in_first"], found["only_in_second"]) == (2, ["001"], ["01"])


@pytest.mark.parametrize("content", [None, "", "name,value\n", "case,dice\na,1,2,3\n", b"\xff\xfe\x00"])
def test_a_folder_without_a_table_is_refused(tmp_path, content):
    first = table(tmp_path / "a", [0.5])
    (tmp_path / "b").mkdir()
    if content is not None:
        (tmp_path / "b" / "per_case.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError, match=r"b(/per_case.csv)?: (has no readable|holds no cases)"):
        compare_predictions(first, tmp_path / "b")


def test_ends_of_intervals_are_no_metrics(tmp_path):
    for name, ends in (("one", (1.0, 2.0)), ("two", (2.0, 3.0))):
        columns = ["case", "patient", "split", "region", "reference_ml", "dice", "low90_ml", "high90_ml"]
        rows = [[f"c{number}", f"p{number}", "test", "whole", 5.0, 0.5, *ends] for number in range(4)]
        write_table(tmp_path / name / "per_case.csv", columns, rows)
    assert set(compare_predictions(tmp_path / "one", tmp_path / "two")["metrics"]) == {"dice"}
