"""The doors that a layout goes through, as the commands open them, and what came of it in words."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.inputs import find_case
from medseg_diff.errors import MedsegError
from medseg_diff.tasks.prepare import prepare as prepare_table
from medseg_diff.tasks.validate import validate as validate_table

FOUR = ("t1", "t1ce", "t2", "flair")
SHOWN = 4  # lines of one kind


@dataclass(frozen=True)
class Outcome:
    """What came of a layout: the exit code, what was said, what was warned of, and the lines of errors."""

    code: int
    said: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """taken, warned, or refused with its exit code."""
        return f"refused, {self.code}" if self.errors else "warned" if self.warned else "taken"


@dataclass(frozen=True)
class Layout:
    """Some input as people have it: what it is in words, and `build`, which makes it in an empty folder and opens a door."""

    what: str
    build: Callable[[Path], Outcome]


def volume(*words: object, channels: Sequence[str] = FOUR, order: Sequence[str] = ()) -> Outcome:
    """`segment --volume WORDS` of a model of `channels`, up to the voxels."""
    try:
        case, sentence = find_case([str(word) for word in words], channels, order=order)
        images = read_case(case, channels, reference=False)
    except MedsegError as error:
        return Outcome(int(error.exit_code), errors=tuple(error.lines))
    return Outcome(0, said=(sentence,), warned=images.warnings)


def validate(table: Path) -> Outcome:
    """`validate --data TABLE`."""
    with _heard() as heard:
        try:
            report = validate_table(table)
        except MedsegError as error:
            return Outcome(int(error.exit_code), errors=tuple(error.lines))
    errors = tuple(problem.line for problem in report.problems)
    said = () if errors else (f"{report.cases} cases, no problems",)
    return Outcome(
        int(report.exit_code), (*heard[logging.INFO], *said), (*heard[logging.WARNING], *report.warnings), errors
    )


def prepare(folder: Path, source: str, **options: object) -> Outcome:
    """`prepare FOLDER --source SOURCE`, and then `validate` of the table."""
    out = folder.parent / "cases.csv"
    with _heard() as heard:
        try:
            prepare_table(folder, source=source, out=out, **options)
        except MedsegError as error:
            return Outcome(
                int(error.exit_code), tuple(heard[logging.INFO]), tuple(heard[logging.WARNING]), tuple(error.lines)
            )
    then = validate(out)
    said, warned = (*heard[logging.INFO], *then.said), (*heard[logging.WARNING], *then.warned)
    return Outcome(then.code, said, warned, then.errors)


@contextmanager
def _heard() -> Iterator[dict[int, list[str]]]:
    """What is logged meanwhile, by its level, as on the terminal."""
    heard: dict[int, list[str]] = {logging.INFO: [], logging.WARNING: []}

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.setdefault(record.levelno, []).append(record.getMessage())

    log, ear = logging.getLogger("medseg_diff"), Ear()
    level = log.level
    log.addHandler(ear)
    log.setLevel(logging.INFO)
    try:
        yield heard
    finally:
        log.removeHandler(ear)
        log.setLevel(level)


def row_of(layout: Layout, outcome: Outcome) -> str:
    """A line of the table."""
    lines = [*_first(outcome.errors), *_first([f"warning: {text}" for text in outcome.warned])]
    lines = lines if outcome.errors else [*_first(outcome.said), *lines]
    text = "<br>".join(re.sub(r"([|<*_\[\]])", r"\\\1", line) for line in lines)
    return f"| {layout.what} | {outcome.word} | {text} |"


def _first(lines: Sequence[str]) -> list[str]:
    return [*lines[:SHOWN], *([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])]
