"""Cases of `segment` and `anomaly` done by this process, or shared among workers that each open the model once."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from medseg_diff.cluster import Work as SharedWork
from medseg_diff.cluster import shared
from medseg_diff.data.tables.manifest import Case
from medseg_diff.tasks.apply.folder import Outcomes, Results, Todo, Work
from medseg_diff.tasks.options import Compute

ENDING_SECONDS = 5.0


class Job(Protocol):
    """An opened model, and the folder that its results go to."""

    @property
    def folder(self) -> Results: ...

    @property
    def work(self) -> Work: ...


def do_cases(title: str, cases: Sequence[Case], job: Job, *, opened: Callable[[], Job], compute: Compute) -> None:
    """Do every case that is not complete: here by `job`, or by workers that each have their own from `opened`, a function
    of a module with its arguments.

    Raises: what `Results.work_through` and `cluster.shared` raise.
    """
    sharing = compute.sharing
    if sharing is None:
        job.folder.work_through(title, cases, job.work)
        return

    def outcomes(todos: Sequence[Todo]) -> Outcomes:
        done = set[str]()
        try:
            with closing(shared(_Opened(opened), todos, sharing)) as all_done:
                for todo, outcome in all_done:
                    done.add(todo.name)
                    yield todo, outcome
        finally:
            _clean(job.folder, [todo.case for todo in todos if todo.name not in done])

    job.folder.gather(title, cases, outcomes)


def _clean(folder: Results, cases: Sequence[Case]) -> None:
    """Remove what is left of cases whose workers were ended in the middle of them, which takes these a moment."""
    ends = time.monotonic() + ENDING_SECONDS
    for case in cases:
        while folder.unclaim(case) and time.monotonic() < ends:
            time.sleep(0.05)


@dataclass(frozen=True)
class _Opened:
    """What a worker does first; what comes of it does a case."""

    opened: Callable[[], Job]

    def __call__(self) -> SharedWork[Todo, bool]:
        job = self.opened()
        return lambda todo, lost: job.folder.do(todo, job.work, lost=lost)
