"""SIGTERM and SIGUSR1, sent by schedulers before they kill: remembered until a step is over; elsewhere they end the work.

Elsewhere is where no steps are taken, such as while cases are prepared or a study predicts its patients.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from medseg_diff.errors import Preempted

POLITE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopSignals:
    """Inside, the polite signals set `asked` and do nothing else; afterwards they mean what they meant before.

    In another thread than the main one, which alone hears signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in POLITE}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True  # loader workers inherit this, and so outlive a signal to the whole group


class _Told(BaseException):
    """A polite signal was heard; no fault, so that nothing that survives faults takes it for one."""


@contextmanager
def preemptible() -> Iterator[None]:
    """Inside, a polite signal stops what this process does, wherever it is: what was finished is on the disk.

    `StopSignals` inside of it lets a step end first. Raises: Preempted.
    """
    process = os.getpid()

    def hear(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise _Told
        signal.signal(number, signal.SIG_DFL)  # a child that was forked inside ends as it would have
        os.kill(os.getpid(), number)

    alone = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, hear) for number in POLITE} if alone else {}
    try:
        yield
    except _Told:
        raise Preempted("what was finished is kept", fix="continue with the same command and --resume auto") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
