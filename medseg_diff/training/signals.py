"""SIGTERM and SIGUSR1 while training: what a scheduler sends before it kills. Remembered until the step is over."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

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
