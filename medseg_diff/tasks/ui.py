"""`ui`: MLflow's pages on the local store, for this machine only, until Ctrl-C."""

import ipaddress
import os
import signal
import socket
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
from medseg_diff.tracking.store import LOCAL, QUIET, address

START_SECONDS, END_SECONDS, BREATH_SECONDS = 120.0, 10.0, 0.2
PAGE = "#/experiments?workflowType=machine_learning"  # without these words it opens on prompts, of which there are none


def ui(
    runs: Path = Path("runs"),
    *,
    host: str = "127.0.0.1",
    port: int = 5000,
    ready: Callable[[str], None] = lambda link: None,
) -> str:
    """Serve the store below `runs` until interrupted; `ready` is told the link once it answers. Returns the link.

    Where MLFLOW_TRACKING_URI names a server, nothing is started. Raises: UsageError for a host that others could reach
    or where there is no store, EnvironmentFault where the port is taken or the server does not start.
    """
    if not _is_loopback(host):
        raise UsageError(
            f"`{host}` is open to others, and MLflow asks nobody for a password",
            fix="use 127.0.0.1, and from elsewhere a tunnel (ssh -L)",
        )
    store = address(runs)
    if store.startswith("http"):
        link = f"{store.rstrip('/')}/{PAGE}"
        ready(link)
        return link
    if store.startswith(LOCAL) and not Path(store.removeprefix(LOCAL)).is_file():
        raise UsageError(f"no MLflow store below {runs.name}/", fix="train first, or medseg-diff runs sync")
    root = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    _check_free(host, port)
    server = _start(store, host, port)
    try:
        with _ended_like_ctrl_c():
            _wait(server, root)
            ready(f"{root}/{PAGE}")
            server.wait()
    except KeyboardInterrupt:
        log.info("stopped")
    finally:
        _stop(server)
    return f"{root}/{PAGE}"


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
    end = time.monotonic() + START_SECONDS
    no_proxy = urllib.request.ProxyHandler({})  # none knows this machine's loopback
    direct = urllib.request.build_opener(no_proxy)
    while time.monotonic() < end:
        if server.poll() is not None:
            raise EnvironmentFault(f"MLflow ended with code {server.returncode}", fix="see mlflow server --help")
        with suppress(urllib.error.URLError, OSError), direct.open(f"{root}/health", timeout=2):
            return
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
