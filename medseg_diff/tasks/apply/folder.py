"""A folder of results that cases are worked into: skip complete ones, go on past a bad one, several processes at once."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from medseg_diff.console import bar, log, timed
from medseg_diff.data.formats import nifti
from medseg_diff.data.formats.size import size_in_memory
from medseg_diff.data.formats.stream import first_bytes
from medseg_diff.data.results import FACTS
from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import (
    EnvironmentFault,
    ExitCode,
    MedsegError,
    OutOfMemory,
    UsageError,
    counted,
    is_out_of_memory,
)
from medseg_diff.files import check_room, clean
from medseg_diff.locking import claimed
from medseg_diff.tasks.apply.case_folder import Identity, OtherScan, is_complete, made_anew, source_of, tell
from medseg_diff.tasks.apply.cases import Given
from medseg_diff.tasks.apply.failures import FAILURES, Failures, in_words
from medseg_diff.tasks.apply.pipeline import Stages, answer_of, in_turn, overlapped
from medseg_diff.tasks.apply.pseudonyms import names_of
from medseg_diff.tasks.apply.summary import SUMMARY, summarised
from medseg_diff.tasks.options import ResultFolder

LEASE_SECONDS = 120.0  # a disk that machines share keeps the locks of one that is gone for up to 90 seconds (NFS 4)
PACKED = 0.15  # of its raw size is what a float map of a BraTS brain takes as .nii.gz: 0.140 to 0.149 measured
LARGEST_OVERLAPPED = 2**29  # bytes of voxels of a case: three of them are in memory at once then, some of it twice


class Work(Protocol):
    """What a verb does with a case in three steps, each with what the one before made of it, which nobody else keeps.

    Cases may be read, and written, in a thread of their own, while another one is sampled.
    """

    def read(self, case: Case) -> Any:
        """Nothing is written yet."""

    def sample(self, read: Any, new: Path) -> Any:
        """Perhaps with first files in the folder `new`."""

    def write(self, sampled: Any, new: Path) -> dict[str, Any]:
        """Fill the folder; what case.json says."""


class Todo(NamedTuple):
    """A case that is not complete, and when it was last completed, if it ever was: see `_stamp`."""

    case: Case
    stamp: int | None

    @property
    def name(self) -> str:
        return self.case.name


Outcomes = Generator[tuple[Todo, bool | MedsegError], None, None]  # as `Results.do`, or the error that it raised


@dataclass(frozen=True)
class Results:
    """A folder that cases are worked into, a folder for each, by one process or by several at once.

    `identity` is what all of its cases have in common; `called` says how a case is called in there, `source_of` where it
    lies. With `overwrite` complete cases are done again; with `keep_going` a bad one is listed in failures.csv and the
    others go on.
    """

    out: Path
    task: str
    identity: Identity
    overwrite: bool = False
    keep_going: bool = False
    called: Callable[[str], str] = str
    source_of: Callable[[Case], str | None] = source_of

    @classmethod
    def into(cls, results: ResultFolder, task: str, identity: Identity, *, given: Given, runs: Path) -> "Results":
        """The folder that a verb was given. Raises: UsageError, EnvironmentFault for the key of pseudonyms."""
        return cls(
            results.out,
            task,
            identity,
            overwrite=results.overwrite,
            keep_going=results.keep_going,
            called=names_of(results.pseudonymise, results.pseudonym_key, out=results.out, runs=runs),
            source_of=given.source_of,
        )

    def folder(self, case: Case) -> Path:
        return self.out / self.called(case.name)

    def check_room(self, cases: Sequence[Case], *, maps: int) -> None:
        """Raises: EnvironmentFault where there is no room for so many float maps of every case that is not done."""
        wanted = sum(_voxels(case) for case in cases if self.overwrite or _stamp(self.folder(case)) is None)
        check_room(self.out, int(wanted * maps * 4 * PACKED))

    def work_through(self, title: str, cases: Sequence[Case], work: Work) -> None:
        """Do every case that is not complete, in their order, under a progress bar; while one is sampled, the next is read
        and the last written. At the end the folder's summary is written.

        Raises: UsageError where a case was done with other settings, or two would be called the same; where its folder
        is another scan's or holds other files, and what `work` raises: at once, or with `keep_going` at the end (the
        first that is about an image, else the first), unless the fault is the machine's.
        """

        def done_here(todos: Sequence[Todo]) -> Outcomes:
            several = overlapped if len(todos) > 1 and all(map(_is_small, todos)) else in_turn
            return several(todos, lambda todo: self._stages(todo, work))

        self.gather(title, cases, done_here)

    def gather(self, title: str, cases: Sequence[Case], done_by: Callable[[Sequence[Todo]], Outcomes]) -> None:
        """The same for cases that `done_by` does by whatever processes and in whatever order."""
        names = [self.called(case.name) for case in cases]
        if len(set(names)) < len(names):
            raise UsageError("two cases would get the same name in the results", fix="use another --pseudonym-key")
        if taken := {FAILURES, SUMMARY} & {name.lower() for name in names}:
            raise UsageError(f"a case is called {taken.pop()}, like a table of the results", fix="rename the case")
        made = not self.out.exists()
        try:
            with summarised(self.out):
                self._gather(title, cases, done_by)
        finally:
            if made:  # as its claims would leave it, one after the other
                with suppress(OSError):
                    self.out.rmdir()

    def _gather(self, title: str, cases: Sequence[Case], done_by: Callable[[Sequence[Todo]], Outcomes]) -> None:
        failures, bad = Failures(self.out), list[MedsegError]()
        unfinished = self._unfinished(cases, bad)
        with bar(title, len(unfinished)) as advance, closing(done_by(unfinished)) as outcomes:
            for (case, _), outcome in outcomes:
                if isinstance(outcome, MedsegError):
                    self._go_past(outcome, case, bad)
                elif outcome:
                    failures.forget(self.called(case.name))
                advance(note=case.name)
        if bad:
            log.warning("%d of %s failed: see %s", len(bad), counted(len(cases), "case"), failures.path)
            raise next((error for error in bad if error.exit_code == ExitCode.IMAGE), bad[0])

    def _go_past(self, error: MedsegError, case: Case, bad: list[MedsegError]) -> None:
        """List a case that cannot be done and go on. Raises: the error, unless that was asked for and it is the case's."""
        if not self.keep_going or (isinstance(error, EnvironmentFault) and not isinstance(error, OutOfMemory)):
            raise error
        bad.append(error.without_trace())
        log.error("%s", "; ".join(error.lines))
        name = self.called(case.name)
        Failures(self.out).note(name, error, in_words(error, case, name))

    def _unfinished(self, cases: Sequence[Case], bad: list[MedsegError]) -> list[Todo]:
        """The cases to do, each with the stamp that its case.json has now, and a word on how many are complete."""
        failures, complete, wanted = Failures(self.out), 0, list[Todo]()
        for case in cases:
            stamp = _stamp(self.folder(case))  # before the look: another process may complete the case right after it
            try:
                if self.overwrite or not self._is_complete(case):
                    wanted.append(Todo(case, stamp))
                    continue
            except OtherScan as error:
                self._go_past(error, case, bad)
                continue
            failures.forget(self.called(case.name))
            self.unclaim(case)
            complete += 1
        if complete:
            log.info("%s already complete", "1 case is" if complete == 1 else f"{complete} cases are")
        return wanted

    def _is_complete(self, case: Case) -> bool:
        return is_complete(self.folder(case), case, self.identity, self._source(case))

    def _source(self, case: Case) -> str | None:
        return self.source_of(case) if self.called(case.name) == case.name else None

    def _claim_of(self, case: Case) -> Path:
        return self.out / f".claim_{self.called(case.name)}"

    def _is_claimed(self, case: Case) -> bool:
        with claimed(self._claim_of(case)) as ours:
            return not ours

    def unclaim(self, case: Case) -> bool:
        """Remove the claim and the unfinished folder that a killed process left; whether a process has it still."""
        if self._claim_of(case).exists():
            with claimed(self._claim_of(case)) as ours:
                if not ours:
                    return True
                clean(self.out, self.called(case.name))
        return False

    def do(self, todo: Todo, work: Work, *, lost: int = 0) -> bool:
        """One case, unless another process has it, or did it since its case.json had that stamp; whether it is done.

        Where a process was `lost` on it before, the disk is given time to notice, and its claim is waited for.
        Raises: EnvironmentFault where that does not end; what the work raises.
        """
        case, ends = todo.case, time.monotonic() + LEASE_SECONDS
        while lost and self._is_claimed(case):
            if time.monotonic() > ends:
                found = "is still claimed by another process, perhaps one that was lost"
                raise EnvironmentFault(found, fix="run the same command again in a few minutes", case=case.name)
            time.sleep(1)
        return answer_of(self._stages(todo, work))

    def _stages(self, todo: Todo, work: Work) -> Stages[bool]:
        """The same step by step; the case is this process's from the first to the last."""
        case, folder = todo.case, self.folder(todo.case)
        with claimed(self._claim_of(case)) as ours:
            if not ours:
                log.info("[%s] skipped: another process is working on it", case.name)
                return False
            clean(self.out, folder.name)
            if self._done_meanwhile(todo):
                return True
            with _faults_of(case), timed(f"[{case.name}] read"):
                read = work.read(case)
            yield
            if self._done_meanwhile(todo):  # as on a disk that knows no locks
                return True
            with made_anew(folder) as new:
                with _faults_of(case), timed(f"[{case.name}] sampled"):
                    sampled = work.sample(read, new)
                del read
                yield
                with _faults_of(case), timed(f"[{case.name}] written"):
                    facts = work.write(sampled, new)
                    tell(new, case, folder.name, self._source(case), {"task": self.task} | facts)
            return True

    def _done_meanwhile(self, todo: Todo) -> bool:
        if _stamp(self.folder(todo.case)) == todo.stamp or not self._is_complete(todo.case):
            return False
        log.info("[%s] another process completed it in the meantime", todo.name)
        return True


@contextmanager
def _faults_of(case: Case) -> Iterator[None]:
    """What the machine lacks inside is said of the case: others are at hand too.

    Raises: OutOfMemory where memory runs out, whoever says so.
    """
    try:
        yield
    except EnvironmentFault as error:
        error.case = error.case or case.name
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fix = "close other programs, or use a machine with more memory"
        raise OutOfMemory("memory runs out", fix=fix, case=case.name) from error


def _is_small(todo: Todo) -> bool:
    """Whether three such cases are nothing to a machine that one of them fits."""
    return sum(map(size_in_memory, todo.case.paths.values())) <= LARGEST_OVERLAPPED


def _stamp(folder: Path) -> int | None:
    """When the case was completed, by the clock of the disk; None where it was not."""
    try:
        return (folder / FACTS).stat().st_mtime_ns
    except OSError:
        return None


def _voxels(case: Case) -> int:
    """Of the first channel, by its header; 0 where that does not say, which the reader will tell."""
    path = next(iter(case.paths.values()), None)
    if path is None or not path.is_file():
        return 0
    with suppress(MedsegError, OSError):
        head = first_bytes(path)
        if nifti.is_nifti(head):
            return math.prod(nifti.dimensions(nifti.parse_header(head))[:3])
    return 0
