"""MLflow is a mirror: whatever happens to it, training goes on, and says so once. (tests/stories holds a real one.)"""

import logging
import threading
import time

import pytest

from medseg_diff import tracking
from medseg_diff.tracking import Mirror, flat


@pytest.fixture
def said(caplog, monkeypatch):
    """What was logged."""
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    with caplog.at_level(logging.WARNING, "medseg_diff"):
        yield caplog


def mirror(tmp_path):
    return Mirror(tmp_path, experiment="segment", name="run", parameters={"a": {"b": 1}}, tags={})


def test_a_store_that_is_not_there_is_said_once_and_stops_nothing(tmp_path, monkeypatch, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    sent = mirror(tmp_path)
    for step in range(5):
        sent.metrics(step, {"loss": 1.0})
    sent.file(tmp_path / "gone.txt")
    sent.close(finished=True)
    assert [record.levelname for record in said.records] == ["WARNING"]
    assert "MLflow is not reachable" in said.text and "going on without it" in said.text
    assert "nonsense" not in said.text  # an address may hold a password


def test_a_slow_store_does_not_slow_the_training(tmp_path, monkeypatch, said):
    answer = threading.Event()
    monkeypatch.setattr(Mirror, "_open", lambda self, *rest: answer.wait(30) and None)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.1)
    started = time.monotonic()
    sent = mirror(tmp_path)
    for step in range(1000):
        sent.metrics(step, {"loss": 1.0})
    sent.close(finished=True)
    assert time.monotonic() - started < 5
    assert "MLflow did not answer in time" in said.text
    answer.set()


class Client:
    """Stands for MLflow's; remembers, and fails at the third batch."""

    def __init__(self):
        self.batches, self.ended = [], []

    def log_batch(self, run, metrics):
        if len(self.batches) == 2:
            raise ConnectionError
        self.batches.append({metric.key: (metric.value, metric.step) for metric in metrics})

    def set_terminated(self, run, status):
        self.ended.append(status)


@pytest.mark.parametrize(("finished", "status"), [(True, "FINISHED"), (False, "FAILED")])
def test_numbers_arrive_in_order_and_the_end_is_told(tmp_path, monkeypatch, finished, status):
    client = Client()
    monkeypatch.setattr(Mirror, "_open", lambda self, *rest: setattr(self, "_client", client))
    sent = mirror(tmp_path)
    numbers = {"loss": 1.0}
    sent.metrics(10, numbers)
    numbers["loss"] = 99.0  # the caller may go on using its dictionary
    sent.metrics(20, {"loss": 0.5})
    sent.close(finished=finished)
    assert client.batches == [{"loss": (1.0, 10)}, {"loss": (0.5, 20)}] and client.ended == [status]


def test_after_the_first_failure_nothing_more_is_sent(tmp_path, monkeypatch, said):
    client = Client()
    monkeypatch.setattr(Mirror, "_open", lambda self, *rest: setattr(self, "_client", client))
    sent = mirror(tmp_path)
    for step in range(6):
        sent.metrics(step, {"loss": 1.0})
    sent.close(finished=True)
    assert len(client.batches) == 2 and client.ended == [] and len(said.records) == 1


def test_nested_settings_get_dotted_names():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None, "f": {}}) == {"a.b": 1, "a.c.d": [2], "e": None}
