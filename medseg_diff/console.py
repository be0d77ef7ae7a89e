"""What a person sees while a verb works: messages and progress bars on stderr, or nothing."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from medseg_diff.errors import plain

log = logging.getLogger("medseg_diff")


@dataclass
class _Choice:
    progress: bool = False


_choice = _Choice()


class _Plain(logging.Formatter):
    """Lines as they are, without what would move a terminal's cursor; `--debug` keeps its tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(_indented(line) for line in super().format(record).splitlines())


def _indented(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" "))] + plain(line, longest=10_000)


def configure(*, verbosity: int, progress: bool) -> None:
    """Called once by the command line: -1 quiet, 0 normal, 1 and more verbose. Bars show on a terminal only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG))
    log.propagate = False
    _choice.progress = progress and verbosity >= 0 and sys.stderr.isatty()


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar with the time that is left; yields advance(n=1, note="")."""
    if not _choice.progress:
        yield lambda n=1, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        task = progress.add_task(title, total=total, note="")

        def advance(n: int = 1, note: str = "") -> None:
            progress.advance(task, n)
            if note:
                progress.update(task, note=note)

        yield advance
