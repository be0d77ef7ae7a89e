"""What verbs that work through cases share: find them, take a share, skip complete ones, go on past a bad one."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff.console import bar, log
from medseg_diff.data.formats import nifti
from medseg_diff.data.formats.stream import first_bytes
from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import (
    EnvironmentFault,
    ExitCode,
    MedsegError,
    OutOfMemory,
    Problems,
    UsageError,
    is_out_of_memory,
)
from medseg_diff.files import check_room, clean, read_json
from medseg_diff.locking import claimed
from medseg_diff.tasks.apply.failures import Failures, in_words

PACKED = 0.15  # of its raw size is what a float map of a BraTS brain takes as .nii.gz: 0.140 to 0.149 measured


@dataclass(frozen=True)
class Identity:
    """What two calls must have in common for their results to stand in one folder: keys of case.json and their values."""

    facts: Mapping[str, Any]

    def is_complete(self, folder: Path) -> bool:
        """Whether the folder holds this case, done with the same model and numbers.

        Raises: UsageError where it was done with others: mixing two settings in one folder helps nobody.
        """
        try:
            known = read_json(folder / "case.json")
        except (OSError, ValueError):
            return False
        if not isinstance(known, dict):
            return False
        for key, wanted in self.facts.items():
            if known.get(key) != wanted:
                raise UsageError(
                    f"was made with {key} {known.get(key)}, not {wanted}",
                    fix="use --overwrite, or another --out",
                    case=folder.name,
                    file="case.json",
                )
        return True


@dataclass(frozen=True)
class Results:
    """A folder that cases are worked into, a folder for each, by one process or by several at once.

    `identity` is what all of its cases have in common; `called` says how a case is called in there. With `overwrite`
    complete cases are done again; with `keep_going` a bad one is listed in failures.csv and the others go on.
    """

    out: Path
    identity: Identity
    overwrite: bool = False
    keep_going: bool = False
    called: Callable[[str], str] = str

    def folder(self, case: Case) -> Path:
        return self.out / self.called(case.name)

    def check_room(self, cases: Sequence[Case], *, maps: int) -> None:
        """Raises: EnvironmentFault where there is no room for so many float maps of every case that is not done."""
        wanted = sum(_voxels(case) for case in cases if self.overwrite or _stamp(self.folder(case)) is None)
        check_room(self.out, int(wanted * maps * 4 * PACKED))

    def work_through(self, title: str, cases: Sequence[Case], work: Callable[[Case, Path], None]) -> None:
        """Do every case that is not complete, under a progress bar; `work` is given its folder.

        Raises: UsageError where a case was done with other settings, or two would be called the same; what `work`
        raises: at once, or with `keep_going` at the end (the first that is about an image, else the first), unless the
        fault is the machine's.
        """
        if len({self.called(case.name) for case in cases}) < len(cases):
            raise UsageError("two cases would be called the same in the results", fix="use another --pseudonym-key")
        failures, bad = Failures(self.out), list[MedsegError]()
        unfinished = self._unfinished(cases)
        with bar(title, len(unfinished)) as advance:
            for case, stamp in unfinished:
                name = self.called(case.name)
                try:
                    if self._do(case, stamp, work):
                        failures.forget(name)
                except MedsegError as error:
                    machine = isinstance(error, EnvironmentFault) and not isinstance(error, OutOfMemory)
                    if machine or not self.keep_going:
                        raise
                    bad.append(_without_trace(error))
                    log.warning("error: %s", "; ".join(error.lines))
                    failures.note(name, error, in_words(error, case, name))
                advance(note=case.name)
        if bad:
            log.warning("%d of %d cases could not be done: see %s", len(bad), len(unfinished), failures.path)
            raise next((error for error in bad if error.exit_code == ExitCode.IMAGE), bad[0])

    def _unfinished(self, cases: Sequence[Case]) -> list[tuple[Case, int | None]]:
        """The cases to do, each with the stamp that its case.json has now, and a word on how many are complete."""
        failures, wanted = Failures(self.out), []
        for case in cases:
            stamp = _stamp(self.folder(case))  # before the look: another process may complete the case right after it
            if not self.overwrite and self.identity.is_complete(self.folder(case)):
                failures.forget(self.called(case.name))
                self._unclaim(case)
            else:
                wanted.append((case, stamp))
        if len(wanted) < len(cases):
            log.info("%d cases are complete already", len(cases) - len(wanted))
        return wanted

    def _claim_of(self, case: Case) -> Path:
        return self.out / f".claim_{self.called(case.name)}"

    def _unclaim(self, case: Case) -> None:
        """Remove the claim of a process that was killed between the last file of a case and the end of its claim."""
        if self._claim_of(case).exists():
            with claimed(self._claim_of(case)):
                pass

    def _do(self, case: Case, stamp: int | None, work: Callable[[Case, Path], None]) -> bool:
        """One case, unless another process has it, or did it since its case.json had that stamp; whether it is done."""
        folder = self.folder(case)
        with claimed(self._claim_of(case)) as ours:
            if not ours:
                log.info("[%s] another process is working on it: left to that one", case.name)
                return False
            if _stamp(folder) != stamp and self.identity.is_complete(folder):
                log.info("[%s] another process has done it meanwhile", case.name)
                return True
            clean(folder)
            try:
                work(case, folder)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                fix = "end other programs, or use a machine with more memory"
                raise OutOfMemory("memory runs out", fix=fix, case=case.name) from error
            return True


def _without_trace(error: MedsegError) -> MedsegError:
    """The error without what it holds on to, the voxels of its case among it."""
    for part in (error, *(error.problems if isinstance(error, Problems) else ())):
        part.__traceback__ = part.__context__ = part.__cause__ = None
    return error


def _stamp(folder: Path) -> int | None:
    """When the case was completed, by the clock of the disk; None where it was not."""
    try:
        return (folder / "case.json").stat().st_mtime_ns
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
