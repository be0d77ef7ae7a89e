"""Timings that survive a busy machine: the contenders in turn, the best and the median of each."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Taken:
    """Seconds of one contender, a value a round."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def in_turn(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device, warm_up: int = 1
) -> dict[str, Taken]:
    """Run A, B, A, B, …: `rounds` timed calls of each after `warm_up` that are not timed; the device is waited for."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(warm_up + rounds):
        for name, run in contenders.items():
            wait_for(device)
            start = time.perf_counter()
            run()
            wait_for(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: Taken(tuple(taken[warm_up:])) for name, taken in seconds.items()}


def wait_for(device: torch.device) -> None:
    """Return when a GPU has done what it was given; a CPU has already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
