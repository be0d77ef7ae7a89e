"""What a person sees while a verb works: messages, and progress as bars in a terminal or notebook, or as lines in a log."""

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from medseg_diff.errors import plain

log = logging.getLogger("medseg_diff")

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")

WIDTH, PAUSE_SECONDS = 24, 0.2  # of a bar in a notebook, and between two drawings of it


FIRST_SECONDS, EVERY_SECONDS = 5.0, 60.0  # from the start of a bar to its first line in a log, and from line to line


@dataclass
class _Counted:
    """A bar as lines: `done` of `total`, of which `before` were done at the moment `began`."""

    title: str
    total: int
    began: float
    before: int
    done: int


@dataclass
class _Progress:
    """How progress is shown, and the bars that are open where it is lines, the outermost first."""

    bars: bool = False
    lines: bool = False
    open: list[_Counted] = field(default_factory=list)
    next_line: float = 0.0


_progress = _Progress()


class _Plain(logging.Formatter):
    """Lines as they are, without what would move a terminal's cursor; `--debug` keeps its tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(_indented(line) for line in super().format(record).splitlines())


def _indented(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" "))] + plain(line, longest=10_000)


def configure(*, verbosity: int, progress: bool) -> None:
    """Called once by the command line: -1 quiet, 0 normal, 1 and more verbose. Progress is bars on a terminal, and in a
    log a line a minute."""
    log.handlers[:] = [_handler(sys.stderr)]
    log.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG))
    log.propagate = False
    shown = progress and verbosity >= 0
    _progress.bars = shown and sys.stderr.isatty()
    _progress.lines = shown and not _progress.bars


def duration(seconds: float) -> str:
    """12 s, 7 min, 3.5 h, 41 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def quiet() -> None:
    """Warnings only from here on: of several processes at one training the first speaks."""
    log.setLevel(max(log.level, logging.WARNING))
    _progress.bars = _progress.lines = False


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
    if not (in_notebook() or hasattr(sys, "ps1")) or log.handlers or log.level != logging.NOTSET or _progress.bars:
        yield
        return
    before = log.propagate
    if not log.isEnabledFor(logging.INFO):  # else the root's handlers show them
        log.handlers[:] = [_handler(sys.stdout if in_notebook() else sys.stderr)]  # a notebook shows stderr as an alarm
        log.setLevel(logging.INFO)
        log.propagate = False
    _progress.bars = in_notebook() or sys.stderr.isatty()
    try:
        yield
    finally:
        log.handlers.clear()
        log.setLevel(logging.NOTSET)
        log.propagate = before
        _progress.bars = False


def in_notebook() -> bool:
    """Whether this is a kernel of Jupyter, Colab and the like."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


@contextmanager
def bar(title: str, total: int, *, done: int = 0) -> Iterator[Callable[..., None]]:
    """Progress with the time that is left, as a bar or as lines in a log; yields advance(n=1, note=""). So much was `done`
    before it began."""
    if not _progress.bars:
        with _counted(title, total, done) as counted:
            yield counted
        return
    if in_notebook():
        yield _NotebookBar(title, total, done).advance
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
        task = progress.add_task(title, total=total, completed=done, note="")

        def advance(n: int = 1, note: str = "") -> None:
            progress.advance(task, n)
            if note:
                progress.update(task, note=note)

        yield advance


@contextmanager
def _counted(title: str, total: int, done: int) -> Iterator[Callable[..., None]]:
    """At most one line a minute, of all bars that are open."""
    each, bars = _Counted(title.strip(), total, time.monotonic(), done, done), _progress.open

    def advance(n: int = 1, note: str = "") -> None:
        each.done += n
        now = time.monotonic()
        if _progress.lines and now >= _progress.next_line:
            _progress.next_line = now + EVERY_SECONDS
            log.info("%s", _in_words(bars, now))

    if not bars:
        _progress.next_line = max(_progress.next_line, each.began + FIRST_SECONDS)
    bars.append(each)
    try:
        yield advance
    finally:
        bars.remove(each)


def _in_words(bars: list[_Counted], now: float) -> str:
    """`segmenting 12/155, BraTS_0012 40/200, 3 min left`."""
    first, share = bars[0], 0.0
    for each in reversed(bars[1:]):
        share = (each.done + share) / max(each.total, 1)
    done, seconds = first.done - first.before + min(share, 1.0), now - first.began
    counts = ", ".join(f"{each.title} {each.done}/{each.total}" for each in bars)
    return counts + (f", {duration(seconds * (first.total - first.before - done) / done)} left" if done else "")


class _NotebookBar:
    """A line of text that is drawn anew in its place: every notebook can do that, also without ipywidgets."""

    def __init__(self, title: str, total: int, done: int) -> None:
        from IPython.display import display

        self.title, self.total, self.before, self.done, self.note = plain(title), total, done, done, ""
        self.started = self.drawn = time.monotonic()
        self.handle = display(self._line(), raw=True, display_id=True)

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + n, plain(note) or self.note
        now = time.monotonic()
        if self.done >= self.total or now - self.drawn >= PAUSE_SECONDS:
            self.drawn = now
            self.handle.update(self._line(), raw=True)

    def _line(self) -> dict[str, str]:
        full = min(WIDTH * self.done // max(self.total, 1), WIDTH)
        drawn = "█" * full + "░" * (WIDTH - full)
        taken, here = time.monotonic() - self.started, self.done - self.before
        said = f"{duration(taken * (self.total - self.done) / here)} left" if here else ""
        said = duration(taken) if self.done >= self.total else said
        return {"text/plain": f"{self.title} {drawn} {self.done}/{self.total} {said} {self.note}".rstrip()}
