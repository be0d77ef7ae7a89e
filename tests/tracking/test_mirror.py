"""MLflow is a mirror: whatever happens to it, training goes on, loses seconds at most, and says so once."""

import logging
import socket
import threading
import time

import pytest

from medseg_diff import settings
from medseg_diff.run import create_run
from medseg_diff.tracking import Mirror, mirror, store, system
from medseg_diff.tracking.entry import Entry
from medseg_diff.tracking.names import numbers_of
from medseg_diff.tracking.store import read_ticket

LAST = {"environment.json", "SHA256SUMS", "training.png", "best.safetensors"}  # told of a training that is over


@pytest.fixture
def said(caplog, monkeypatch):
    """What was logged."""
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    with caplog.at_level(logging.WARNING, "medseg_diff"):
        yield caplog


@pytest.fixture
def run(tmp_path):
    """A run folder that no store has heard of."""
    return create_run(tmp_path / "lonely", task="segment", recipe="tiny", settings="a: {b: 1}\n")


def opened(store, run, **more):
    sent = Mirror(store, **more)
    sent.begin(run)
    return sent


def ended(sent, run, finished=True):
    sent.end(run, finished=finished, weights=[run.weights("best")] if run.weights("best").exists() else [])


def id_of(run):
    return read_ticket(run.folder).run_id


def seconds_of_training(store, run, steps=50):
    """How long a training stands still for its mirror."""
    sent = opened(store, run)
    started = time.monotonic()
    for step in range(steps):
        sent.metrics(step, {"loss": 1.0})
    ended(sent, run)
    return time.monotonic() - started


