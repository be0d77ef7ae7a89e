"""Cases of `segment` and `anomaly` done by this process, or shared among workers that each open the model once."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from medseg_diff.cluster import Sharing, shared
from medseg_diff.cluster import Work as SharedWork
from medseg_diff.data.tables.manifest import Case
from medseg_diff.tasks.apply.folder import Outcomes, Results, Todo, Work

ENDING_SECONDS = 5.0


class Job(Work, Protocol):
    """What an opened model does with a case, and the folder that its results go to."""

    @property
    def folder(self) -> Results: ...


class Shared(NamedTuple):
    """Among which processes cases are shared, None for this one alone, and what opens a worker's own job: a function of a
    module with its arguments."""

    sharing: Sharing | None
    opened: Callable[[], Job]


def do_cases(title: str, cases: Sequence[Case], job: Job, shared_by: Shared | None) -> None:
    """Do every case that is not complete: here by `job`, or by workers that each have their own.

    Raises: what `Results.work_through` and `cluster.shared` raise.
    """
    sharing = shared_by.sharing if shared_by else None
    if shared_by is None or sharing is None:
        job.folder.work_through(title, cases, job)
        return

    def outcomes(todos: Sequence[Todo]) -> Outcomes:
        done = set[str]()
        try:
            with closing(shared(_Opened(shared_by.opened), todos, sharing)) as all_done:
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
        return lambda todo, lost: job.folder.do(todo, job, lost=lost)
