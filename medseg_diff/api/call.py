"""One call of `segment` or `anomaly` from Python: which cases it is about, where their files go, and what it returns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from medseg_diff.api.results import Result
from medseg_diff.api.volumes import Volume, Words, several, words_of
from medseg_diff.data.results import holds_result
from medseg_diff.data.tables.case import Case
from medseg_diff.errors import MedsegError, UsageError, raise_all
from medseg_diff.recipes.lookup import Task
from medseg_diff.tasks.apply.case_folder import source_of
from medseg_diff.tasks.apply.cases import Given, asked_of, find_cases, given_by
from medseg_diff.tasks.keywords import option
from medseg_diff.tasks.options import Compute, ResultFolder, ResultOptions, Source

Kind = TypeVar("Kind", bound=Result)


@dataclass(frozen=True, kw_only=True)
class OptionalFolder(ResultOptions):
    """As on the command line, but that results need not go anywhere."""

    out: Path | None = option(None, "Where results are written too, a folder for each case [nowhere].")

    def or_else(self, folder: Path) -> ResultFolder:
        """The folder that was named, or another. Raises: UsageError where going on past a bad case would be for nothing."""
        if self.out is None and self.keep_going:
            found = "keep_going ends with the error of a bad case, and without out nothing is left of the others"
            raise UsageError(found, fix="name a folder with out, or leave keep_going out")
        known = {name: value for name, value in self.__dict__.items() if name != "out"}
        return ResultFolder(out=self.out or folder, **known)


@dataclass(frozen=True)
class Call:
    """The `words` of each case, or None where `source` names them; the folder of `results`; whether a list is returned."""

    words: list[Words] | None
    source: Source
    results: ResultFolder
    is_temporary: bool
    many: bool

    def given(self, channels: Sequence[str], *, task: Task, runs: Path, fill_missing: bool = False) -> Given:
        """The cases, of several names that are alike the second with `_2`. Raises: every fault of every case, as
        `find_cases`."""
        options = {"task": task, "runs": runs, "fill_missing": fill_missing}
        if self.words is None:
            return given_by(self.source, find_cases(self.source, channels, **options))  # type: ignore[arg-type]
        cases, from_memory, problems = dict[str, Case](), set[str](), list[MedsegError]()
        for words, remembered in self.words:
            alone = replace(self.source, volumes=words, shard=(1, 1))
            try:
                (case,) = find_cases(alone, channels, **options)  # type: ignore[arg-type]
            except MedsegError as error:
                problems.append(error)
                continue
            names = (case.name, *(f"{case.name[:60]}_{number}" for number in range(2, len(self.words) + 1)))
            name = next(each for each in names if each.lower() not in map(str.lower, cases))
            cases[name] = replace(case, name=name)
            from_memory |= {name} if remembered else set()
        raise_all(problems)
        number, shards = self.source.shard
        return Given(
            list(cases.values())[number - 1 :: shards],
            asked_of(self.source),
            partial(_source_of, frozenset(from_memory)),
        )

    def answer(self, folders: Sequence[Path], kind: type[Kind]) -> Kind | list[Kind]:
        """The results in these folders, which stay on the disk where that was asked for.

        Raises: UsageError where another process is still working on one.
        """
        busy = [folder.name for folder in folders if not holds_result(folder, kind.TASK)]
        if busy:
            found = f"another process is working on {', '.join(busy)}"
            raise UsageError(found, fix="call again when it has finished: complete results are only read")
        read = [kind.read(folder) for folder in folders]
        read = [each.in_memory() for each in read] if self.is_temporary else read
        return read if self.many else read[0]


def _source_of(from_memory: frozenset[str], case: Case) -> str | None:
    """Where a case lies; nothing of temporary files. A function of a module, because workers are sent it."""
    return None if case.name in from_memory else source_of(case)


@contextmanager
def called(
    volume: Volume | Sequence[Volume] | None, source: Source, results: OptionalFolder, compute: Compute
) -> Iterator[Call]:
    """A call whose temporary files are gone when it ends.

    Raises: UsageError where cases are not named in exactly one way, not so that there is an answer, or not so that workers
    could read them; ImageError.
    """
    compute.check()
    if volume is None:
        source.check()
        many = source.data is not None
    else:
        many = several(volume)
        if source.volumes or source.data is not None:
            raise UsageError("volume, volumes and data are three ways to name cases", fix="use one of them")
        replace(source, volumes=("volume",)).check()
    if not many and source.shard != (1, 1):
        raise UsageError("shard is for several cases", fix="leave it out")
    with TemporaryDirectory(prefix="medseg_diff_") as temporary:
        place = Path(temporary)
        wanted = results.or_else(place / "results")
        words = None if volume is None else _words(volume if many else [volume], place)  # type: ignore[list-item, arg-type]
        if compute.sharing and (results.out is None or any(each.from_memory for each in words or ())):
            found = "workers need scans that all of them can read, and a folder for their results"
            raise UsageError(found, fix="give paths or a table, and name out; or leave cluster out")
        yield Call(words, source, wanted, results.out is None, many)


def _words(volumes: Sequence[Volume], place: Path) -> list[Words]:
    """Of every case. Raises: UsageError where there is none, and all that `words_of` does, of every case."""
    if not volumes:
        raise UsageError("volume is an empty list", fix="give at least one scan")
    found, problems = [], list[MedsegError]()
    for number, volume in enumerate(volumes, start=1):
        try:
            found.append(words_of(volume, place / str(number), f"case_{number}"))
        except MedsegError as error:
            problems.append(error)
    raise_all(problems)
    return found
