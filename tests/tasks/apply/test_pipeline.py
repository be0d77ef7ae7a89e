"""Three steps of several items at once: what overlaps, how much of it, in which order it ends, and what is left undone."""

import threading
from contextlib import closing
from typing import NamedTuple

import pytest

from medseg_diff.errors import ImageError, OutOfMemory
from medseg_diff.tasks.apply.pipeline import answer_of, overlapped

SECONDS = 30.0  # until a step that waits for another one gives up


class Item(NamedTuple):
    name: str


ITEMS = [Item(name) for name in "abcd"]
STEPS = ("read", "sample", "write")


class Log:
    """Courses that note what they do; `meanwhile` is {(step, name): what is done in it}."""

    def __init__(self, meanwhile=None):
        self.meanwhile, self.said, self.changed = meanwhile or {}, [], threading.Condition()

    def say(self, *word):
        with self.changed:
            self.said.append(word)
            self.changed.notify_all()

    def wait_for(self, *word):
        with self.changed:
            assert self.changed.wait_for(lambda: word in self.said, SECONDS), word

    def of(self, name):
        return [step for step, other in self.said if other == name]

    def stages(self, item):
        try:
            for step in STEPS:
                self.say(step, item.name)
                self.meanwhile.get((step, item.name), lambda log: None)(self)
                if step != "write":
                    yield
            return item.name.upper()
        finally:
            self.say("end", item.name)


def raising(error):
    def step(log):
        raise error

    return step


def test_while_one_is_sampled_the_next_is_read_and_the_last_written():
    def neighbours(log):
        log.wait_for("write", "a")
        log.wait_for("read", "c")

    def until_sampled(log):
        log.wait_for("sample", "b")

    log = Log({("sample", "b"): neighbours, ("write", "a"): until_sampled, ("read", "c"): until_sampled})
    assert list(overlapped(ITEMS, log.stages)) == [(item, item.name.upper()) for item in ITEMS]
    assert all(log.of(item.name) == [*STEPS, "end"] for item in ITEMS)
    assert [name for step, name in log.said if step == "sample"] == list("abcd")


def test_no_more_than_one_is_ahead_and_one_behind():
    def hold(log):
        begun = {name for step, name in log.said if step == "read"}
        ended = {name for step, name in log.said if step == "end"}
        assert len(begun - ended) <= 3

    log = Log({(step, item.name): hold for step in STEPS for item in ITEMS})
    assert len(list(overlapped(ITEMS, log.stages))) == 4


@pytest.mark.parametrize("step", STEPS)
def test_errors_stand_in_the_order_of_the_items(step):
    error = ImageError("bad")
    log = Log({(step, "b"): raising(error)})
    assert [outcome for _, outcome in overlapped(ITEMS, log.stages)] == ["A", error, "C", "D"]


@pytest.mark.parametrize("step", STEPS)
def test_whoever_stops_at_an_error_has_what_came_before_it_and_nothing_after(step):
    log = Log({(step, "b"): raising(ImageError("bad"))})
    with closing(overlapped(ITEMS, log.stages)) as outcomes:
        for _, outcome in outcomes:
            if isinstance(outcome, ImageError):
                break
    assert log.of("a") == [*STEPS, "end"]
    for begun in (log.of("c"), log.of("d")):  # and undone
        assert begun in ([], ["read", "end"], ["read", "sample", "end"])


def test_an_interrupt_lets_what_is_being_written_end():
    def until_interrupted(log):
        log.wait_for("end", "b")

    log = Log({("write", "a"): until_interrupted, ("sample", "b"): raising(KeyboardInterrupt())})
    with pytest.raises(KeyboardInterrupt):
        list(overlapped(ITEMS, log.stages))
    assert log.of("a") == [*STEPS, "end"]
    assert log.of("b") == ["read", "sample", "end"] and log.of("c") == ["read", "end"]


@pytest.mark.parametrize("step", STEPS)
def test_a_bug_ends_all(step):
    log = Log({(step, "b"): raising(ZeroDivisionError())})
    with pytest.raises(ZeroDivisionError):
        list(overlapped(ITEMS, log.stages))
    assert {name: log.of(name)[-1] for name in "ab"} == {"a": "end", "b": "end"}
    assert log.of("a") == [*STEPS, "end"] and "write" not in log.of("c")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("too_large", [False, True])
def test_one_that_memory_was_too_small_for_beside_others_is_done_again_alone(step, too_large):
    def tight(log):
        alone = all(log.of(item.name)[-1:] == ["end"] for item in ITEMS if item.name != "b")
        if too_large or not alone:
            raise OutOfMemory("memory runs out")

    log = Log({(step, "b"): tight})
    outcomes = list(overlapped(ITEMS, log.stages))
    assert [item.name for item, _ in outcomes] == list("acdb")
    assert isinstance(outcomes[-1][1], OutOfMemory) if too_large else outcomes[-1][1] == "B"


def test_a_course_may_end_early():
    def stages(item):
        if item.name == "b":
            return False
        yield
        if item.name == "c":
            return False
        yield
        return True

    assert [outcome for _, outcome in overlapped(ITEMS, stages)] == [True, False, False, True]
    assert [answer_of(stages(item)) for item in ITEMS] == [True, False, False, True]
