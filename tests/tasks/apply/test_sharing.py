"""Cases shared among workers: the bytes of one process, also where a worker is killed in the middle of a case."""

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch

from medseg_diff import cli, cluster
from medseg_diff.console import log
from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import EnvironmentFault, ImageError, MedsegError
from medseg_diff.tasks.apply import folder as folder_module
from medseg_diff.tasks.apply import sharing
from medseg_diff.tasks.apply.anomaly import anomaly
from medseg_diff.tasks.apply.case_folder import Identity
from medseg_diff.tasks.apply.folder import Results, Todo
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.evaluate import evaluate
from tests.works import WhileSampling

SHARED = {"cluster": "ray", "workers": 2}


@pytest.fixture(scope="module")
def table(phantoms, tmp_path_factory):
    """Four of the phantoms, in a table of their own."""
    with phantoms.open(newline="") as file:
        rows = list(csv.DictReader(file))[:4]
    path = tmp_path_factory.mktemp("four") / "cases.csv"
    for row in rows:
        row |= {name: phantoms.parent / cell for name, cell in row.items() if cell.endswith(".nii.gz")}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return {"data": path, "data_root": phantoms.parent}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Here and in the workers: bytes are those of one number of threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, "medseg_diff")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture(params=["here", pytest.param("ray", marks=pytest.mark.soak)])
def shared_out(request, monkeypatch):
    """The options of a shared call, its workers stood for by this process, or real ones."""
    if request.param == "ray":
        request.getfixturevalue("ray_of_two")
    else:
        monkeypatch.setattr(sharing, "shared", one_worker)
        monkeypatch.setattr(cluster, "shared", one_worker)
    return SHARED


def one_worker(opened, pieces, _):
    """As `cluster.shared`, in this process, the last piece first."""
    work = opened()
    for piece in reversed(pieces):
        try:
            answer = work(piece, 0)
        except MedsegError as error:
            answer = error
        yield piece, answer


def contents(out):
    """{relative name: bytes} of every file, hidden ones too; of case.json without the seconds that it took."""
    found = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() if path.suffix != ".json" else {**json.loads(path.read_text()), "seconds": None}
        for name, path in found.items()
    }


def kill_whoever_claims_first(out, killed, over):
    """SIGKILL to the first process that is in the middle of a case; a busy machine takes minutes to start one."""
    while not killed and not over.is_set():
        for place in out.glob(".*.phantom_*"):
            killed.append(int(place.name.split(".")[1]))
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.005)


