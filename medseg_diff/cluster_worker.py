"""A worker of a cluster: a process that opens a model once and does one piece of work after the other."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from medseg_diff.console import log
from medseg_diff.errors import EnvironmentFault, MedsegError

EQUAL = ("medseg-diff", "torch", "monai", "numpy", "scipy")  # versions, or results could differ in rounding
Told = tuple[Any, list[tuple[int, str]]]  # an answer, and the messages on the way to it with their levels


def versions_here() -> dict[str, str]:
    """Of what decides the bytes of results, as far as it is installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in EQUAL:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class Worker:
    """What it does, in the words of the process that asks: answers are those of the work, or errors of ours as they are."""

    def __init__(self, folder: str, threads: int, level: int) -> None:
        self.folder, self.threads, self.said = Path(folder), threads, _Said()
        os.environ["OMP_NUM_THREADS"] = str(threads)
        log.handlers[:], log.propagate = [self.said], False
        log.setLevel(level)

    def open(self, opened: Callable[[], Callable[[Any, int], Any]], versions: dict[str, str]) -> Told:
        return self._answer(lambda: self._open(opened, versions))

    def work(self, item: Any, lost: int) -> Told:
        return self._answer(lambda: self.do(item, lost))

    def _open(self, opened: Callable[[], Callable[[Any, int], Any]], versions: dict[str, str]) -> None:
        for name, here in versions_here().items():
            if here != versions.get(name):
                found = f"a worker has {name} {here}, this process has {versions.get(name)}"
                raise EnvironmentFault(found, fix="install the same versions on all machines")
        try:
            os.chdir(self.folder)
        except OSError:
            found, fix = "does not exist on the machine of a worker", "use a disk that all machines share"
            raise EnvironmentFault(found, fix=fix, file=self.folder.name) from None
        if torch := sys.modules.get("torch"):  # what is sent brings it, where it is needed
            torch.set_num_threads(self.threads)
        self.do = opened()

    def _answer(self, ask: Callable[[], Any]) -> Told:
        """What is answered or raised, and what was said meanwhile."""
        try:
            answer = ask()
        except MedsegError as error:
            answer = error.without_trace()
        return answer, self.said.taken()


class _Said(logging.Handler):
    """Keeps messages for the process that asked for the work."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[int, str]]:
        taken, self.records = self.records, []
        return taken
