"""Many cases in one folder: bad ones are passed over and listed, no case is written twice, the disk is tried first."""

import csv
import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from medseg_diff import files
from medseg_diff.data.digests import read_inputs
from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import EnvironmentFault, ImageError, ManifestError, MedsegError, Problems
from medseg_diff.locking import claimed
from medseg_diff.tasks.apply import case_folder
from medseg_diff.tasks.apply import folder as cases_module
from medseg_diff.tasks.apply import segment as verb
from medseg_diff.tasks.apply.case_folder import Identity
from medseg_diff.tasks.apply.failures import Failures, in_words
from medseg_diff.tasks.apply.folder import Results
from medseg_diff.tasks.apply.segment import segment
from tests.works import WhileSampling

BAD, GOOD = "phantom_0000", "phantom_0001"
SEED_0 = {"seed": 0, "channels": [], "inputs": {}}  # what a case without any image tells


def results_in(out, **options):
    return Results(out, "segment", Identity({"seed": 0}), **options)


def done_by_another(out, name):
    shutil.rmtree(out / name, ignore_errors=True)
    case_folder.tell(out / name, Case(name, patient=name), name, None, SEED_0)


@pytest.fixture
def spoilt(two_cases, tmp_path):
    """The table of the two cases, the first of which has a channel that is cut short."""
    folder = shutil.copytree(two_cases.parent, tmp_path / "in")
    path = folder / BAD / "flair.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    return folder / two_cases.name


@pytest.fixture
def stub(monkeypatch):
    """Cases are read as ever, but sampled in no time; returns the names in the order of their sampling."""
    done = []

    def read(self, case):
        _, inputs = read_inputs(case, case.channels)
        return case.name, {"channels": list(case.channels), "inputs": inputs, **self.system.facts}

    def sample(self, read, new):
        done.append(read[0])
        return read[1]

    for name, step in {"read": read, "sample": sample, "write": lambda self, facts, new: self.noted | facts}.items():
        monkeypatch.setattr(verb.Segmenting, name, step)
    return done


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def children(*works):
    """Each work in a process of its own, all at once → how they ended."""
    started = []
    for work in works:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            except MedsegError as error:
                code = int(error.exit_code)
            finally:
                os._exit(code)
        started.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]


def test_keep_going_lists_the_bad_case_and_exits_3(call, shaken, spoilt, tmp_path):
    out = tmp_path / "out"
    words = ("--data", spoilt, "--model", shaken, "--out", out, "--keep-going", "--device", "cpu", "--members", 1)
    code, _, told = call("segment", *words)
    assert code == 3 and "Traceback" not in told and "1 of 2 cases failed" in told
    (row,) = rows_of(out / "failures.csv")
    assert (row["case"], row["error"], row["exit_code"]) == (BAD, "ImageError", "3")
    assert f"[{BAD}/flair] flair.nii.gz: " in row["message"] and "Fix: " in row["message"]
    assert str(tmp_path) not in (out / "failures.csv").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["failures.csv", GOOD, "summary.csv"]
    good = (out / GOOD / "case.json").stat().st_mtime_ns
    assert call("segment", *words)[0] == 3 and len(rows_of(out / "failures.csv")) == 1
    shutil.copy(spoilt.parent / BAD / "t2.nii.gz", spoilt.parent / BAD / "flair.nii.gz")
    assert call("segment", *words)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == [BAD, GOOD, "summary.csv"]
    assert (out / GOOD / "case.json").stat().st_mtime_ns == good


