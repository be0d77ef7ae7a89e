"""What a person sees while a verb works: messages and progress bars in a terminal or a notebook, or nothing."""

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from medseg_diff.errors import plain

log = logging.getLogger("medseg_diff")

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")

WIDTH, PAUSE_SECONDS = 24, 0.2  # of a bar in a notebook, and between two drawings of it


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
    log.handlers[:] = [_handler(sys.stderr)]
    log.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG))
    log.propagate = False
    _choice.progress = progress and verbosity >= 0 and sys.stderr.isatty()


def _handler(stream: Any) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Plain("%(message)s"))
    return handler


def shown_at_a_prompt(function: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
    """The function, its messages and bars shown while it works where a person calls it from a notebook or at Python's
    prompt. A script decides for itself, and so does whoever has given the logger `medseg_diff` a level or a handler."""

    @functools.wraps(function)
    def call(*words: Parameters.args, **options: Parameters.kwargs) -> Answer:
        with _shown():
            return function(*words, **options)

    return call


@contextmanager
def _shown() -> Iterator[None]:
    if not (in_notebook() or hasattr(sys, "ps1")) or log.handlers or log.level != logging.NOTSET or _choice.progress:
        yield
        return
    before = log.propagate
    if not log.isEnabledFor(logging.INFO):  # else the root's handlers show them
        log.handlers[:] = [_handler(sys.stdout if in_notebook() else sys.stderr)]  # a notebook shows stderr as an alarm
        log.setLevel(logging.INFO)
        log.propagate = False
    _choice.progress = in_notebook() or sys.stderr.isatty()
    try:
        yield
    finally:
        log.handlers.clear()
        log.setLevel(logging.NOTSET)
        log.propagate = before
        _choice.progress = False


def in_notebook() -> bool:
    """Whether this is a kernel of Jupyter, Colab and the like."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar with the time that is left; yields advance(n=1, note="")."""
    if not _choice.progress:
        yield lambda n=1, note="": None
        return
    if in_notebook():
        yield _NotebookBar(title, total).advance
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


class _NotebookBar:
    """A line of text that is drawn anew in its place: every notebook can do that, also without ipywidgets."""

    def __init__(self, title: str, total: int) -> None:
        from IPython.display import display

        self.title, self.total, self.done, self.note = plain(title), total, 0, ""
        self.started = self.drawn = time.monotonic()
        self.handle = display(self._line(), raw=True, display_id=True)

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + n, plain(note) or self.note
        now = time.monotonic()
        if self.done >= self.total or now - self.drawn >= PAUSE_SECONDS:
            self.drawn = now
            self.handle.update(self._line(), raw=True)

    def _line(self) -> dict[str, str]:
        full = WIDTH * self.done // max(self.total, 1)
        taken = time.monotonic() - self.started
        left = taken if self.done >= self.total else taken * (self.total - self.done) / max(self.done, 1)
        minutes, seconds = divmod(round(left), 60)
        said = f"{minutes}:{seconds:02}" + ("" if self.done >= self.total else " left") if self.done else ""
        bar = "█" * min(full, WIDTH) + "░" * (WIDTH - full)
        return {"text/plain": f"{self.title} {bar} {self.done}/{self.total} {said} {self.note}".rstrip()}
