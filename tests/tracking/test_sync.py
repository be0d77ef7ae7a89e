"""`complete` tells MLflow what it lacks, once; evaluations join their run; registered models come back whole."""

import json
import logging
import os
from pathlib import Path

import pytest

from medseg_diff.errors import CheckpointError, EnvironmentFault, UsageError
from medseg_diff.recipes.trained import find_model
from medseg_diff.run import Run
from medseg_diff.tasks.runs import compare_runs, register_run
from medseg_diff.tracking import attach_evaluation, complete, record_evaluation
from medseg_diff.tracking.mirror import Mirror
from medseg_diff.tracking.registry import fetch, register
from medseg_diff.tracking.store import read_ticket


def everything(client, run_id):
    """All that MLflow holds of a run, but for times and random names."""
    found = client.get_run(run_id)
    histories = {
        name: sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))
        for name in found.data.metrics
    }
    pictures = [file.path.split("+timestamp")[0] for file in client.list_artifacts(run_id, "images")]
    files = {file.path for file in client.list_artifacts(run_id)}
    data = [given.dataset.name for given in found.inputs.dataset_inputs]
    return found.data.params, found.info.status, histories, sorted(pictures), files, data


def test_a_run_that_mlflow_never_heard_of_is_told_whole_and_once(runs, client, make_run, evaluated):
    run = make_run("late")
    record_evaluation(run, *evaluated(0.8))
    first = complete(run, runs)
    assert (first.numbers, first.pictures) == (4, 1)
    parameters, status, histories, pictures, files, data = everything(client, first.run_id)
    assert parameters["training.steps"] == "20" and parameters["training.learning_rate"] == "0.001"
    assert status == "FINISHED" and data == ["brats/cases"]
    assert histories["train/loss"] == [(10, 0.1), (20, 0.05)] and histories["test/dice"] == [(0, 0.8)]
    assert "test/hd95_mm" not in histories  # it was undefined
    assert pictures == ["images/trajectories~validation+step+10"] * 2  # the picture and its small copy
    assert {"recipe.yaml", "environment.json", "SHA256SUMS", "training.png", "cases_cases-test.json"} <= files
    info = client.get_run(first.run_id).info
    assert (info.start_time, info.end_time) == (1_000_000, 1_060_000)
    before = everything(client, first.run_id)
    again = complete(run, runs)
    assert again.run_id == first.run_id and (again.numbers, again.pictures) == (0, 0)
    assert everything(client, first.run_id) == before


def test_the_terminal_and_mlflow_say_the_same_of_a_run(runs, client, make_run, evaluated):
    pair = [make_run(name) for name in ("one", "two")]
    for run, dice in zip(pair, (1 / 3, 2 / 3), strict=True):
        run.log(30, {"loss": dice / 7})
        run.calibration_file.write_text(json.dumps({"regions": {"tumour": {"threshold": 0.5, "temperature": 1.2}}}))
        record_evaluation(run, *evaluated(dice))
    found = compare_runs(*(run.folder for run in pair), runs=runs)["numbers"]
    assert {"train/loss", "val/dice", "test/dice", "calibration/threshold"} <= set(found)
    for number, run in enumerate(pair):
        told = client.get_run(complete(run, runs).run_id).data.metrics
        assert told == {name: both[number] for name, both in found.items()}


def test_after_an_outage_only_what_is_missing_is_sent(runs, client, make_run):
    run = make_run("outage")
    sent = Mirror(runs)
    sent.begin(run)
    sent.metrics(10, {"loss": 0.1})
    sent.end(run, finished=False, weights=[])
    there = read_ticket(run.folder).run_id
    done = complete(run, runs)
    assert done.run_id == there and done.numbers == 3
    assert everything(client, done.run_id)[2]["train/loss"] == [(10, 0.1), (20, 0.05)]


