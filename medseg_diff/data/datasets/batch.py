"""Batches for training: which items, in which order, by seed alone, and how they are gathered."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from medseg_diff.seeds import seed_of

LONGEST_WAIT_SECONDS = 600.0  # for a batch; a worker that takes longer hangs
LOST_WORKER = re.compile(r"DataLoader worker \(pid|DataLoader timed out")  # as torch says it


@dataclass(frozen=True)
class Batch:
    """What is learned from, each part by its name; those that a data set does not have are None.

    image [B, C, *S] in [-1, 1]; mask [B, R, *S], -1 outside and 1 inside each region; label [B] integers, -1 where it is
    not known; covariates [B, K]; context [B, N, D] tokens.
    """

    image: Tensor
    mask: Tensor | None = None
    label: Tensor | None = None
    covariates: Tensor | None = None
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Those that there are."""
        return {name: part for name, part in vars(self).items() if part is not None}

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{name: part.to(device, non_blocking=True) for name, part in self.parts.items()})


@dataclass(frozen=True)
class Key:
    """Which image, and in which pass over the data: all that its random choices depend on, besides the seed."""

    epoch: int
    index: int


class Items(Protocol):
    """What batches are made of: item `Key(epoch, index)`, parts of a batch by name, is a pure function of the key."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Mapping[str, Tensor]: ...


class SeededDraws(Sampler[list[Key]]):
    """Batches of keys for steps `start` … `steps` - 1: shuffled anew each epoch, from (seed, epoch) alone.

    `batch` is that of all `ranks` together, each of which gets its share: the union is the same for any number of them.
    """

    def __init__(
        self, length: int, batch: int, steps: int, *, seed: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        assert batch % ranks == 0, "every process has as many"
        self.length, self.batch, self.steps, self.start = length, batch, steps, start
        self.seed, self.rank, self.share = seed, rank, batch // ranks

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.steps):
            keys = []
            first = step * self.batch + self.rank * self.share
            for position in range(first, first + self.share):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng(seed_of(self.seed, "order", epoch)).permutation(self.length)
                keys.append(Key(epoch, int(order[position % self.length])))
            yield keys


def batches(dataset: Items, draws: SeededDraws, *, workers: int) -> Iterator[Batch]:
    """Batches in the order of `draws`, made by at most `workers` processes (0: in this one), one core left free.

    How many there are changes no byte: each works on one thread. Raises: RuntimeError that LOST_WORKER knows, where one of
    them dies or hangs.
    """
    from monai.data import DataLoader

    workers = min(workers, cores() - 1)
    stream = iter(
        DataLoader(
            dataset,
            batch_sampler=draws,
            num_workers=workers,
            collate_fn=_collate,
            timeout=LONGEST_WAIT_SECONDS if workers else 0,
        )
    )
    while True:
        with nullcontext() if workers else _on_one_thread():
            batch = next(stream, None)
        if batch is None:
            return
        yield batch


def cores() -> int:
    """How many cores this process may use, which a scheduler may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _on_one_thread() -> Iterator[None]:
    """As in a loader's worker; for pieces as small as slices it is also the fastest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _collate(items: Sequence[Mapping[str, Tensor]]) -> Batch:
    return Batch(**{name: torch.stack([item[name] for item in items]) for name in items[0]})
