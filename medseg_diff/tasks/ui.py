"""`ui`: MLflow's pages on the local store, for this machine only, until Ctrl-C."""

import ipaddress
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medseg_diff.console import log
from medseg_diff.errors import EnvironmentFault, UsageError
from medseg_diff.run import Run
from medseg_diff.runs import all_runs
from medseg_diff.tracking.local import settle
from medseg_diff.tracking.store import LOCAL, QUIET, address, read_ticket

START_SECONDS, END_SECONDS, BREATH_SECONDS = 120.0, 10.0, 0.2
TRAINING = "?workflowType=machine_learning"  # without these words it opens on prompts, of which there are none
SAYING_SECONDS = 15.0  # between two words on what is waited for
ANSWER_SECONDS = 3.0  # for one question
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this machine's loopback


def ui(
    runs: Path = Path("runs"),
    *,
    host: str = "127.0.0.1",
    port: int = 5000,
    ready: Callable[[str], None] = lambda link: None,
) -> str:
    """Serve the store below `runs` until interrupted; `ready` is told the link, to the experiment of the newest run, once it
    answers. Returns the link.

    Where MLFLOW_TRACKING_URI names a server, nothing is started. Raises: UsageError for a host that others could reach
    or where there is no store, EnvironmentFault where the port is taken or the server does not start.
    """
    if not _is_loopback(host):
        raise UsageError(
            f"`{host}` is open to other machines, and MLflow asks for no password",
            fix="use 127.0.0.1, and from elsewhere a tunnel (ssh -L)",
        )
    store = address(runs)
    if store.startswith("http"):
        link = f"{store.rstrip('/')}/{_page(store.rstrip('/'), runs)}"
        ready(link)
        return link
    if store.startswith(LOCAL) and not Path(store.removeprefix(LOCAL)).is_file():
        raise UsageError(f"no MLflow store under {runs.name}/", fix="train first, or medseg-diff runs sync")
    root = link = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    _check_free(host, port)
    _settle(runs)
    shown = store.removeprefix(LOCAL) if store.startswith(LOCAL) else "MLFLOW_TRACKING_URI"  # which may hold a password
    log.info("starting MLflow on %s and waiting for its first answer: about 20 s", shown)
    server = _start(store, host, port)
    try:
        with _ended_like_ctrl_c():
            _wait(server, root)
            link = f"{root}/{_page(root, runs)}"
            ready(link)
            server.wait()
    except KeyboardInterrupt:
        log.info("stopped")
    finally:
        _stop(server)
    return link


def _settle(runs: Path) -> None:
    """What the pages show of a copied folder of runs lies in the copy."""
    try:
        settle(runs)
    except sqlite3.Error as error:
        log.warning("MLflow will look for pictures and files where the runs were copied from (%s)", error)


def _page(root: str, runs: Path) -> str:
    """The experiment of the newest run that MLflow knows, as far as the server says which; else the list of them."""
    told = {run.folder: ticket for run in all_runs(runs) if (ticket := read_ticket(run.folder)) and ticket.run_id}
    newest = max(told, key=lambda folder: Run(folder).moment("started") or 0.0, default=None)
    if newest is not None:
        question = f"{root}/api/2.0/mlflow/runs/get?run_id={told[newest].run_id}"
        with (
            suppress(OSError, ValueError, KeyError, TypeError),
            DIRECT.open(question, timeout=ANSWER_SECONDS) as answer,
        ):
            return f"#/experiments/{json.load(answer)['run']['info']['experiment_id']}/runs{TRAINING}"
    return f"#/experiments{TRAINING}"


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM must not leave the server behind either."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_free(host: str, port: int) -> None:
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(kind, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise EnvironmentFault(f"port {port} is taken", fix="choose another --port") from None


def _start(store: str, host: str, port: int) -> "subprocess.Popen[bytes]":
    """One worker without background jobs: half the memory and half the time to start."""
    words = ["server", "--backend-store-uri", store, "--host", host, "--port", str(port), "--workers", "1"]
    quiet = QUIET | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # A session of its own: Ctrl-C reaches us alone, and we end the whole of it.
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words],
        env=os.environ | quiet,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait(server: "subprocess.Popen[bytes]", root: str) -> None:
    began = said = time.monotonic()
    while (now := time.monotonic()) < began + START_SECONDS:
        if server.poll() is not None:
            raise EnvironmentFault(f"MLflow ended with code {server.returncode}", fix="see mlflow server --help")
        with suppress(urllib.error.URLError, OSError), DIRECT.open(f"{root}/health", timeout=ANSWER_SECONDS):
            return
        if now > said + SAYING_SECONDS:
            said = now
            log.info("still waiting for MLflow at %s after %.0f s", root, now - began)
        time.sleep(BREATH_SECONDS)
    raise EnvironmentFault(f"MLflow did not start within {START_SECONDS:.0f} s", fix="try again")


def _stop(server: "subprocess.Popen[bytes]") -> None:
    """End the server and its workers."""
    for word in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, word)
        with suppress(subprocess.TimeoutExpired):
            server.wait(END_SECONDS)
            return
