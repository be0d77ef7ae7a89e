"""Cases in parallel: answers in order, memory within its limit, and an end where one is asked for."""

import threading
import time
from pathlib import Path

import pytest

from medseg_diff.data.tables.case import Case
from medseg_diff.errors import ImageError, OutOfMemory, UsageError
from medseg_diff.tasks import parallel
from medseg_diff.tasks.parallel import in_parallel, usual_workers

CASES = [Case(str(number), str(number), images={"t1": Path("gone.nii")}) for number in range(12)]


def test_answers_come_in_the_order_of_the_cases():
    def work(case):
        time.sleep(0.002 * (12 - int(case.name)))
        return case.name

    for workers in (1, 3, 50):
        assert list(in_parallel("working", CASES, work, workers=workers)) == [case.name for case in CASES]
    assert list(in_parallel("working", [], work)) == []
    assert 1 <= usual_workers() <= 8
    with pytest.raises(UsageError, match="use --workers 1 or more"):
        list(in_parallel("working", CASES, work, workers=0))


def test_no_more_is_in_memory_at_once_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(parallel, "size_in_memory", lambda path: 5)
    at_once, most, lock = [], [], threading.Lock()

    def work(case):
        with lock:
            at_once.append(case)
            most.append(len(at_once))
        time.sleep(0.003)
        with lock:
            at_once.remove(case)

    for limit, expected in ((11, 2), (3, 1)):  # a single case that is too large goes alone
        most.clear()
        monkeypatch.setattr(parallel, "MOST_BYTES", limit)
        list(in_parallel("working", CASES, work, workers=4))
        assert max(most) == expected


def test_an_error_ends_it_and_what_has_not_begun_never_does():
    begun = []

    def work(case):
        begun.append(case.name)
        time.sleep(0.002)
        if case.name == "1":
            raise ImageError("is bad")
        if case.name == "0":
            raise MemoryError
        return case.name

    with pytest.raises(OutOfMemory, match=r"\[0\] memory runs out. Fix: lower --workers"):
        list(in_parallel("working", CASES, work, workers=1))
    with pytest.raises(ImageError):
        list(in_parallel("working", CASES[1:], work, workers=1))
    assert len(begun) < 6
