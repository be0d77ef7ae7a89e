"""What a person sees while a verb works: messages, and progress as bars in a terminal or notebook, or as lines in a log."""

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from medseg_diff.errors import plain, unwritable

log = logging.getLogger("medseg_diff")

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")

WIDTH, PAUSE_SECONDS = 24, 0.2  # of a bar in a notebook, and between two drawings of it


WHEN = "%Y-%m-%d %H:%M:%S"  # the machine's own time
EARLY = 0.05  # of the work: what comes before the first step of it is most of the time until then
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
    """How progress is shown, as bars or lines, whether as lines in a file too, and the bars that are open, the outermost
    first."""

    bars: bool = False
    lines: bool = False
    file: logging.Handler | None = None
    open: list[_Counted] = field(default_factory=list)
    next_line: float = 0.0


_progress = _Progress()


class _Plain(logging.Formatter):
    """Lines as they are, without what would move a terminal's cursor; `--debug` keeps its tracebacks.

    Warnings and errors begin with that word, to be found by it; the time stands before everything else, or `always`.
    """

    def __init__(self, *, timed: bool = False, always: bool = False) -> None:
        super().__init__("%(message)s", WHEN)
        self.timed, self.always = timed, always

    def format(self, record: logging.LogRecord) -> str:
        text = "\n".join(_indented(line) for line in super().format(record).splitlines())
        grave = record.levelno >= logging.WARNING
        if grave:
            text = f"{record.levelname.lower()}: {text}"
        return f"{self.formatTime(record, WHEN)} {text}" if self.always or (self.timed and not grave) else text


def _indented(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" "))] + plain(line, longest=10_000)


def _is_shown(record: logging.LogRecord) -> bool:
    """Whether a line belongs on the screen: that of a bar that is drawn there belongs into a file only."""
    return _progress.lines or not getattr(record, "of_bar", False)


def configure(*, verbosity: int, progress: bool, log_file: Path | None = None) -> None:
    """Called once by the command line: -1 quiet, 0 normal, 1 and more verbose. Progress is bars on a terminal, and in a
    log a line a minute, with the time. `log_file` gets everything, whatever is shown.

    Raises: EnvironmentFault where that file cannot be written.
    """
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    screen = _handler(sys.stderr, timed=not sys.stderr.isatty())
    screen.setLevel(level)
    screen.addFilter(_is_shown)
    _progress.file = None if log_file is None else _into(log_file)
    log.handlers[:] = [screen, *([_progress.file] if _progress.file else [])]
    log.setLevel(logging.DEBUG if _progress.file else level)
    log.propagate = False
    shown = progress and verbosity >= 0
    _progress.bars = shown and sys.stderr.isatty()
    _progress.lines = shown and not _progress.bars


def _into(path: Path) -> logging.Handler:
    """Lines at the end of a file, each with the time. Raises: EnvironmentFault."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise unwritable(error, path.name, fix="choose another --log-file") from None
    handler.setFormatter(_Plain(always=True))
    return handler


def note(level: int, text: str) -> None:
    """A line for the log file alone, where there is one: what stands on the screen already, or need not."""
    if _progress.file:
        _progress.file.handle(log.makeRecord(log.name, level, "", 0, text, (), None))


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Says with -v how long something took."""
    began = time.perf_counter()
    yield
    log.debug("%s: %.3g s", what, time.perf_counter() - began)


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
    _progress.file = None


def _handler(stream: Any, *, timed: bool = False) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Plain(timed=timed))
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
    elif not _progress.file:
        with _drawn(title, total, done) as drawn:
            yield drawn
    else:
        with _counted(title, total, done) as counted, _drawn(title, total, done) as drawn:

            def advance(n: int = 1, note: str = "") -> None:
                counted(n)
                drawn(n, note)

            yield advance


@contextmanager
def _drawn(title: str, total: int, done: int) -> Iterator[Callable[..., None]]:
    """On a terminal or in a notebook."""
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
        if (_progress.lines or _progress.file) and now >= _progress.next_line:
            _progress.next_line = now + EVERY_SECONDS
            log.info("%s", _in_words(bars, now), extra={"of_bar": True})

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
    whole = first.total - first.before
    telling = done > 0 and (seconds >= EVERY_SECONDS or done >= EARLY * whole)
    return counts + (f", {duration(seconds * (whole - done) / done)} left" if telling else "")


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