def test_a_run_is_found_by_its_key_where_the_answer_was_lost(runs, client, make_run):
    run = make_run("lost")
    first = complete(run, runs)
    ticket = read_ticket(run.folder)
    for lost in (None, "0" * 32):  # the answer never came, or another store's id
        (run.folder / "mlflow.json").write_text(json.dumps(ticket._replace(run_id=lost)._asdict()))
        assert complete(run, runs) == (first.run_id, 0, 0)


def test_a_line_cut_short_by_a_crash_is_left_out(runs, client, make_run):
    run = make_run("cut", finished=False)
    with run.metrics_file.open("a") as file:
        file.write("30,lo")
    done = complete(run, runs)
    assert done.numbers == 4 and client.get_run(done.run_id).info.status == "FAILED"
    (run.folder / ".lock").write_text(str(os.getpid()))  # it trains
    complete(run, runs)
    assert client.get_run(done.run_id).info.status == "RUNNING"


def table_of(client, run_id, folder):
    found = json.loads(Path(client.download_artifacts(run_id, "cases_cases-test.json", str(folder))).read_text())
    return dict(zip(found["columns"], zip(*found["data"], strict=True), strict=True))


def test_an_evaluation_joins_its_run_as_numbers_and_a_table(runs, client, make_run, evaluated, tmp_path):
    run = make_run("judged")
    run_id = complete(run, runs).run_id
    assert attach_evaluation(run, *evaluated(0.7), store=runs)
    assert attach_evaluation(run, *evaluated(0.7, name="again"), store=runs)  # says nothing new
    found = client.get_run(run_id)
    assert found.data.metrics["test/dice"] == 0.7 and found.info.status == "FINISHED"
    assert len(client.get_metric_history(run_id, "test/dice")) == 1
    assert json.loads(found.data.tags["mlflow.loggedArtifacts"]) == [{"path": "cases_cases-test.json", "type": "table"}]
    table = table_of(client, run_id, tmp_path)
    assert table["case"] == ("000", "001", "002", "003")  # ids stay text
    assert table["dice"] == pytest.approx((0.685, 0.695, 0.705, 0.715)) and table["hd95_mm"] == (None,) * 4
    assert attach_evaluation(run, *evaluated(0.75), store=runs)  # another sampling: the newest counts
    assert client.get_run(run_id).data.metrics["test/dice"] == 0.75
    assert table_of(client, run_id, tmp_path)["dice"] == pytest.approx((0.735, 0.745, 0.755, 0.765))
    assert attach_evaluation(run, *evaluated(0.6, split="val"), store=runs)
    assert client.get_run(run_id).data.metrics["on_val/dice"] == 0.6


