"""MLflow is a mirror: whatever happens to it, training goes on, loses seconds at most, and says so once."""

import logging
import socket
import threading
import time

import pytest

from medseg_diff.tracking import Mirror, mirror, store, strip_path
from medseg_diff.tracking.store import Entry, read_ticket


@pytest.fixture
def said(caplog, monkeypatch):
    """What was logged."""
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    with caplog.at_level(logging.WARNING, "medseg_diff"):
        yield caplog


def opened(runs, **more):
    words = {"experiment": "segment", "name": "run", "parameters": {"a": {"b": 1}}, "tags": {"recipe": "tiny"}}
    return Mirror(runs, **(words | more))


def seconds_of_training(sent, steps=50):
    """How long a training stands still for its mirror."""
    started = time.monotonic()
    for step in range(steps):
        sent.metrics(step, {"loss": 1.0})
    sent.close(finished=True)
    return time.monotonic() - started


def test_a_store_that_is_not_there_is_said_once_and_stops_nothing(tmp_path, monkeypatch, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    sent = opened(tmp_path)
    for step in range(5):
        sent.metrics(step, {"loss": 1.0})
    sent.file(tmp_path / "gone.txt")
    sent.close(finished=True)
    assert [record.levelname for record in said.records] == ["WARNING"]
    assert "MLflow is not reachable" in said.text and "going on without it" in said.text
    assert "nonsense" not in said.text and sent.run_id is None  # an address may hold a password


@pytest.fixture
def port():
    """A port of this machine on which nobody listens (yet)."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return closed.getsockname()[1]


def test_a_closed_port_costs_less_than_five_seconds(tmp_path, make_run, monkeypatch, said, port):
    import mlflow.tracking  # noqa: F401  (its loading is not the store's fault)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    run = make_run("down")
    assert seconds_of_training(opened(tmp_path, name=run.name, folder=run.folder)) < 5
    assert len(said.records) == 1 and f"later: medseg-diff runs sync {run.name}" in said.text


def test_a_server_that_never_answers_costs_less_than_five_seconds(tmp_path, make_run, monkeypatch, said):
    import mlflow.tracking  # noqa: F401

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(8)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        run = make_run("deaf")
        assert seconds_of_training(opened(tmp_path, name=run.name, folder=run.folder)) < 5
    assert len(said.records) == 1 and "runs sync" in said.text


def test_a_slow_store_does_not_slow_the_training(tmp_path, monkeypatch, said):
    answer = threading.Event()
    monkeypatch.setattr(Mirror, "_open", lambda self, *rest: answer.wait(30) and None)
    monkeypatch.setattr(mirror, "LOCAL_PATIENCE_SECONDS", 0.1)
    assert seconds_of_training(opened(tmp_path), steps=1000) < 5
    assert "MLflow did not answer in time" in said.text
    answer.set()


@pytest.mark.parametrize(("finished", "status"), [(True, "FINISHED"), (False, "FAILED")])
def test_numbers_arrive_and_the_end_is_told(runs, client, make_run, finished, status):
    run = make_run(status)
    sent = opened(runs, name=run.name, folder=run.folder)
    numbers = {"loss": 1.0}
    sent.metrics(10, numbers)
    numbers["loss"] = 99.0  # the caller may go on using its dictionary
    sent.metrics(20, {"loss": 0.5})
    sent.dataset("cases.csv", "0123456789abcdef")
    sent.file(run.recipe_file)
    sent.strip(strip_path(run, "validation", 10))
    sent.close(finished=finished)
    found = client.get_run(sent.run_id)
    assert read_ticket(run.folder).run_id == sent.run_id
    assert found.info.status == status and found.info.run_name == run.name and found.data.params == {"a.b": "1"}
    assert [(m.step, m.value) for m in client.get_metric_history(sent.run_id, "loss")] == [(10, 1.0), (20, 0.5)]
    assert {file.path for file in client.list_artifacts(sent.run_id)} == {"images", "recipe.yaml"}
    assert client.list_artifacts(sent.run_id, "images")[0].path.startswith("images/strips~validation+step+10+")
    assert [given.dataset.name for given in found.inputs.dataset_inputs] == ["cases.csv"]


def test_a_run_that_goes_on_stays_one_run_and_repeats_nothing(runs, client, make_run):
    run = make_run("resumed")
    first = opened(runs, name=run.name, folder=run.folder)
    for step in (10, 20, 30):
        first.metrics(step, {"loss": float(step)})
    first.close(finished=False)
    second = opened(runs, name=run.name, folder=run.folder, parameters={"a": {"b": 1}, "c": 2})
    for step in (20, 30, 40):  # from the checkpoint at 10
        second.metrics(step, {"loss": float(step)})
    second.close(finished=True)
    assert second.run_id == first.run_id
    assert [m.step for m in client.get_metric_history(first.run_id, "loss")] == [10, 20, 30, 40]
    found = client.get_run(first.run_id)
    assert found.info.status == "FINISHED" and found.data.params == {"a.b": "1", "c": "2"}
    third = opened(runs, run_id=first.run_id)  # named, without the folder
    third.metrics(50, {"loss": 0.0})
    third.close(finished=True)
    assert third.run_id == first.run_id and len(client.get_metric_history(first.run_id, "loss")) == 5


def test_two_runs_of_one_name_are_two(runs):
    pair = [opened(runs, name="same") for _ in range(2)]
    for sent in pair:
        sent.close(finished=True)
    assert pair[0].run_id != pair[1].run_id and all(sent.run_id for sent in pair)


def test_the_runs_of_a_study_hang_below_one(runs, client, make_run):
    children = [make_run(name) for name in ("fold_1", "fold_2")]
    for run in children:
        opened(runs, name=run.name, folder=run.folder, parent="a-study").close(finished=True)
    found = [client.get_run(read_ticket(run.folder).run_id) for run in children]
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
    sent = opened(runs, name=run.name, folder=run.folder)
    for step in range(6):
        sent.metrics(step, {"loss": 1.0})
    sent.close(finished=True)
    assert len(calls) == 3 and len(said.records) == 1
    assert client.get_run(sent.run_id).info.status == "RUNNING"


def test_a_store_that_came_back_is_told_everything_at_the_end(runs, client, make_run, monkeypatch, said):
    run, honest = make_run("heals"), Entry.points
    monkeypatch.setattr(mirror, "REST_SECONDS", 0.0)

    def fails_once(self, points, **more):
        monkeypatch.setattr(Entry, "points", honest)
        raise ConnectionError

    monkeypatch.setattr(Entry, "points", fails_once)
    sent = opened(runs, name=run.name, folder=run.folder)
    sent.metrics(10, {"loss": 0.1, "val_dice": 0.1})
    sent.close(finished=True)
    assert [m.step for m in client.get_metric_history(sent.run_id, "loss")] == [10, 20]  # from metrics.csv
    assert client.get_run(sent.run_id).info.status == "FINISHED"


def test_nothing_names_this_machine_its_user_or_its_paths(runs, client, make_run):
    import getpass
    import json

    run = make_run("private")
    sent = opened(runs, name=run.name, folder=run.folder)
    sent.close(finished=True)
    told = client.get_run(sent.run_id).data
    text = json.dumps([told.params, told.tags])
    assert str(runs) not in text and socket.gethostname() not in text and "/" not in text
    assert getpass.getuser() not in [*told.params.values(), *told.tags.values()]
    assert "mlflow.user" not in told.tags and "mlflow.source.name" not in told.tags


def test_a_damaged_ticket_is_written_anew(make_run):
    run = make_run("ticket")
    for content in ("", "[]", "{}", "not json"):
        (run.folder / "mlflow.json").write_text(content)
        ticket = store.ticket_of(run.folder)
        assert len(ticket.key) == 32 and ticket == store.ticket_of(run.folder) == read_ticket(run.folder)


def test_nested_settings_get_dotted_names():
    assert store.flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None, "f": {}}) == {"a.b": 1, "a.c.d": [2], "e": None}
