"""An error is one line: where, what was found, what to do; and an exit code."""

import pickle

import pytest

from medseg_diff import errors
from medseg_diff.data.tables.inputs import MissingChannels
from medseg_diff.errors import (
    ConfigError,
    ImageError,
    ManifestError,
    MedsegError,
    OutOfMemory,
    Problems,
    UsageError,
    plain,
    raise_all,
)

EXIT_CODES = {
    "UsageError": 2,
    "ConfigError": 2,
    "ManifestError": 2,
    "ImageError": 3,
    "CheckpointError": 4,
    "EnvironmentFault": 5,
    "Diverged": 6,
    "Preempted": 75,
}


@pytest.mark.parametrize(("kind", "code"), EXIT_CODES.items())
def test_the_exit_codes_are_those_that_scripts_rely_on(kind, code):
    assert getattr(errors, kind)("it", fix="do").exit_code == code


def test_every_kind_of_error_has_its_exit_code():
    kinds = {kind.__name__ for kind in MedsegError.__subclasses__()}
    assert kinds == {*EXIT_CODES, "Problems"}


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ({}, "is odd. Fix: mend it."),
        ({"file": "a.nii"}, "a.nii: is odd. Fix: mend it."),
        ({"case": "c"}, "[c] is odd. Fix: mend it."),
        ({"channel": "t1", "case": "c", "file": "a.nii"}, "[c/t1] a.nii: is odd. Fix: mend it."),
        ({"channel": "t1"}, "[t1] is odd. Fix: mend it."),
    ],
)
def test_the_line(place, line):
    error = ImageError("is odd.", fix="mend it.", **place)
    assert error.line == str(error) == line and error.lines == [line]


def test_a_line_stays_one_line():
    assert ImageError("two\nlines\tand   more", fix="").line == "two lines and more."


@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\u202egnp", r"a\u202egnp"),
        ("a\x07\x00b", r"a\x07\x00b"),
        ("a\u200bb", r"a\u200bb"),
        ("a\udcffb", r"a\udcffb"),
        ("Müller_山.nii", "Müller_山.nii"),
    ],
)
def test_what_steers_a_terminal_is_spelled_out(odd, shown):
    error = ImageError(f"is {odd}", fix="x", case=odd, channel="t1", file=odd)
    assert error.line == f"[{shown}/t1] {shown}: is {shown}. Fix: x." and error.line.isprintable()
    assert plain(f"  {odd}\n{odd} ") == f"{shown} {shown}"


def test_a_line_has_an_end():
    error = ImageError("x" * 10**6, fix="x", file="y" * 10**6)
    assert len(error.line) < 2000 and error.line.startswith("yyy") and error.line.endswith("Fix: x.")


def test_many_problems_are_counted_and_the_first_decides_the_exit_code():
    problems = Problems([ManifestError(f"row {number}") for number in range(25)] + [ImageError("x")])
    assert len(problems.lines) == 21 and problems.lines[-1] == "and 6 more problems."
    assert problems.exit_code == 2 and Problems([ImageError("x"), ConfigError("y")]).exit_code == 3
    assert Problems([ImageError("x")] * 20).lines[-1] == "x."
    with pytest.raises(ValueError, match="at least one"):
        Problems([])


def test_raise_all_raises_nothing_the_one_or_all():
    raise_all([])
    one = ImageError("x")
    with pytest.raises(ImageError) as caught:
        raise_all([one])
    assert caught.value is one
    with pytest.raises(Problems):
        raise_all([one, one])


@pytest.mark.parametrize(
    "error",
    [
        UsageError("is odd", fix="drop it", case="a", channel="t1", file="a.nii"),
        MissingChannels("lacks t2", fix="add it", case="a", present=("t1",)),
        Problems([ImageError("one", case="a"), UsageError("two", file="b")]),
        OutOfMemory("memory runs out"),
    ],
)
def test_an_error_goes_from_process_to_process(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.lines, again.exit_code) == (type(error), error.lines, error.exit_code)
    assert getattr(again, "present", None) == getattr(error, "present", None) and again.args == error.args
