"""A folder belongs to one process at a time; a process that is gone holds nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medseg_diff.errors import EnvironmentFault
from medseg_diff.locking import LOCK, locked

HOLD = """
import os, sys, time
from pathlib import Path
from medseg_diff.locking import locked
with locked(Path(sys.argv[1])):
    worker = os.fork()  # as a loader's: it outlives its parent for a while
    if worker == 0:
        os.close(0), os.close(1)
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print(worker, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds `tmp_path/run`, and the number of its worker."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run"), "60"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    os.kill(worker, signal.SIGKILL)


def test_a_second_process_is_told_by_whom_and_only_that(tmp_path, other):
    told = f"^run: process {other.pid} is working in it"
    with pytest.raises(EnvironmentFault, match=told) as caught, locked(tmp_path / "run"):
        raise AssertionError("not reached")
    assert caught.value.exit_code == 5 and str(tmp_path) not in caught.value.line


def test_the_lock_of_a_killed_process_never_blocks_though_its_worker_lives(tmp_path, other):
    other.kill()
    other.wait()
    assert (tmp_path / "run" / LOCK).read_text() == str(other.pid)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).read_text() == str(os.getpid())


def test_it_is_let_go_at_the_end_and_nothing_is_left(tmp_path, other):
    other.communicate("\n", timeout=30)
    for _ in range(2):
        with locked(tmp_path / "run"):
            pass
    assert list((tmp_path / "run").iterdir()) == []


TAKE = """
import sys
from pathlib import Path
from medseg_diff.locking import locked
locked(Path(sys.argv[1])).__enter__()
"""


def test_one_process_does_not_hold_a_folder_twice(tmp_path):
    told = f"a: process {os.getpid()} is working in it"
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        with pytest.raises(EnvironmentFault, match=told), locked(tmp_path / "a"):
            raise AssertionError("not reached")
        done = subprocess.run([sys.executable, "-c", TAKE, str(tmp_path / "a")], capture_output=True, text=True)
        assert told in done.stderr  # the refusal let nothing go


def test_a_folder_that_cannot_be_made_is_the_environments_fault(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(EnvironmentFault, match="cannot be written") as caught, locked(folder):
            raise AssertionError("not reached")
        assert str(tmp_path) not in caught.value.line