def test_anomaly_lists_it_too(call, untrained_anomaly, tmp_path):
    source = untrained_anomaly.table.parent
    rows = rows_of(untrained_anomaly.table)[:1]
    (tmp_path / "in" / rows[0]["case"]).mkdir(parents=True)
    for name in ("t2", "flair"):
        rows[0][name] = f"{rows[0]['case']}/{name}.nii.gz"
        shutil.copy(source / rows[0][name], tmp_path / "in" / rows[0][name])
    (tmp_path / "in" / rows[0]["t2"]).write_bytes(b"")
    (tmp_path / "in/cases.csv").write_text(f"case,t2,flair\n{rows[0]['case']},{rows[0]['t2']},{rows[0]['flair']}\n")
    words = ("--data", tmp_path / "in/cases.csv", "--model", untrained_anomaly.folder, "--device", "cpu")
    code, _, told = call("anomaly", *words, "--out", tmp_path / "out", "--keep-going")
    assert code == 3 and "Traceback" not in told
    assert rows_of(tmp_path / "out/failures.csv")[0]["exit_code"] == "3"


def test_a_fault_of_the_machine_ends_the_batch(shaken, two_cases, tmp_path, stub, monkeypatch):
    def full(path, data):
        raise EnvironmentFault("cannot be written (No space left on device)")

    monkeypatch.setattr(case_folder, "write_json", full)
    with pytest.raises(EnvironmentFault):
        segment(data=two_cases, out=tmp_path / "out", model=shaken, device="cpu", keep_going=True)
    assert stub[0] == BAD and not (tmp_path / "out").exists()  # the other one may have been sampled meanwhile


@pytest.mark.parametrize("step", ["read", "sample", "write"])
def test_a_bug_is_no_bad_case(shaken, two_cases, tmp_path, monkeypatch, step):
    monkeypatch.setattr(verb.Segmenting, step, lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        segment(data=two_cases, out=tmp_path / "out", model=shaken, device="cpu", keep_going=True)


def test_what_is_listed_does_nothing_to_a_spreadsheet_or_a_screen(tmp_path):
    failures = Failures(tmp_path)
    case = Case("-2+3", patient="-2+3")
    error = ImageError("=cmd|' /C calc'!A0 \x1b[2J, from /export/someone/secret/a.nii", fix="no\nfix")
    failures.note(case.name, error, in_words(error, case, case.name))
    failures.note("plain", ManifestError('a, "b"'), "@sum")
    text = (tmp_path / "failures.csv").read_text()
    cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert "\x1b" not in text and "someone" not in text and len(text.splitlines()) == 3
    failures.forget(case.name)
    assert [row["case"] for row in rows_of(tmp_path / "failures.csv")] == ["plain"]
    failures.forget("plain")
    assert list(tmp_path.iterdir()) == []


def test_several_processes_keep_one_list(tmp_path):
    def note(number):
        for round_ in range(5):
            Failures(tmp_path).note(f"case_{number}_{round_}", ImageError("bad"), "bad")

    assert children(*(lambda number=number: note(number) for number in range(4))) == [0] * 4
    assert len(rows_of(tmp_path / "failures.csv")) == 20


def test_no_case_is_worked_on_twice(tmp_path):
    """Four processes of one job, which meet the cases in the same order."""
    cases = [Case(f"c{number}", patient=f"c{number}") for number in range(12)]

    def work(case, folder):
        with (tmp_path / "log").open("a") as log:
            log.write(f"{case.name}\n")
        time.sleep(0.01)
        return SEED_0

    results = results_in(tmp_path / "out")
    assert children(*[lambda: results.work_through("", cases, WhileSampling(work))] * 4) == [0] * 4
    names = sorted(case.name for case in cases)
    assert sorted((tmp_path / "log").read_text().split()) == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "summary.csv"]
    assert [row["case"] for row in rows_of(tmp_path / "out" / "summary.csv")] == names


def test_a_case_that_is_completed_while_one_looks_is_not_done_again(tmp_path, monkeypatch):
    """Another process writes case.json right after this one has looked for it."""
    looked = case_folder.is_complete

    def look(folder, *rest):
        found = looked(folder, *rest)
        if not found:
            done_by_another(tmp_path, folder.name)
        return found

    monkeypatch.setattr(cases_module, "is_complete", look)
    done = []
    results_in(tmp_path).work_through("", [Case("a", patient="a")], WhileSampling(lambda *_: done.append(1)))
    assert done == []


