"""What shows where nobody has set up logging: all at a prompt and in a notebook, and nothing of a script's."""

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from medseg_diff import console


@console.shown_at_a_prompt
def verb(cases, *, note=""):
    """A verb."""
    with console.bar("working", cases) as advance:
        for _ in range(cases):
            console.log.info("a case")
            advance(note=note)
    return cases


@pytest.fixture(autouse=True)
def nobody_has_set_up_logging(monkeypatch):
    """As in a fresh process; pytest's own handlers stand at the root, which has no level for INFO."""
    monkeypatch.setattr(console.log, "handlers", [])
    monkeypatch.setattr(console.log, "level", logging.NOTSET)
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    console.log.manager._clear_cache()
    monkeypatch.delattr(sys, "ps1", raising=False)
    yield
    console.log.manager._clear_cache()


@pytest.fixture
def notebook(monkeypatch):
    """A kernel, as far as it is asked; returns what is displayed, an area each, as it stands after each drawing."""
    areas = []

    def display(content, *, raw, display_id):
        assert raw and display_id
        areas.append([content["text/plain"]])
        return SimpleNamespace(update=lambda content, *, raw: areas[-1].append(content["text/plain"]))

    ipython, shown = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    ipython.display, shown.display = shown, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    return areas


def test_a_script_sees_nothing(capsys):
    assert verb(2) == 2
    assert capsys.readouterr() == ("", "")


def test_a_prompt_shows_messages_while_the_call_lasts(capsys, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    before = (logging.root.handlers[:], logging.root.level)
    verb(2)
    assert capsys.readouterr().err == "a case\na case\n"
    console.log.info("behind it")
    assert capsys.readouterr() == ("", "")
    assert (logging.root.handlers, logging.root.level) == before
    assert console.log.handlers == [] and console.log.level == logging.NOTSET and console.log.propagate


def test_a_notebook_shows_messages_and_a_bar_in_its_place(capsys, notebook):
    verb(2, note="patient_1")
    assert capsys.readouterr() == ("a case\na case\n", "")  # stderr looks like an alarm there
    (area,) = notebook
    assert area[0] == f"working {'░' * 24} 0/2"
    assert area[-1] == f"working {'█' * 24} 2/2 0 s patient_1"


def test_a_bar_says_what_is_left(notebook, monkeypatch):
    clock = iter([0.0, 0.0, 30.0, 30.0, 90.0, 90.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console._shown(), console.bar("working", 3) as advance:
        advance()
        advance(2)
    assert notebook[0][1:] == [f"working {'█' * 8}{'░' * 16} 1/3 60 s left", f"working {'█' * 24} 3/3 2 min"]


def test_what_was_done_before_says_nothing_of_the_time_that_is_left(notebook, monkeypatch):
    clock = iter([0.0, 0.0, 10.0, 10.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console._shown(), console.bar("training", 100, done=90) as advance:
        advance(5)
    assert notebook[0] == [f"training {'█' * 21}{'░' * 3} 90/100", f"training {'█' * 22}{'░' * 2} 95/100 10 s left"]


def test_it_is_drawn_no_more_often_than_one_can_see(notebook):
    with console._shown(), console.bar("working", 10_000) as advance:
        for _ in range(10_000):
            advance()
    assert len(notebook[0]) < 50


def test_an_error_leaves_nothing_behind(notebook):
    @console.shown_at_a_prompt
    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    assert console.log.handlers == [] and not console._progress.bars


def test_whoever_has_set_up_logging_is_left_alone(capsys, notebook):
    console.log.setLevel(logging.WARNING)
    verb(1)
    assert capsys.readouterr() == ("", "") and notebook == []
    assert console.log.level == logging.WARNING


def test_what_the_root_shows_is_not_shown_twice(capsys, notebook, monkeypatch):
    monkeypatch.setattr(logging.root, "level", logging.INFO)
    console.log.manager._clear_cache()
    verb(1)
    assert capsys.readouterr() == ("", "")  # the root's handlers are pytest's, which keep it
    assert len(notebook) == 1


def test_a_verb_within_a_verb_shows_once(capsys, notebook):
    console.shown_at_a_prompt(lambda: verb(1))()
    assert capsys.readouterr().out == "a case\n"


def test_the_function_looks_as_it_is():
    assert verb.__name__ == "verb" and verb.__doc__ == "A verb."
