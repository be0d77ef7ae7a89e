"""The benchmark of anomaly maps, on an untrained system: costs are counted, every row is calibrated for itself."""

import json

import pytest

from benchmarks.anomaly import Bench, _baseline_row, show
from medseg_diff.run import Run


@pytest.fixture(scope="module")
def scored(untrained_healer, tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"), untrained_healer.table, "cpu")
    trained = Run(untrained_healer.folder)
    run = bench.system(trained, "deeper", ("healing.depth=30", "healing.steps=3"))
    return trained, run, bench.score(run, baselines=True)


def test_another_way_of_healing_is_calibrated_for_itself(scored):
    trained, run, _ = scored
    own, other = (json.loads((each.folder / "calibration.json").read_text()) for each in (trained, run))
    assert other["healing"]["depth"] == 30 and own["healing"]["depth"] == 20
    assert other["threshold"] != own["threshold"] and other["classifier"] == own["classifier"]


def test_calls_are_counted_and_baselines_are_free(scored):
    *_, row = scored
    assert row["calls"] == 6 and row["passes_per_slice"] == 14 and row["seconds_per_slice"] > 0
    rivals = {name: _baseline_row(name, found, row) for name, found in row["baselines"].items()}
    assert (rivals["flair"]["passes_per_slice"], rivals["saliency"]["passes_per_slice"]) == (0, 1)
    assert rivals["scale_0"]["calls"] == 6
    rows = [{"name": "the recipe", **row}, *rivals.values()]
    classifier = {"balanced_accuracy": 0.9, "auroc": None}
    text = show({"data": "2 phantoms", "classifier": classifier, "methods": rows, "curve": rows[:1]})
    assert all(f"\n{name} " in text for name in rivals) and "AUROC –" in text
