"""The demo in miniature: from nothing to numbers, a picture, and a run that MLflow knows."""

import json

import pytest

import medseg_diff
from medseg_diff.errors import UsageError
from medseg_diff.run import Run

MINIATURE = (
    "training.steps=20",
    "training.batch=8",
    "training.validate_every=20",
    "training.precision=fp32",
    "network.width=16",
    "network.multipliers=[1,2]",
    "network.attention=[]",
    "validation={slices: 2, members: 1}",
    "sampling.members=2",
    "sampling.steps=1",
)
TINY_MAPS = (
    "training.steps=10",
    "training.batch=8",
    "training.validate_every=10",
    "training.precision=fp32",
    "classifier_training.steps=10",
    "classifier_training.batch=8",
    "classifier_training.validate_every=10",
    "network.width=8",
    "network.groups=4",
    "network.multipliers=[1,2]",
    "network.attention=[]",
    "classifier.width=8",
    "classifier.groups=4",
    "classifier.multipliers=[1,2]",
    "validation.slices=8",
    "engine.looks=1",
    "engine.refills=1",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a demo of twelve phantoms, and what it returned."""
    out = tmp_path_factory.mktemp("story") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(
            "medseg_diff.recipes.calibration.BETTER_THAN_CHANCE", 0.0
        )  # after ten steps a classifier may guess
        metrics = medseg_diff.demo(out, cases=12, device="cpu", overrides=MINIATURE, anomaly_overrides=TINY_MAPS)
    return out, metrics


def test_it_leaves_numbers_and_a_picture(finished, dice_of):
    out, found = finished
    metrics = found["segment"]
    assert json.loads((out / "segment" / "metrics.json").read_text()) == metrics
    assert metrics["data"] == "phantom" and metrics["cases"] == 2 and metrics["split"] == "test"
    values = {key: metric["value"] for key, metric in metrics["metrics"].items()}
    assert values["dice"] == dice_of(out / "segment", out / "phantoms" / "cases.csv")
    assert values["ged2"] is not None and values["ece"] is not None
    assert (out / "montage.png").read_bytes().startswith(b"\x89PNG") and (out / "montage.png").stat().st_size > 20_000
    assert (out / "segment" / "per_case.csv").is_file()
    assert len(list(out.glob("segment/*/members/*.nii.gz"))) == 4


def test_it_maps_anomalies(finished, auroc_of):
    out, found = finished
    metrics = found["anomaly"]
    assert json.loads((out / "anomaly" / "metrics.json").read_text()) == metrics
    assert (metrics["task"], metrics["data"], metrics["cases"]) == ("anomaly", "phantom", 2)
    assert metrics["baselines"] == {}  # they take as long again; benchmarks.anomaly has them
    assert metrics["metrics"]["auroc"]["value"] == auroc_of(out / "anomaly", out / "phantoms" / "cases.csv")
    assert (out / "anomaly" / "montage.png").stat().st_size > 20_000
    assert all((out / task / "report.html").is_file() for task in ("segment", "anomaly"))
    assert Run(out / "runs" / "anomaly").facts["finished"]


def test_only_held_out_phantoms_are_measured(finished):
    out, _ = finished
    lines = [line.split(",") for line in (out / "phantoms" / "cases.csv").read_text().splitlines()]
    split = lines[0].index("split")
    test = {line[0] for line in lines[1:] if line[split] == "test"}
    assert {path.parent.name for path in out.glob("segment/*/case.json")} == test and len(test) == 2


def test_mlflow_holds_the_run(finished):
    out, _ = finished
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{out / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("medseg-diff/segment")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "segment"
    assert run.data.params["training.steps"] == "20" and run.data.tags["recipe"] == "quick-phantom"
    assert {"train/loss", "val/dice", "test/dice", "calibration/threshold"} <= set(run.data.metrics)
    facts = Run(out / "runs" / "segment").facts
    assert run.data.metrics["val/dice"] == pytest.approx(facts["best_val_dice"], rel=1e-5)
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "phantoms/cases" and facts["data_digest"].startswith(dataset.dataset.digest)
    assert "recipe.yaml" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "phantoms").mkdir()  # a run and phantoms of one's own are no demo
    with pytest.raises(UsageError, match=r"holds files that are not from a demo. Fix: choose another --out"):
        medseg_diff.demo(tmp_path, cases=12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phantoms", "thesis.txt"]
