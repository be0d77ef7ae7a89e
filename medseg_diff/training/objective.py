"""What one training step minimises: whose turn it is, the loss, and the numbers worth logging."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class Turn(NamedTuple):
    """One update: the model whose parameters move, the loss [] that moves them, and numbers to log."""

    model: str
    loss: Tensor
    numbers: Mapping[str, Tensor]


class Objective(Protocol):
    """Most objectives yield one turn a step; an adversarial one yields two, so that there is one training loop."""

    models: dict[str, nn.Module]

    def adopt(self, name: str, model: nn.Module) -> None:
        """Use this wrapped model (devices, precision, gradient averaging) from now on."""
        ...

    def turns(self, batch: Any, step: int) -> Iterator[Turn]:
        """The turns of step `step`; every random choice in them derives from the objective's seed and `step`."""
        ...
