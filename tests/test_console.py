"""Progress in a log: a line a minute with the time that is left, and none where it is not wanted."""

import logging
import re
import sys

import pytest

from medseg_diff import console
from medseg_diff.console import bar, configure, duration
from medseg_diff.errors import EnvironmentFault


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The console's own clock, and the state of its log put back at the end."""
    clock, log = Clock(), logging.getLogger("medseg_diff")
    before = (log.handlers[:], log.level, log.propagate)
    monkeypatch.setattr(console.time, "monotonic", clock)
    monkeypatch.setattr(console, "_progress", console._Progress())
    yield clock
    log.handlers[:], log.level, log.propagate = before


def lines_of(err):
    """What a log's lines say after the time, which each of them begins with."""
    lines = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)", line) for line in err.splitlines()]
    return [line[1] for line in lines]


def work(clock, *, cases, seconds, done=0):
    with bar("segmenting", cases, done=done) as advance:
        for _ in range(cases - done):
            clock.now += seconds
            advance(note="a case")


def test_a_log_has_a_line_a_minute(clock, capsys):
    configure(verbosity=0, progress=True)
    work(clock, cases=155, seconds=2)
    lines = lines_of(capsys.readouterr().err)
    assert lines == [
        "segmenting 3/155",  # too early to tell
        "segmenting 33/155, 4 min left",
        "segmenting 63/155, 3 min left",
        "segmenting 93/155, 2 min left",
        "segmenting 123/155, 64 s left",
        "segmenting 153/155, 4 s left",
    ]


def test_inside_of_a_long_case_its_own_progress_is_told(clock, capsys):
    configure(verbosity=0, progress=True)
    with bar("segmenting", 2) as advance:
        for name in ("a", "b"):
            with bar(f"  {name}", 4) as further:
                for _ in range(4):
                    clock.now += 45
                    further()
            advance(note=name)
    assert lines_of(capsys.readouterr().err) == [
        "segmenting 0/2, a 1/4, 5 min left",
        "segmenting 0/2, a 3/4, 4 min left",
        "segmenting 1/2, b 1/4, 2 min left",
        "segmenting 1/2, b 3/4, 45 s left",
    ]


def test_what_was_done_before_says_nothing_of_the_time_that_is_left(clock, capsys):
    configure(verbosity=0, progress=True)
    work(clock, cases=100, seconds=50, done=98)
    assert lines_of(capsys.readouterr().err) == ["segmenting 99/100, 50 s left"]


def test_short_bars_one_after_the_other_are_no_more_than_a_line_a_minute(clock, capsys):
    configure(verbosity=0, progress=True)
    for _ in range(20):
        work(clock, cases=4, seconds=2)
    assert len(capsys.readouterr().err.splitlines()) == 3  # of 160 seconds


@pytest.mark.parametrize("chosen", [{"verbosity": -1, "progress": True}, {"verbosity": 0, "progress": False}])
def test_with_q_or_no_progress_there_is_no_line(clock, capsys, chosen):
    configure(**chosen)
    work(clock, cases=155, seconds=2)
    assert capsys.readouterr().err == ""


def test_warnings_begin_with_that_word_and_the_rest_with_the_time_off_a_terminal(clock, capsys, monkeypatch):
    configure(verbosity=0, progress=True)
    console.log.warning("it is late")
    console.log.error("[a] it is broken")
    console.log.info("done")
    console.log.debug("a detail")
    first, second, third = capsys.readouterr().err.splitlines()
    assert (first, second) == ("warning: it is late", "error: [a] it is broken") and lines_of(third) == ["done"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure(verbosity=1, progress=True)
    console.log.info("done")
    with console.timed("reading"):
        pass
    first, second = capsys.readouterr().err.splitlines()
    assert first == "done" and re.fullmatch(r"reading: \S+ s", second)


@pytest.mark.parametrize("chosen", [{"verbosity": -1, "progress": True}, {"verbosity": 0, "progress": False}])
def test_a_log_file_has_everything_with_the_time(clock, capsys, monkeypatch, tmp_path, chosen):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure(**chosen, log_file=tmp_path / "logs" / "log.txt")
    console.log.warning("it is late")
    work(clock, cases=3, seconds=30)
    configure(**chosen, log_file=tmp_path / "logs" / "log.txt")  # goes on at its end
    console.log.debug("a detail")
    console.note(logging.INFO, "error: broken")
    said = lines_of((tmp_path / "logs" / "log.txt").read_text())
    lines = ["segmenting 1/3, 60 s left", "segmenting 3/3, 0 s left"]
    assert said == ["warning: it is late", *lines, "a detail", "error: broken"]
    assert "a detail" not in capsys.readouterr().err


def test_beside_a_bar_the_lines_of_a_log_file_stay_off_the_screen(clock, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure(verbosity=0, progress=True, log_file=tmp_path / "log.txt")
    work(clock, cases=3, seconds=30)
    err = capsys.readouterr().err
    assert "3/3" in err and "left" not in err and "left" in (tmp_path / "log.txt").read_text()


def test_a_log_file_that_cannot_be_written_is_the_machines_fault(clock, tmp_path):
    with pytest.raises(EnvironmentFault, match=r"cannot be written .* --log-file"):
        configure(verbosity=0, progress=True, log_file=tmp_path)


def test_on_a_terminal_it_is_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure(verbosity=0, progress=True)
    work(clock, cases=3, seconds=100)
    said = capsys.readouterr().err
    assert "3/3" in said and "left" not in said


def test_functions_of_the_package_say_nothing_of_their_own_accord(clock, capsys):
    work(clock, cases=155, seconds=2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (45 * 60, "45 min"), (3.5 * 3600, "3.5 h"), (41 * 86400, "41 days")],
)
def test_durations_duration(seconds, words):
    assert duration(seconds) == words
