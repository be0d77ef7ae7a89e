"""An MLflow server that is killed while a training tells it its numbers: seconds are lost, and later nothing is missing."""

import logging
import os
import signal
import socket
import time

import pytest

from medseg_diff.run import create_run
from medseg_diff.tasks import ui
from medseg_diff.tracking import Mirror
from medseg_diff.tracking.store import make_client, read_ticket
from medseg_diff.tracking.sync import complete

RECIPE = "task: segment\nchannels: [t1]\n"
STEPS, KILLED_AT = 40, 10


@pytest.fixture
def server(tmp_path, monkeypatch):
    """start() a real server on a port and a store of its own, kill() it with all its workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []

    class Server:
        root = f"http://127.0.0.1:{port}"

        def start(self):
            started.append(ui._start(f"sqlite:///{tmp_path / 'mlflow.db'}", "127.0.0.1", port))
            ui._wait(started[-1], self.root)

        def kill(self):
            os.killpg(started[-1].pid, signal.SIGKILL)
            started[-1].wait()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Server.root)
    yield Server()
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_server_killed_at_step_10_costs_seconds_and_is_told_the_rest_later(server, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    server.start()
    run = create_run(tmp_path / "runs" / "one", task="segment", recipe="tiny", settings=RECIPE)
    sent = Mirror(tmp_path)
    sent.begin(run)
    stood_still = 0.0
    for step in range(1, STEPS + 1):
        run.log(step, {"loss": 1 / step})
        began = time.monotonic()
        sent.metrics(step, {"loss": 1 / step})
        stood_still += time.monotonic() - began
        if step == KILLED_AT:
            arrived = until_arrived(run, step)
            server.kill()
    run.seal()
    run.note(finished=True, ended=1.0)
    began = time.monotonic()
    sent.end(run, finished=True, weights=[])
    stood_still += time.monotonic() - began
    assert stood_still < 5 and arrived == list(range(1, KILLED_AT + 1))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and f"medseg-diff runs sync {run.name}" in warnings[0]
    server.start()
    done = complete(run, tmp_path)
    assert done.run_id == read_ticket(run.folder).run_id and done.numbers == STEPS - KILLED_AT
    assert steps_of(done.run_id) == list(range(1, STEPS + 1))
    assert make_client(tmp_path).get_run(done.run_id).info.status == "FINISHED"
    assert complete(run, tmp_path).numbers == 0 and steps_of(done.run_id) == list(range(1, STEPS + 1))


def until_arrived(run, last):
    """Wait until the server knows the numbers up to a step; the steps that it knows."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (id_ := read_ticket(run.folder).run_id) and (found := steps_of(id_)) and found[-1] == last:
            return found
        time.sleep(0.1)
    raise AssertionError("nothing arrived")


def steps_of(run_id):
    return [metric.step for metric in make_client(None).get_metric_history(run_id, "train/loss")]