def test_a_claimed_case_is_left_to_its_process_and_said(shaken, two_cases, tmp_path, stub, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    with caplog.at_level(logging.INFO, "medseg_diff"), claimed(tmp_path / f".claim_{BAD}") as ours:
        assert ours
        segment(data=two_cases, out=tmp_path, model=shaken, device="cpu")
    assert stub == [GOOD] and f"[{BAD}] skipped: another process is working on it" in caplog.text
    segment(data=two_cases, out=tmp_path, model=shaken, device="cpu")
    assert stub == [GOOD, BAD]


def test_what_another_process_finished_meanwhile_is_not_done_again(tmp_path):
    cases = [Case(name, patient=name) for name in ("a", "b")]
    results, done = results_in(tmp_path, overwrite=True), []

    def work(case, folder):
        done.append(case.name)
        done_by_another(tmp_path, "b")  # as another shard would, while this one is at the first
        return SEED_0

    results.work_through("", cases, WhileSampling(work))
    assert done == ["a"]
    results.work_through("", cases, WhileSampling(work))
    assert done == ["a", "a"]


def test_a_claim_of_a_killed_process_does_not_block(tmp_path):
    def die():
        claim = claimed(tmp_path / ".claim_a")
        claim.__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    assert children(die) == [-signal.SIGKILL] and (tmp_path / ".claim_a").exists()
    with claimed(tmp_path / ".claim_a") as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []


def blocked(tmp_path):
    """A folder that nothing can be written into, also by root: there is a file in its place."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


@pytest.mark.parametrize("verb_name", ["segment", "anomaly"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(call, tmp_path, two_cases, verb_name):
    words = ("--data", two_cases, "--out", blocked(tmp_path), "--model", tmp_path / "there_is_none")
    code, _, told = call(verb_name, *words)
    assert code == 5 and "error: file: cannot be written (Not a directory). Fix: choose another --out" in told


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_so_is_a_read_only_folder(tmp_path):
    (tmp_path / "ro").mkdir(mode=0o555)
    with pytest.raises(EnvironmentFault, match="ro: cannot be written"):
        files.check_writable(tmp_path / "ro" / "out" / "deeper")


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    files.check_writable(tmp_path / "not" / "there")
    assert list(tmp_path.iterdir()) == []


def test_room_for_all_cases_is_asked_for_first(shaken, two_cases, tmp_path, stub, monkeypatch):
    """Two cases of 32 × 32 × 10 voxels, four float maps each, packed."""
    needed = int(2 * 32 * 32 * 10 * 4 * 4 * cases_module.PACKED)
    options = {"data": two_cases, "model": shaken, "device": "cpu"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(EnvironmentFault, match="GB are free where this run needs about") as caught:
        segment(out=tmp_path / "out", **options)
    assert caught.value.exit_code == 5 and stub == [] and not (tmp_path / "out").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    segment(out=tmp_path / "out", **options)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    segment(out=tmp_path / "out", **options)  # all is done: nothing is needed
    assert stub == [BAD, GOOD]


def test_a_disk_that_fills_in_the_middle_leaves_nothing_half_written(shaken, two_cases, tmp_path):
    """A limit on the size of files stands for a full disk: the mask fits, a float map does not."""
    out = tmp_path / "out"

    def work():
        import torch

        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
        segment(data=two_cases, out=out, model=shaken, device="cpu", keep_going=True)

    assert children(work) == [5]
    assert [path for path in out.rglob("*") if path.is_file()] == []
    segment(data=two_cases, out=out, model=shaken, device="cpu", members=1)
    assert json.loads((out / BAD / "case.json").read_text())["members"] == 1


def test_the_worst_of_several_faults_is_the_images(tmp_path):
    cases = [Case(name, patient=name) for name in ("a", "b", "c")]
    errors = {"a": ManifestError("m"), "b": Problems([ImageError("i", channel="t1"), ImageError("j")])}

    def work(case, folder):
        if case.name in errors:
            raise errors[case.name]
        return SEED_0

    with pytest.raises(Problems) as caught:
        results_in(tmp_path, keep_going=True).work_through("", cases, WhileSampling(work))
    assert caught.value.exit_code == 3
    assert [row["exit_code"] for row in rows_of(tmp_path / "failures.csv")] == ["2", "3"]


def test_a_claim_left_beside_a_complete_case_goes(tmp_path):
    done_by_another(tmp_path, "a")
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / ".claim_a").write_text("1")
    (tmp_path / f".{ended.pid}.a" / "members").mkdir(parents=True)  # as far as that process came with --overwrite
    results_in(tmp_path).work_through("", [Case("a", patient="a")], WhileSampling(lambda *_: pytest.fail("it is done")))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_disk_without_locks_is_worked_on_without(tmp_path, monkeypatch):
    import fcntl

    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unknown)
    with claimed(tmp_path / "a") as ours:
        assert ours
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ImageError("bad"), MemoryError(), Problems([ImageError("a"), ImageError("b")])])
def test_a_bad_case_leaves_no_voxels_in_memory(tmp_path, error):
    held = []

    def work(case, folder):
        voxels = np.zeros(10)
        assert all(one() is None for one in held)
        held.append(weakref.ref(voxels))
        raise type(error)(*([error.problems] if isinstance(error, Problems) else error.args))

    cases = [Case(name, patient=name) for name in ("a", "b", "c")]
    with pytest.raises(MedsegError):
        results_in(tmp_path, keep_going=True).work_through("", cases, WhileSampling(work))
    assert len(held) == (6 if isinstance(error, MemoryError) else 3)  # done again, alone


class Stepwise:
    """A work of three steps that notes them; `meanwhile` is {(step, case): what is done in it}."""

    def __init__(self, meanwhile):
        self.meanwhile, self.done = meanwhile, []

    def step(self, name, case):
        self.done.append((name, case.name))
        self.meanwhile.get((name, case.name), lambda: None)()
        return case

    def read(self, case):
        return self.step("read", case)

    def sample(self, read, new):
        return self.step("sample", read)

    def write(self, sampled, new):
        files.write_text(new / "mask.nii.gz", "mask")
        self.step("write", sampled)
        return SEED_0


ABC = [Case(name, patient=name) for name in ("a", "b", "c")]


def test_an_interrupt_leaves_whole_cases_and_nothing_else(tmp_path):
    sampled = threading.Event()

    def interrupt():
        sampled.set()
        raise KeyboardInterrupt

    work = Stepwise({("write", "a"): lambda: sampled.wait(30), ("sample", "b"): interrupt})
    with pytest.raises(KeyboardInterrupt):
        results_in(tmp_path / "out").work_through("", ABC, work)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert sorted(path.name for path in (tmp_path / "out" / "a").iterdir()) == ["case.json", "mask.nii.gz"]


def test_a_disk_that_is_full_is_said_of_the_case_that_was_being_written(tmp_path):
    def full():
        raise EnvironmentFault("cannot be written (No space left on device)", file="mask.nii.gz")

    work = Stepwise({("write", "a"): full})
    with pytest.raises(EnvironmentFault) as caught:
        results_in(tmp_path / "out", keep_going=True).work_through("", ABC, work)
    assert caught.value.line.startswith("[a] mask.nii.gz: cannot be written (No space left on device)")
    assert not (tmp_path / "out").exists() and ("write", "b") not in work.done


def test_cases_of_which_three_are_too_much_for_the_memory_are_done_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(cases_module, "LARGEST_OVERLAPPED", -1)
    work = Stepwise({})
    results_in(tmp_path).work_through("", ABC, work)
    assert work.done == [(step, case.name) for case in ABC for step in ("read", "sample", "write")]
