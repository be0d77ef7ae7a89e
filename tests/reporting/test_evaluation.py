"""The figure of an evaluated folder: drawn from its two files, whole, and the same twice."""

import pytest

from medseg_diff.errors import UsageError
from medseg_diff.files import write_json, write_table
from medseg_diff.reporting import evaluation, evaluation_anomaly, panels
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


ANOMALY = ["case", "map", "reference_ml", "score", "average_precision", "dice_preset", "false_positives_ml"]


def evaluated_maps(folder, rows, **changes):
    metrics = {"average_precision": {"value": 0.8, "low": 0.7, "high": 0.9}, "auroc_of_volumes": {"value": 0.9}}
    summary = {"task": "anomaly", "data": "phantom", "cases": len(rows), "patients": len(rows), "metrics": metrics}
    write_json(folder / "metrics.json", summary | changes)
    write_table(folder / "per_case.csv", ANOMALY, rows)
    return folder


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a folder → the panels with their titles."""
    figures = []

    def save(figure, path):
        figures.append(figure)
        panels.save_png(figure, path)

    for module in (evaluation, evaluation_anomaly):
        monkeypatch.setattr(module, "save_png", save)

    def draw(folder):
        evaluation_figure(folder, tmp_path / "drawn.png")
        return {axes.get_title(): axes for axes in figures[-1].axes if axes.get_visible()}

    return draw


def names_on(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_cases_are_named_worst_first_and_healthy_ones_have_no_dice(drawn, tmp_path):
    rows = [("good", 12.0, 0.9, 0.8, 1.0), ("healthy", 0.0, 0.0, None, 2.5), ("bad", 3.0, 0.2, 0.3, -1.0)]
    shown = drawn(evaluated(tmp_path, rows=rows))
    assert names_on(shown["Dice of cases with a lesion"]) == ["bad", "good"]
    marked = shown["False positives of healthy cases"]
    assert names_on(marked) == ["healthy"] and [bar.get_width() for bar in marked.patches] == [2.5]


def test_of_many_cases_the_worst_are_named(drawn, tmp_path):
    rows = [(f"c{number:02}", 5.0, number / 100, None, 0.1) for number in range(60)]
    axes = drawn(evaluated(tmp_path, rows=rows))["Dice of cases with a lesion"]
    assert names_on(axes) == [f"c{number:02}" for number in range(24)] and axes.get_ylabel() == "worst 24 of 60 cases"


def test_no_legend_lies_over_its_panel(drawn, tmp_path):
    for folder in (evaluated(tmp_path / "a"), evaluated_maps(tmp_path / "b", [["a", "anomaly", 5, 1.2, 0.7, 0.6, ""]])):
        legends = [(axes, axes.get_legend()) for axes in drawn(folder).values() if axes.get_legend()]
        assert legends
        for axes, legend in legends:
            assert legend.get_window_extent().y1 < axes.get_window_extent().y0


def test_anomaly_maps_have_a_figure_of_lesions_healthy_cases_scores_and_baselines(drawn, tmp_path):
    rows = [["found", "anomaly", 5, 1.2, 0.9, 0.6, ""], ["missed", "anomaly", 5, 0.4, 0.1, 0.05, ""]]
    rows += [["clean", "anomaly", 0, 0.3, "", "", 0], ["marked", "anomaly", 0, 0.9, "", "", 7.5]]
    rows += [["found", "intensity", 5, 1.2, 0.2, "", ""]]
    baselines = {"intensity": {"average_precision": {"value": 0.2, "low": None, "high": None}}}
    shown = drawn(evaluated_maps(tmp_path, rows, baselines=baselines))
    assert names_on(shown["Cases with a lesion"]) == ["missed", "found"]
    assert names_on(shown["False positives of healthy cases"]) == ["marked", "clean"]
    assert names_on(shown["Beside the baselines"]) == ["this method", "intensity"]
    assert "0.900" in shown["Score of each volume"].get_xlabel()


def test_healthy_cases_alone_can_be_drawn(drawn, tmp_path):
    shown = drawn(evaluated_maps(tmp_path, [["clean", "anomaly", 0, 0.3, "", "", 0]], metrics={}))
    assert names_on(shown["Cases with a lesion"]) == [] and names_on(shown["False positives of healthy cases"]) == [
        "clean"
    ]


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
    with pytest.raises(UsageError, match=r"holds no metrics\.json and per_case\.csv of an evaluation"):
        evaluation_figure(tmp_path, tmp_path / "evaluation.png")
    assert not (tmp_path / "evaluation.png").exists()
