"""`ui` serves the local store to this machine only, and leaves nothing behind."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from medseg_diff.errors import EnvironmentFault, UsageError
from medseg_diff.run import create_run
from medseg_diff.tasks import ui as ui_module
from medseg_diff.tasks.ui import ui
from medseg_diff.tracking.store import Ticket, make_client, write_ticket


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org", ""])
def test_a_host_that_others_can_reach_is_refused(tmp_path, host):
    with pytest.raises(UsageError, match=r"is open to other machines.* Fix: use 127.0.0.1"):
        ui(tmp_path, host=host)


def test_without_a_store_there_is_nothing_to_show(tmp_path):
    with pytest.raises(UsageError, match="no MLflow store under"):
        ui(tmp_path)


def test_a_port_in_use_is_said(tmp_path):
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EnvironmentFault, match=r"is taken. Fix: choose another --port"):
            ui(tmp_path, port=taken.getsockname()[1])


def test_a_server_of_someone_else_is_linked_to(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001/")
    links = []
    assert (
        ui(tmp_path, ready=links.append)
        == links[0]
        == "http://127.0.0.1:5001/#/experiments?workflowType=machine_learning"
    )


def known_run(runs, name, started, run_id):
    run = create_run(runs / name, task="segment", recipe="tiny", settings="task: segment\n", facts={"started": started})
    write_ticket(run.folder, Ticket("key", run_id))


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.timeout(60)
def test_it_says_what_it_waits_for_and_opens_the_experiment_of_the_newest_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    monkeypatch.setattr(ui_module, "SAYING_SECONDS", 0.0)
    (tmp_path / "mlflow.db").touch()
    known_run(tmp_path, "old", 1.0, "a" * 32)
    known_run(tmp_path, "new", 2.0, "b" * 32)
    create_run(tmp_path / "untold", task="segment", recipe="tiny", settings="", facts={"started": 3.0})
    links, port = [], free_port()

    def ready(link):
        links.append(link)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    def stand_in(store, host, port):
        return subprocess.Popen([sys.executable, "-c", STAND_IN, str(port)], start_new_session=True)

    monkeypatch.setattr(ui_module, "_start", stand_in)
    with caplog.at_level(logging.INFO, "medseg_diff"):
        link = ui(tmp_path, port=port, ready=ready)
    assert links == [link] == [f"http://127.0.0.1:{port}/#/experiments/7/runs?workflowType=machine_learning"]
    assert f"starting MLflow on {tmp_path / 'mlflow.db'} and waiting" in caplog.text
    assert f"still waiting for MLflow at http://127.0.0.1:{port}" in caplog.text


def test_the_address_of_a_store_with_a_password_is_not_shown(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@127.0.0.1/mlflow")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with caplog.at_level(logging.INFO, "medseg_diff"), pytest.raises(EnvironmentFault):
        ui(tmp_path, port=free_port())
    assert "starting MLflow on MLFLOW_TRACKING_URI" in caplog.text and "secret" not in caplog.text


def test_a_server_that_does_not_start_is_said(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EnvironmentFault, match="MLflow ended with code 1"):
        ui(tmp_path, port=free_port())


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


STAND_IN = """
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path.endswith("runs/get?run_id=" + "b" * 32)
        answer = '{"run": {"info": {"experiment_id": "7"}}}' if known else self.path
        self.send_response(200); self.end_headers(); self.wfile.write(answer.encode())
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
"""


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_server_too(tmp_path, monkeypatch, word):
    (tmp_path / "mlflow.db").touch()
    port, started = free_port(), []

    def stand_in(store, host, port):
        started.append(subprocess.Popen([sys.executable, "-c", STAND_IN, str(port)], start_new_session=True))
        return started[0]

    def ready(link):
        with urllib.request.urlopen(link, timeout=5) as answer:
            assert answer.read() == b"/"
        os.kill(os.getpid(), word)
        time.sleep(5)

    monkeypatch.setattr(ui_module, "_start", stand_in)
    ui(tmp_path, port=port, ready=ready)
    assert started[0].poll() == -signal.SIGTERM


@pytest.mark.soak  # half a minute of MLflow's own start
def test_mlflow_serves_the_page_until_it_is_interrupted(tmp_path):
    make_client(tmp_path / "runs").search_experiments()
    port = free_port()
    words = [sys.executable, "-m", "medseg_diff", "ui", "--port", str(port)]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        link = process.stdout.readline().strip()
        assert link == f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"
        with urllib.request.urlopen(link, timeout=20) as answer:
            assert answer.status == 200 and b"<html" in answer.read().lower()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.1)
    pytest.fail("the server outlived its command")
