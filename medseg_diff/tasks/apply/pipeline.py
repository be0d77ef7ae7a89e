"""Cases in three steps: while one is sampled, the next is read and the last is written.

Threads and not processes: what reading and writing take, zlib, digests and NumPy, runs outside of Python's lock, and a case
is handed on without copying it. Sampling stays in the thread that asks, where Ctrl-C is heard.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

from medseg_diff.cluster import Named
from medseg_diff.console import log
from medseg_diff.errors import MedsegError, OutOfMemory

Item = TypeVar("Item", bound=Named)
Answer = TypeVar("Answer")
# The steps of one item: it pauses when it is read and when it is sampled, and returns the answer when it is written. It may
# end before. To close it in a pause undoes what it began.
Stages = Generator[None, None, Answer]


@dataclass(frozen=True)
class _End(Generic[Answer]):
    """How the stages of an item ended."""

    outcome: Answer | MedsegError


@dataclass(frozen=True)
class _UnderWay(Generic[Item, Answer]):
    """An item whose next step is done in another thread, or was."""

    item: Item
    stages: Stages[Answer]
    step: Future[_End[Answer] | None]


def overlapped(
    items: Iterable[Item], begun: Callable[[Item], Stages[Answer]]
) -> Generator[tuple[Item, Answer | MedsegError], None, None]:
    """Each item with the answer of its stages, or the error of ours that it raised, in the order of the items. Never more
    than one is read ahead, nor more than one left to be written.

    Those that memory was too small for beside others are done again at the end, each alone. To close the generator waits
    for what is being read and written, and undoes what is not finished then.
    """
    short = list[Item]()
    yield from _beside_others(iter(items), begun, short)
    yield from in_turn(short, begun)


def _beside_others(
    waiting: Iterator[Item], begun: Callable[[Item], Stages[Answer]], short: list[Item]
) -> Generator[tuple[Item, Answer | MedsegError], None, None]:
    """As `overlapped`, but that those for which memory was too small are left to `short`."""
    now: _UnderWay[Item, Answer] | None = None
    ahead: _UnderWay[Item, Answer] | None = None
    behind: _UnderWay[Item, Answer] | None = None
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:

        def reading() -> _UnderWay[Item, Answer] | None:
            for item in waiting:
                stages = begun(item)
                return _UnderWay(item, stages, reader.submit(_step, stages))
            return None

        try:
            while now := ahead or reading():
                ahead, end = None, now.step.result()
                if end is None:
                    ahead = reading()
                    end = _step(now.stages)
                if behind:
                    yield from _ended(behind, behind.step.result(), short)
                behind = _UnderWay(now.item, now.stages, writer.submit(_step, now.stages)) if end is None else None
                yield from _ended(now, end, short)
            if behind:
                yield from _ended(behind, behind.step.result(), short)
        finally:
            left = [each for each in (behind, now, ahead) if each]
            wait([each.step for each in left])
            for each in left:
                each.stages.close()


def in_turn(
    items: Iterable[Item], begun: Callable[[Item], Stages[Answer]]
) -> Generator[tuple[Item, Answer | MedsegError], None, None]:
    """The same one item after the other."""
    for item in items:
        try:
            outcome: Answer | MedsegError = answer_of(begun(item))
        except MedsegError as error:
            outcome = error
        yield item, outcome


def answer_of(stages: Stages[Answer]) -> Answer:
    """All of them. Raises: what they raise."""
    while True:
        try:
            next(stages)
        except StopIteration as end:
            answer: Answer = end.value
            return answer


def _step(stages: Stages[Answer]) -> _End[Answer] | None:
    """The next one, and how all ended where that was the last."""
    try:
        next(stages)
    except StopIteration as end:
        return _End(end.value)
    except MedsegError as error:
        return _End(error)
    return None


def _ended(
    done: _UnderWay[Item, Answer], end: _End[Answer] | None, short: list[Item]
) -> Generator[tuple[Item, Answer | MedsegError], None, None]:
    """The outcome of an item that has one, unless it is to be done again: then `short` grows."""
    if end is None:
        return
    if isinstance(end.outcome, OutOfMemory):
        log.warning(
            "[%s] memory ran out while other cases were in progress: retrying it alone after them", done.item.name
        )
        end.outcome.without_trace()
        short.append(done.item)
    else:
        yield done.item, end.outcome
