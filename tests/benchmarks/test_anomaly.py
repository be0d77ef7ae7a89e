"""The benchmark of anomaly maps, on an untrained system: costs are counted, every row is calibrated for itself."""

import json

import pytest

from benchmarks.anomaly import Bench, baseline_row, show
from medseg_diff.run import Run


@pytest.fixture(scope="module")
def scored(untrained_anomaly, tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"), untrained_anomaly.table, "cpu")
    trained = Run(untrained_anomaly.folder)
    run = bench.system(trained, "deeper", ("engine.depth=30", "engine.steps=3"))
    return trained, run, bench.score(run, baselines=True)


def test_other_settings_of_the_engine_are_calibrated_for_themselves(scored):
    trained, run, _ = scored
    own, other = (json.loads((each.folder / "calibration.json").read_text()) for each in (trained, run))
    assert other["engine"]["depth"] == 30 and own["engine"]["depth"] == 20
    assert other["maps"]["anomaly"]["threshold"] != own["maps"]["anomaly"]["threshold"]
    assert other["classifier"] == own["classifier"]


def test_calls_are_counted_and_baselines_are_free(scored):
    *_, row = scored
    assert row["nfe"] == 6 and row["passes_per_slice"] == 12 and row["seconds_per_slice"] > 0
    baselines = {name: baseline_row(name, found, row) for name, found in row["baselines"].items()}
    assert (baselines["flair"]["passes_per_slice"], baselines["saliency"]["passes_per_slice"]) == (0, 1)
    assert baselines["scale_0"]["nfe"] == 6
    row["metrics"] |= {"lesion_left": {"value": 0.87}, "error_elsewhere": {"value": 0.21}}  # those have no twins
    rows = [{"name": "the recipe", **row}, *baselines.values()]
    classifier = {"balanced_accuracy": 0.9, "auroc": None}
    text = show({"data": "2 phantoms", "classifier": classifier, "methods": rows, "curve": rows[:1]})
    assert all(f"\n{name} " in text for name in baselines) and "AUROC –" in text
    assert "0.87" in text and "0.21" in text