def test_a_worker_killed_in_the_middle_of_a_case_changes_no_byte(ray_of_two, table, trained, tmp_path, said):
    options = {**table, "model": trained.folder, "device": "cpu"}
    segment(out=tmp_path / "plain", **options)
    killed, over = [], threading.Event()
    watcher = threading.Thread(target=kill_whoever_claims_first, args=(tmp_path / "out", killed, over))
    watcher.start()
    try:
        written = segment(out=tmp_path / "out", **options, **SHARED)
    finally:
        over.set()
        watcher.join()
    assert killed and killed[0] != os.getpid()
    assert [line for line in said() if line.startswith("a worker was lost while working on phantom_")]
    assert len(written) == 4 and contents(tmp_path / "out") == contents(tmp_path / "plain")
    said_of_volumes = [line for line in said() if "whole_tumour" in line and line.startswith("[phantom_")]
    assert sorted(said_of_volumes[:4]) == sorted(said_of_volumes[4:])  # the plain call's, and the workers'

    plain = evaluate(tmp_path / "plain", **table, figure=False, mlflow=False)
    assert evaluate(tmp_path / "out", **table, figure=False, mlflow=False, **SHARED) == plain
    for name in ("metrics.json", "per_case.csv", "per_slice.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_two_processes_at_once_each_with_a_shard_write_the_bytes_of_one(table, trained, tmp_path):
    options = {**table, "model": trained.folder, "device": "cpu"}
    segment(out=tmp_path / "plain", **options)
    words = ["segment", "--data", table["data"], "--data-root", table["data_root"], "--model", trained.folder]
    words += ["--device", "cpu", "--out", tmp_path / "out", "-q"]
    started = [
        subprocess.Popen([sys.executable, "-m", "medseg_diff", *map(str, words), "--shard", f"{number}/2"])
        for number in (1, 2)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    assert contents(tmp_path / "out") == contents(tmp_path / "plain") != {}


def test_anomaly_and_its_evaluation_give_the_same_bytes(shared_out, table, untrained_anomaly, tmp_path):
    options = {**table, "model": untrained_anomaly.folder, "device": "cpu", "threshold": 0.5, "shard": (1, 2)}
    anomaly(out=tmp_path / "plain", **options)
    anomaly(out=tmp_path / "out", **options, **shared_out)
    for name, shared in (("plain", {}), ("out", shared_out)):
        data = {**table, "data": half(table["data"])}
        evaluate(tmp_path / name, **data, figure=False, mlflow=False, **shared)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def half(path):
    """Every second case of a table."""
    lines = path.read_text().splitlines()
    other = path.with_name("half.csv")
    other.write_text("\n".join([lines[0], *lines[1::2]]) + "\n")
    return other


def test_bad_cases_are_listed_or_end_the_call_with_their_own_error(shared_out, phantoms, trained, tmp_path):
    lines = phantoms.read_text().splitlines()[:4]
    for line in lines[1:]:
        shutil.copytree(phantoms.parent / line.split(",")[0], tmp_path / "in" / line.split(",")[0])
    (tmp_path / "in" / "cases.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "in" / "phantom_0000" / "flair.nii.gz").write_bytes(b"no image")
    options = {"data": tmp_path / "in" / "cases.csv", "model": trained.folder, "device": "cpu"}
    options |= {"members": 1, "steps": 1, **shared_out}
    with pytest.raises(ImageError, match=r"\[phantom_0000/flair\]"):
        segment(out=tmp_path / "out", **options)
    assert not list((tmp_path / "out").glob(".*"))  # nor is a claim left, of those who worked on the others
    with pytest.raises(ImageError, match=r"\[phantom_0000/flair\]"):
        segment(out=tmp_path / "out", **options, keep_going=True)
    failures = (tmp_path / "out" / "failures.csv").read_text().splitlines()
    assert len(failures) == 2 and failures[1].startswith("phantom_0000,ImageError,3,")
    assert sorted(path.parent.name for path in tmp_path.glob("out/*/case.json")) == ["phantom_0001", "phantom_0002"]


@pytest.mark.soak
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_whoever_is_interrupted_ends_the_workers_and_leaves_nothing_half_done(table, trained, tmp_path, number, code):
    pytest.importorskip("ray")
    words = ["segment", "--data", table["data"], "--data-root", table["data_root"], "--model", trained.folder]
    words += ["--out", tmp_path / "out", "--members", 40, "--cluster", "ray", "--workers", 2]
    command = [sys.executable, "-m", "medseg_diff", *map(str, words)]
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, preexec_fn=heard, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (begun := list((tmp_path / "out").glob(".*.phantom_*"))):
        time.sleep(0.05)
    worker = int(begun[0].name.split(".")[1])
    process.send_signal(number)
    assert process.wait(60) == code
    assert [path.name for path in (tmp_path / "out").glob(".*")] == []
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


HOLD = """
import sys, time
from pathlib import Path
from medseg_diff.locking import claimed
with claimed(Path(sys.argv[1])) as ours:
    print(ours, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def held(path, seconds):
    """Another process that holds a claim for so long, as a disk does for a machine that is gone."""
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def test_the_claim_of_a_lost_worker_is_waited_for_and_not_for_ever(tmp_path, monkeypatch, phantoms):
    todo = Todo(Case("a", patient="a", images={"t1": phantoms.parent / "phantom_0000" / "t1.nii.gz"}), None)
    results, done = Results(tmp_path / "out", "segment", Identity({})), []

    def work(case, new):
        done.append(case.name)
        return {"inputs": {}, "channels": ["t1"]}

    process = held(tmp_path / "out" / ".claim_a", 3)
    assert results.do(todo, WhileSampling(work)) is False and done == []  # of a process that lives
    assert results.do(todo, WhileSampling(work), lost=1) is True and done == ["a"]
    process.wait()
    process = held(tmp_path / "out" / ".claim_a", 60)
    monkeypatch.setattr(folder_module, "LEASE_SECONDS", 0.5)
    with pytest.raises(EnvironmentFault, match=r"\[a\] is still claimed by another process, perhaps one that was lost"):
        results.do(todo, WhileSampling(work), lost=1)
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--workers", "2"], "--workers needs a cluster"),
        (["--cluster", "dask"], "'dask' is not one of"),
        (["--cluster", "ray", "--device", "cuda:1"], "--device cuda:1 is one GPU for all workers"),
    ],
)
def test_words_that_do_not_go_together(monkeypatch, capsys, words, found):
    monkeypatch.setattr(sys, "argv", ["medseg-diff", "segment", "--volume", "x", "--out", "y", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and found in capsys.readouterr().err


def test_a_sweep_is_not_shared(monkeypatch, capsys):
    words = ["anomaly", "--volume", "x", "--out", "y", "--sweep", "--cluster", "ray"]
    monkeypatch.setattr(sys, "argv", ["medseg-diff", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "--cluster: --sweep writes no maps" in capsys.readouterr().err