def test_a_store_that_is_not_there_is_said_once_and_stops_nothing(tmp_path, run, monkeypatch, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    seconds_of_training(tmp_path, run, steps=5)
    assert [record.levelname for record in said.records] == ["WARNING"]
    assert "MLflow is not reachable" in said.text and "continuing without it" in said.text
    assert "nonsense" not in said.text and id_of(run) is None  # an address may hold a password


@pytest.fixture
def port():
    """A port of this machine on which nobody listens (yet)."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return closed.getsockname()[1]


def test_a_closed_port_costs_less_than_five_seconds(tmp_path, run, monkeypatch, said, port):
    import mlflow.tracking  # noqa: F401  (its loading is not the store's fault)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    assert seconds_of_training(tmp_path, run) < 5
    assert len(said.records) == 1 and f"later: medseg-diff runs sync {run.name}" in said.text


def test_a_server_that_never_answers_costs_less_than_five_seconds(tmp_path, run, monkeypatch, said):
    import mlflow.tracking  # noqa: F401

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(8)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        assert seconds_of_training(tmp_path, run) < 5
    assert len(said.records) == 1 and "runs sync" in said.text


def test_a_slow_store_does_not_slow_the_training(tmp_path, run, monkeypatch, said):
    answer = threading.Event()
    monkeypatch.setattr(Mirror, "_open", lambda self: answer.wait(30) and None)
    monkeypatch.setattr(mirror, "LOCAL_PATIENCE_SECONDS", 0.1)
    assert seconds_of_training(tmp_path, run, steps=1000) < 5
    assert "MLflow did not answer in time" in said.text
    answer.set()


@pytest.mark.parametrize(("finished", "status"), [(True, "FINISHED"), (False, "FAILED")])
def test_numbers_arrive_and_the_end_is_told(runs, client, make_run, finished, status):
    run = make_run(status)
    sent = opened(runs, run)
    numbers = {"loss": 1.0}
    sent.metrics(10, numbers)
    numbers["loss"] = 99.0  # the caller may go on using its dictionary
    sent.metrics(20, {"loss": 0.5})
    sent.trajectory(run.trajectory("validation", 10))
    ended(sent, run, finished)
    found = client.get_run(id_of(run))
    assert (
        found.info.status == status and found.info.run_name == run.name and found.data.params["training.steps"] == "20"
    )
    assert [(m.step, m.value) for m in client.get_metric_history(id_of(run), "train/loss")] == [(10, 1.0), (20, 0.5)]
    told = {"images", "previews", "recipe.yaml"} | (LAST if finished else set())
    assert {file.path for file in client.list_artifacts(id_of(run))} == told
    assert client.list_artifacts(id_of(run), "images")[0].path.startswith("images/trajectories~validation+step+10+")
    assert [given.dataset.name for given in found.inputs.dataset_inputs] == ["brats/cases"]


def test_a_run_that_goes_on_stays_one_run_and_repeats_nothing(runs, client, make_run):
    run = make_run("resumed")
    first = opened(runs, run)
    for step in (10, 20, 30):
        first.metrics(step, {"loss": float(step)})
    ended(first, run, finished=False)
    there = id_of(run)
    run.note(overrides=["network.width=8"])
    second = opened(runs, run)
    for step in (20, 30, 40):  # from the checkpoint at 10
        second.metrics(step, {"loss": float(step)})
    ended(second, run)
    assert id_of(run) == there
    assert [m.step for m in client.get_metric_history(there, "train/loss")] == [10, 20, 30, 40]
    found = client.get_run(there)
    assert (
        found.info.status == "FINISHED"
        and found.data.params["network.width"] == "8"
        and found.data.params["recipe"] == "tiny"
    )


def test_two_runs_of_one_name_are_two(runs, tmp_path):
    pair = [create_run(tmp_path / name / "same", task="segment", recipe="tiny", settings="a: 1\n") for name in "ab"]
    for run in pair:
        ended(opened(runs, run), run)
    assert id_of(pair[0]) != id_of(pair[1]) and all(map(id_of, pair))


def test_the_runs_of_a_study_hang_below_one(runs, client, make_run):
    children = [make_run(name) for name in ("fold_1", "fold_2")]
    for run in children:
        ended(opened(runs, run, parent="a-study"), run)
    found = [client.get_run(id_of(run)) for run in children]
    above = {run.data.tags["mlflow.parentRunId"] for run in found}
    assert len(above) == 1
    parent = client.get_run(above.pop())
    assert parent.info.run_name == "a-study" and parent.info.status == "FINISHED"


def test_after_the_first_failure_nothing_more_is_sent(runs, client, make_run, monkeypatch, said):
    run, calls = make_run("breaks"), []

    def fails_at_the_third(self, points, **more):
        calls.append(points)
        if len(calls) == 3:
            raise ConnectionError

    monkeypatch.setattr(Entry, "points", fails_at_the_third)
    sent = opened(runs, run)
    for step in range(6):
        sent.metrics(step, {"loss": 1.0})
    ended(sent, run)
    assert len(calls) == 3 and len(said.records) == 1
    assert client.get_run(id_of(run)).info.status == "RUNNING"


def test_a_store_that_came_back_is_told_everything_at_the_end(runs, client, make_run, monkeypatch, said):
    run, honest = make_run("heals"), Entry.points
    monkeypatch.setattr(mirror, "REST_SECONDS", 0.0)

    def fails_once(self, points, **more):
        monkeypatch.setattr(Entry, "points", honest)
        raise ConnectionError

    monkeypatch.setattr(Entry, "points", fails_once)
    sent = opened(runs, run)
    sent.metrics(10, {"loss": 0.1, "val_dice": 0.1})
    ended(sent, run)
    assert [m.step for m in client.get_metric_history(id_of(run), "train/loss")] == [10, 20]  # from metrics.csv
    assert client.get_run(id_of(run)).info.status == "FINISHED"


def test_nothing_names_this_machine_its_user_or_its_paths(runs, client, make_run):
    import getpass
    import json

    run = make_run("private")
    sent = opened(runs, run)
    ended(sent, run)
    told = client.get_run(id_of(run)).data
    text = json.dumps([told.params, told.tags])
    assert str(runs) not in text and socket.gethostname() not in text
    assert getpass.getuser() not in [*told.params.values(), *told.tags.values()]
    assert "mlflow.user" not in told.tags and told.tags["mlflow.source.name"] == "medseg-diff train-seg"


def test_a_damaged_ticket_is_written_anew(make_run):
    run = make_run("ticket")
    for content in ("", "[]", "{}", "not json"):
        (run.folder / "mlflow.json").write_text(content)
        ticket = store.ticket_of(run.folder)
        assert len(ticket.key) == 32 and ticket == store.ticket_of(run.folder) == read_ticket(run.folder)


def test_what_is_sent_is_what_the_folder_holds(runs, client, make_run):
    run = make_run("rounded")
    sent = opened(runs, run)
    sent.metrics(30, {"loss": 1 / 3})
    run.log(30, {"loss": 1 / 3})
    ended(sent, run)
    assert client.get_run(id_of(run)).data.metrics["train/loss"] == 0.333333 == numbers_of(run)["train/loss"]


def test_a_step_that_was_gone_back_to_counts_as_it_was_measured_last(runs, client, make_run):
    run = make_run("back")
    sent = opened(runs, run)
    for step, loss in ((20, 9.0), (10, 0.5), (20, 0.25)):  # the second time with half the learning rate
        sent.metrics(step, {"loss": loss})
    run.metrics_file.unlink()
    run.log(10, {"loss": 0.5})
    run.log(20, {"loss": 0.25})
    ended(sent, run)
    assert client.get_run(id_of(run)).data.metrics["train/loss"] == numbers_of(run)["train/loss"] == 0.25


def test_how_hard_the_machine_works_is_kept_and_sent(runs, client, make_run, monkeypatch):
    monkeypatch.setattr(system, "EVERY_SECONDS", 0.0)
    run = make_run("load")
    sent = opened(runs, run)
    for step in (10, 20):
        sent.metrics(step, {"loss": 1.0})
    ended(sent, run)
    told = client.get_run(id_of(run)).data.metrics
    kept = {point.name: point.value for point in run.numbers(file=run.system_file)}
    assert {name for name in told if name.startswith("system/")} == set(kept)
    assert {"system/cpu_cores_used", "system/process_memory_megabytes", "system/steps_per_second"} <= set(kept)
    assert 20 < kept["system/process_memory_megabytes"] < 1e5 and kept["system/steps_per_second"] > 0
    assert all(told[name] == value for name, value in kept.items())


def test_readings_are_not_taken_more_often_than_they_tell_something():
    load = system.SystemLoad()
    assert load.read(10) and load.read(20) == {}


def test_nested_settings_get_dotted_names():
    assert settings.flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None, "f": {}}) == {"a.b": 1, "a.c.d": [2], "e": None}
