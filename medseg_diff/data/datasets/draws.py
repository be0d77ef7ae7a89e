"""MONAI's random changes drawn from one state, and without its record of affines: both for the time that they save."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class Draw:
    """Which of MONAI's changes happen to one image, and how: all from one state.

    MONAI would seed each of them by itself, which takes longer than most of the changes.
    """

    def __init__(self, probability: float, seed: int) -> None:
        self.probability, self.state = probability, np.random.RandomState(np.random.PCG64(seed))

    def __call__(self, changes: Iterable[Any]) -> Iterator[Any]:
        for change in changes:
            if self.happens():
                yield change.set_random_state(state=self.state)

    def happens(self) -> bool:
        """Whether the next change does."""
        return bool(self.state.random() < self.probability)


@contextmanager
def without_geometry() -> Iterator[None]:
    """MONAI's record of affines switched off for a while: a cut slice has none, and keeping it costs time."""
    from monai.data import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
