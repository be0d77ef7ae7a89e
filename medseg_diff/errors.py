"""The errors a person may see: what was found, where, what to do, and the exit code that says whose fault it is."""

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Self

SHOWN_PROBLEMS = 20
LONGEST_LINE, LONGEST_NAME = 1000, 120
NO_MEMORY = re.compile(  # as torch says it, where it raises a RuntimeError
    r"(not enough|can't allocate|out of) memory|STATUS_ALLOC_FAILED|DefaultCPUAllocator|MemoryError", re.IGNORECASE
)


class ExitCode(IntEnum):
    """What the process returns; scripts rely on these numbers."""

    OK = 0
    BUG = 1
    USAGE = 2
    IMAGE = 3
    CHECKPOINT = 4
    ENVIRONMENT = 5
    DIVERGED = 6
    PREEMPTED = 75


class Verbs(NamedTuple):
    """What makes a run of a task, and what uses it: remedies name them."""

    train: str
    apply: str


VERBS = {
    "segment": Verbs("train-seg", "segment"),
    "anomaly": Verbs("train-anomaly", "anomaly"),
    "synthesise": Verbs("train-synth", "synthesise"),
    "enhance": Verbs("train-enhance", "enhance"),
}


def verbs_of(task: str | None) -> Verbs:
    """Of one task; of an unknown one, those of all."""
    return VERBS.get(task or "") or Verbs(*("|".join(each) for each in zip(*VERBS.values(), strict=True)))


class MedsegError(Exception):
    """One fault in one sentence, with its place and its remedy.

    `found` says what was found; `fix` what to do; `case`, `channel` and `file` where (as many as are known).
    """

    exit_code: ClassVar[ExitCode] = ExitCode.BUG

    def __init__(
        self, found: str, *, fix: str = "", case: str | None = None, channel: str | None = None, file: str | None = None
    ) -> None:
        self.found, self.fix, self.case, self.channel, self.file = found, fix, case, channel, file
        super().__init__(self.line)

    @property
    def line(self) -> str:
        """`[case/channel] file: what was found. Fix: what to do`."""
        place = "/".join(plain(part, LONGEST_NAME) for part in (self.case, self.channel) if part)
        text = (f"[{place}] " if place else "") + (f"{plain(self.file, LONGEST_NAME)}: " if self.file else "")
        text += plain(self.found.rstrip("."), LONGEST_LINE) + "."
        if self.fix:
            text += f" Fix: {self.fix.rstrip('.')}" + ("" if self.fix.endswith("?") else ".")
        return plain(text, 2 * LONGEST_LINE)

    @property
    def lines(self) -> list[str]:
        """What to print, one fault a line."""
        return [self.line]

    def without_trace(self) -> Self:
        """The error without what it holds on to, the voxels of its case among it, for whoever keeps it."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """How it goes from process to process, whatever its class is made with."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[MedsegError], args: tuple[Any, ...], facts: dict[str, Any]) -> MedsegError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


def plain(text: str, longest: int = LONGEST_LINE) -> str:
    """One line that does nothing to a terminal: white space folded, what cannot be printed spelled out, the rest cut.

    Escape sequences and marks that turn the direction of writing come from names of files and cells of tables.
    """
    shown = printable(" ".join(text[: 4 * longest].split()))
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def printable(text: str) -> str:
    """The text with whatever cannot be printed spelled out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def counted(number: int, noun: str, *, plural: str | None = None) -> str:
    """`1 case`, `2 cases`."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


class UsageError(MedsegError):
    """The command line or a function's arguments make no sense together."""

    exit_code = ExitCode.USAGE


class ConfigError(MedsegError):
    """A recipe or setting is unknown, mistyped or contradictory."""

    exit_code = ExitCode.USAGE


class ManifestError(MedsegError):
    """The table of cases is at fault (not the images that it names)."""

    exit_code = ExitCode.USAGE


class ImageError(MedsegError):
    """An image is missing, unreadable, damaged or does not fit its case."""

    exit_code = ExitCode.IMAGE


class CheckpointError(MedsegError):
    """A run folder or weights file is missing, damaged or of another recipe."""

    exit_code = ExitCode.CHECKPOINT


class EnvironmentFault(MedsegError):
    """Disk, permission, memory or device."""

    exit_code = ExitCode.ENVIRONMENT


def unwritable(error: OSError, name: str, *, fix: str = "choose another --out") -> EnvironmentFault:
    """What to raise where the system does not let us write the file or folder `name`."""
    return EnvironmentFault(f"cannot be written ({error.strerror or error})", fix=fix, file=name)


class OutOfMemory(EnvironmentFault):
    """The memory is too small for one case, which says nothing of the next."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the host or of a device, whoever says so, also as the cause of what a library raises."""
    looked_at: list[BaseException] = []
    here: BaseException | None = error
    while here is not None and here not in looked_at and not isinstance(here, MedsegError):
        if isinstance(here, MemoryError) or type(here).__name__ == "OutOfMemoryError":
            return True
        if isinstance(here, RuntimeError) and NO_MEMORY.search(str(here)):
            return True
        looked_at.append(here)
        here = here.__cause__ or (None if here.__suppress_context__ else here.__context__)
    return False


class Diverged(MedsegError):
    """Training produced numbers that are not finite."""

    exit_code = ExitCode.DIVERGED


class Preempted(MedsegError):
    """The scheduler asked the process to stop; a checkpoint was written."""

    exit_code = ExitCode.PREEMPTED


class Problems(MedsegError):
    """Several faults found in one pass; the exit code is that of the first."""

    def __init__(self, problems: Sequence[MedsegError]) -> None:
        if not problems:
            raise ValueError("Problems needs at least one problem")
        self.problems = tuple(problems)
        super().__init__(self.problems[0].found)
        self.exit_code = self.problems[0].exit_code  # type: ignore[misc]

    @property
    def lines(self) -> list[str]:
        shown = [problem.line for problem in self.problems[:SHOWN_PROBLEMS]]
        hidden = len(self.problems) - len(shown)
        return [*shown, f"and {hidden} more problem{'' if hidden == 1 else 's'}."] if hidden else shown

    def without_trace(self) -> Self:
        for problem in self.problems:
            problem.without_trace()
        return super().without_trace()


def raise_all(problems: Sequence[MedsegError]) -> None:
    """Raise what was collected: nothing, the one error itself, or all of them together."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)