def test_without_mlflow_an_evaluation_stays_in_the_run_folder(runs, make_run, evaluated, monkeypatch, caplog):
    run = make_run("offline")
    assert not attach_evaluation(run, *evaluated(0.7), store=runs)  # it was trained without a mirror
    assert (run.folder / "evaluations" / "cases-test" / "per_case.csv").is_file()
    complete(run, runs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    assert not attach_evaluation(run, *evaluated(0.9), store=runs)
    assert f"later: medseg-diff runs sync {run.name}" in caplog.text
    kept = json.loads((run.folder / "evaluations" / "cases-test" / "metrics.json").read_text())
    assert kept["metrics"]["dice"]["value"] == 0.9


def test_a_registered_model_comes_back_verified(runs, client, make_run):
    run = make_run("model")
    assert register(run, runs, name="tumour", alias="champion").uri == "models:/tumour/1"
    assert register(run, runs, name="tumour").uri == "models:/tumour/2"
    version = client.get_model_version("tumour", "1")
    assert version.run_id == read_ticket(run.folder).run_id and version.source.endswith("/artifacts/model")
    for uri in ("models:/tumour/1", "models:/tumour@champion"):
        came = fetch(uri, runs)
        assert came.folder.parent == runs / "cache" / "models"
        assert came.weights("best").read_bytes() == run.weights("best").read_bytes()
        assert came.facts["task"] == "segment" and len(came.verified()[came.weights("best")]) == 64
    files = {path.relative_to(came.folder).as_posix() for path in came.folder.rglob("*") if path.is_file()}
    assert files == {"recipe.yaml", "run.json", "environment.json", "SHA256SUMS", "weights/best.safetensors"}
    with pytest.raises(UsageError, match=r"the registry has no models:/tumour/9. Fix: use one of .*models:/tumour"):
        fetch("models:/tumour/9", runs)
    with pytest.raises(UsageError, match="no models:/tumour@nobody"):
        fetch("models:/tumour@nobody", runs)


@pytest.mark.parametrize("painted", [False, True])
def test_a_model_that_draws_scans_is_registered_with_all_its_networks(runs, client, make_run, painted):
    from mlflow.models import Model

    regions = "regions: {tumour: [1]}\n" if painted else ""
    run = make_run(f"drawing-{painted}", recipe=f"task: synthesise\n{regions}training: {{steps: 2}}\n")
    for name in ("denoiser", "autoencoder", "regressor"):
        run.weights(name).write_bytes(name.encode())
    run.covariates_file.write_text("{}")
    run.seal()
    run.note(task="synthesise")
    uri, command = register_run(run.folder, f"brains-{painted}", runs=runs, alias="latest-good")
    then = "--masks CSV --out painted" if painted else "--number 8 --out synthetic"
    assert command == f"medseg-diff synthesise --model {uri} {then}"
    came = find_model(f"models:/brains-{painted}@latest-good", task="synthesise", runs=runs)
    assert came.verified() and came.weights("autoencoder").read_bytes() == b"autoencoder"
    assert came.covariates_file.is_file()
    source = client.get_model_version(f"brains-{painted}", "1").source.removeprefix("file://")
    signature = Model.load(source).signature
    assert signature.inputs.input_names() == ["number", "covariates", "masks"]


@pytest.mark.parametrize("uri", ["models:/", "models:/a", "models:/a/latest", "models:/../../x/1", "models:/a b/1"])
def test_what_names_no_model_is_refused(runs, uri):
    with pytest.raises(UsageError, match=r"does not name a model. Fix: write models:/NAME/VERSION"):
        fetch(uri, runs)


def test_a_registered_file_that_was_changed_is_refused(runs, client, make_run):
    run = make_run("tampered")
    register(run, runs, name="tampered")
    source = Path(client.get_model_version("tampered", "1").source.removeprefix("file://"))
    with (source / "data" / "run" / "weights" / "best.safetensors").open("ab") as file:
        file.write(b"!")
    with pytest.raises(CheckpointError, match=r"best.safetensors: differs from its checksum"):
        fetch("models:/tampered/1", runs)


def test_checksums_that_were_changed_along_with_the_file_are_refused(runs, client, make_run):
    run = make_run("forged")
    register(run, runs, name="forged")
    source = Run(Path(client.get_model_version("forged", "1").source.removeprefix("file://")) / "data" / "run")
    source.weights("best").write_bytes(b"others")
    source.seal()
    with pytest.raises(CheckpointError, match=r"models:/forged/1: is not what was registered"):
        fetch("models:/forged/1", runs)


def test_what_cannot_be_a_model_is_not_registered(runs, make_run, monkeypatch):
    with pytest.raises(CheckpointError, match="is not finished"):
        register(make_run("young", finished=False), runs, name="young")
    maps = make_run("anomaly", finished=False)
    maps.note(task="anomaly")
    with pytest.raises(CheckpointError, match="finish it: train-anomaly --resume auto"):
        register(maps, runs, name="young")
    run = make_run("good")
    with pytest.raises(UsageError, match="is not a name for a model"):
        register(run, runs, name="a/b")
    (run.folder / "SHA256SUMS").write_text("0" * 64 + "  ../../secret\n")
    with pytest.raises(CheckpointError, match="an invalid SHA256SUMS"):
        register(run, runs, name="good")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run.seal()
    with pytest.raises(EnvironmentFault, match="MLflow does not answer"):
        register(run, runs, name="good")
