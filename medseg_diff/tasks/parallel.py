"""Many cases worked on by a few threads, their answers in the order of the cases; Ctrl-C ends it after those at hand.

Threads and not processes: what takes time (zlib, NumPy) runs outside of Python's lock, so they are as fast, begin at once
and hand over what they found without copying it.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from medseg_diff.console import bar
from medseg_diff.data.formats.size import size_in_memory
from medseg_diff.data.tables.case import Case
from medseg_diff.errors import OutOfMemory, UsageError

MOST_WORKERS = 8
MOST_BYTES = 4 * 2**30  # of voxels in memory at once, unless a single case has more

Answer = TypeVar("Answer")


def usual_workers() -> int:
    """The processors that this process may use, at most eight."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, allowed)


def in_parallel(
    title: str, cases: Sequence[Case], work: Callable[[Case], Answer], *, workers: int | None = None
) -> Iterator[Answer]:
    """What `work` returns of every case, in the order of the cases, under a progress bar; so many `workers` at once [the
    processors, at most 8], fewer where their cases are large.

    Raises: UsageError for less than one worker; what `work` raises; OutOfMemory.
    """
    workers = usual_workers() if workers is None else workers
    if workers < 1:
        raise UsageError(f"{workers} workers can do nothing", fix="use --workers 1 or more")
    room = _Room(MOST_BYTES)

    def one(case: Case) -> Answer:
        with room.taken(sum(map(size_in_memory, case.paths.values()))):
            try:
                return work(case)
            except MemoryError as error:
                fix = "lower --workers, or use a machine with more memory"
                raise OutOfMemory("memory runs out", fix=fix, case=case.name) from error

    pool = ThreadPoolExecutor(min(workers, max(1, len(cases))))
    try:
        with bar(title, len(cases)) as advance:
            for case, answer in zip(cases, pool.map(one, cases), strict=True):
                advance(note=case.name)
                yield answer
    finally:  # also where whoever asks stops asking: what has not begun never will
        pool.shutdown(wait=False, cancel_futures=True)


class _Room:
    """So many bytes; whoever needs more than are left waits, unless nobody else holds any."""

    def __init__(self, size: int) -> None:
        self.size, self.used, self.changed = size, 0, threading.Condition()

    @contextmanager
    def taken(self, wanted: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + wanted <= self.size)
            self.used += wanted
        try:
            yield
        finally:
            with self.changed:
                self.used -= wanted
                self.changed.notify_all()
