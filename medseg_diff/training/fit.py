"""The only training loop: a generator that takes steps and yields what happened. It logs nothing and writes nothing."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from medseg_diff.errors import Diverged
from medseg_diff.seeds import seed_of
from medseg_diff.settings import Settings
from medseg_diff.training.objective import Objective, Turn
from medseg_diff.training.weights import moving_average


class FitSettings(Settings):
    """How long and how fast. `batch` is per device and update; `accumulate` splits it into that many passes."""

    steps: int = Field(default=60_000, ge=1)
    batch: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    decay: Literal["cosine", "constant"] = "cosine"
    warm_up_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validate_every: int = Field(default=1000, ge=1)
    workers: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)

    @property
    def passes_batch(self) -> int:
        """Samples in one pass of the network."""
        return max(1, self.batch // self.accumulate)


@dataclass(frozen=True)
class Progress:
    """After `step` updates: what the last one measured, and the averaged models (live: use them before the next step)."""

    step: int
    numbers: dict[str, Tensor]
    averages: dict[str, nn.Module]

    def read(self) -> dict[str, float]:
        """The numbers on the host, which waits for the device. Raises: Diverged where one is not finite."""
        found = {name: float(value) for name, value in self.numbers.items()}
        odd = [name for name, value in found.items() if not math.isfinite(value)]
        if odd:
            raise Diverged(
                f"{odd[0]} is not finite at step {self.step}", fix="lower training.learning_rate, or use precision=fp32"
            )
        return found


def fit(objective: Objective, batches: Iterable[Any], settings: FitSettings, fabric: Fabric) -> Iterator[Progress]:
    """Yield after every update until `settings.steps`; `batches` gives `accumulate` batches for each.

    The networks in `objective.models` are trained in place, on the fabric's device.
    """
    owners = {name: _Owner(model, settings, fabric) for name, model in objective.models.items()}
    for name, owner in owners.items():
        objective.adopt(name, owner.model)
    stream = iter(batches)
    for step in range(settings.steps):
        numbers: dict[str, Tensor] = {}
        for part in range(settings.accumulate):
            last = part == settings.accumulate - 1
            number = step * settings.accumulate + part
            torch.manual_seed(seed_of(settings.seed, "dropout", fabric.global_rank, number))
            for turn in _turns(objective, next(stream).to(fabric.device), number, fabric):
                owner = owners[turn.model]
                # With several models, a loss may pass through one that it must not move.
                own = list(owner.network.parameters()) if len(owners) > 1 else None
                with fabric.no_backward_sync(owner.model, enabled=not last):
                    fabric.backward(turn.loss / settings.accumulate, inputs=own)
                for name, value in {"loss": turn.loss.detach(), **turn.numbers}.items():
                    numbers[name] = numbers.get(name, 0) + value / settings.accumulate
                if last:
                    owner.update(step)
        yield Progress(step + 1, numbers, {name: owner.average.module for name, owner in owners.items()})


def _turns(objective: Objective, batch: Any, number: int, fabric: Fabric) -> Iterator[Turn]:
    """The turns of one pass, each computed when it comes: the second sees what the first one's update made."""
    turns = objective.turns(batch, number)
    while True:
        with fabric.autocast():  # left before each update: it keeps rounded copies of the weights
            turn = next(turns, None)
        if turn is None:
            return
        yield turn


class _Owner:
    """One model with its optimiser, schedule and moving average."""

    def __init__(self, network: nn.Module, settings: FitSettings, fabric: Fabric) -> None:
        self.settings = settings
        optimizer = torch.optim.AdamW(
            channels_last(network).parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        network.train()
        self.model, self.optimizer = fabric.setup(network, optimizer)
        self.network = network
        self.average: AveragedModel = moving_average(network, settings.ema)

    def update(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * pace(self.settings, step)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update_parameters(self.network)


def pace(settings: FitSettings, step: int) -> float:
    """Share of the learning rate at update `step`: linear warm-up, then constant or a half cosine to zero."""
    warm = min(1.0, (step + 1) / settings.warm_up_steps) if settings.warm_up_steps else 1.0
    if settings.decay == "constant":
        return warm
    return warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def channels_last(model: nn.Module) -> nn.Module:
    """The memory layout that convolutions are fastest in, 2D or 3D."""
    deep = any(isinstance(module, nn.Conv3d) for module in model.modules())
    layout = torch.channels_last_3d if deep else torch.channels_last
    return model.to(memory_format=layout)  # type: ignore[call-overload]
