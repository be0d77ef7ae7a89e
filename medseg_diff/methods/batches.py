"""Work in batches of one size, so that a network always sees one shape and rounds alike."""

from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class PaddedBatch(NamedTuple, Generic[Item]):
    """The `items` of a batch, and the same `padded` to its size with the last of them."""

    items: list[Item]
    padded: list[Item]


def padded_batches(items: Sequence[Item], size: int) -> Iterator[PaddedBatch[Item]]:
    """All items in their order, `size` at a time."""
    for start in range(0, len(items), size):
        here = list(items[start : start + size])
        yield PaddedBatch(here, here + [here[-1]] * (size - len(here)))


def index_of(places: Sequence[int], like: Tensor) -> Tensor:
    """Places along an axis of `like`, beside it. A list in its stead makes the host wait for a GPU until it is copied."""
    return torch.tensor(places, dtype=torch.long).to(like.device, non_blocking=True)
