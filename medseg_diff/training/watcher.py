"""What a training tells others while it goes on. Whatever they do with it, they cannot stop it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from medseg_diff.console import log
from medseg_diff.run import Run, TrajectoryPicture


class Watcher(Protocol):
    """Hears of a training, in the process that writes its run folder; by default it does nothing."""

    def begin(self, run: Run) -> None:
        """The data are read, and the training begins or goes on."""
        return

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        """What was measured at a step, as it stands in metrics.csv."""
        return

    def trajectory(self, picture: TrajectoryPicture) -> None:
        """A denoising trajectory was drawn."""
        return

    def end(self, run: Run, *, finished: bool, weights: Sequence[Path]) -> None:
        """It is over: `finished` and sealed, with the best `weights` of every network; or broken off."""
        return


class Watchers:
    """All who watch a training. One that fails is named, and hears nothing more."""

    def __init__(self, watchers: Iterable[Watcher] = ()) -> None:
        self._watchers = list(watchers)

    def tell(self, what: Callable[[Watcher], None]) -> None:
        """Call `what` with each of them."""
        for watcher in list(self._watchers):
            try:
                what(watcher)
            except Exception as error:  # it may fail in any way its libraries know
                self._watchers.remove(watcher)
                name = type(watcher).__name__
                log.warning("%s failed (%s); the training continues without it", name, type(error).__name__)
