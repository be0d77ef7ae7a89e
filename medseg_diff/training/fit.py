"""The only training loop: a generator that takes steps and yields what happened. It logs nothing and writes nothing."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg_diff.errors import CheckpointError, Diverged
from medseg_diff.seeds import seed_of
from medseg_diff.settings import Settings
from medseg_diff.training.objective import Objective, Turn
from medseg_diff.training.weights import MovingAverage, under

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class FitSettings(Settings):
    """How long and how fast. `batch` is what an update learns from, on all devices together; `accumulate` splits it into
    that many passes.

    A checkpoint is written every `save_every` steps and at every validation.
    """

    steps: int = Field(default=60_000, ge=1, le=10**8)
    batch: int = Field(default=32, ge=1, le=4096)
    accumulate: int = Field(default=1, ge=1, le=4096)
    learning_rate: float = Field(default=1e-4, gt=0)
    decay: Literal["cosine", "constant"] = "cosine"
    warm_up_steps: int = Field(default=100, ge=0, le=10**8)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validate_every: int = Field(default=1000, ge=1, le=10**8)
    save_every: int = Field(default=500, ge=1, le=10**8)
    workers: int = Field(default=0, ge=0, le=1024)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @property
    def passes_batch(self) -> int:
        """Samples in one pass, of all processes together."""
        return max(1, self.batch // self.accumulate)


def trainings_of(settings: Settings) -> dict[str, FitSettings]:
    """How each network of a recipe is trained, by the name of the setting, such as `space.training`."""
    found: dict[str, FitSettings] = {}
    for name, value in settings:
        if isinstance(value, FitSettings):
            found[name] = value
        elif isinstance(value, Settings):
            found |= {f"{name}.{inner}": each for inner, each in trainings_of(value).items()}
    return found


@dataclass(frozen=True)
class Progress:
    """After `step` updates: what the last one measured, and the averaged models (live: use them before the next step).

    `skipped` [] is how many updates in a row, up to this one, were left out because they were not finite.
    """

    step: int
    numbers: dict[str, Tensor]
    averages: dict[str, nn.Module]
    skipped: Tensor | int = 0

    def measured(self) -> dict[str, float]:
        """The numbers on the host, which waits for the device."""
        return {name: float(value) for name, value in self.numbers.items()}

    def read(self) -> dict[str, float]:
        """The same. Raises: Diverged where one is not finite."""
        found = self.measured()
        odd = [name for name, value in found.items() if not math.isfinite(value)]
        if odd:
            raise Diverged(
                f"{odd[0]} is not finite at step {self.step}", fix="lower training.learning_rate, or use precision=fp32"
            )
        return found


def fit(
    objective: Objective,
    batches: Iterable[Any],
    settings: FitSettings,
    fabric: "Fabric",
    *,
    learners: "Learners | None" = None,
    start: int = 0,
) -> Iterator[Progress]:
    """Yield after every update from `start` until `settings.steps`; `batches` gives `accumulate` batches for each.

    The networks in `objective.models` are trained in place, on the fabric's device. `learners` are those of the same
    objective, as they were after `start` updates; without them, new ones.
    """
    learners = learners or Learners(objective, settings, fabric)
    stream = iter(batches)
    for step in range(start, settings.steps):
        numbers: dict[str, Tensor] = {}
        for part in range(settings.accumulate):
            last = part == settings.accumulate - 1
            number = step * settings.accumulate + part
            batch = next(stream).to(fabric.device)  # a loader that starts draws a number; dropout must not see that
            torch.manual_seed(seed_of(settings.seed, "dropout", fabric.global_rank, number))
            with learners.gathering(enabled=not last):
                for turn in _turns(objective, batch, number, fabric):
                    learner = learners[turn.model]
                    # With several models, a loss may pass through one that it must not move.
                    own = learner.parameters if len(learners) > 1 else None
                    fabric.backward(turn.loss / settings.accumulate, inputs=own)
                    for name, value in {"loss": turn.loss.detach(), **turn.numbers}.items():
                        numbers[name] = numbers.get(name, 0) + value / settings.accumulate
                    learner.saw(turn.loss.detach())
                    if last:
                        learner.update(step)
        yield Progress(step + 1, numbers, learners.averages, learners.skipped)


def _turns(objective: Objective, batch: Any, number: int, fabric: "Fabric") -> Iterator[Turn]:
    """The turns of one pass, each computed when it comes: the second sees what the first one's update made."""
    turns = objective.turns(batch, number)
    while True:
        with fabric.autocast():  # left before each update: it keeps rounded copies of the weights
            turn = next(turns, None)
        if turn is None:
            return
        yield turn


class Learners(dict[str, "Learner"]):
    """What training moves, by the objective's names: everything that an exact continuation needs is in `state`.

    A model in `settings_of` has its own learning rate, decay, weight decay, clipping and average; the steps are `settings`'.
    """

    def __init__(
        self,
        objective: Objective,
        settings: FitSettings,
        fabric: "Fabric",
        *,
        settings_of: Mapping[str, FitSettings] = MappingProxyType({}),
    ) -> None:
        each = dict.fromkeys(objective.models, settings)
        each |= {name: own.but(steps=settings.steps) for name, own in settings_of.items()}
        super().__init__({name: Learner(model, each[name], fabric) for name, model in objective.models.items()})
        for name, learner in self.items():
            objective.adopt(name, learner.model)

    @contextmanager
    def gathering(self, *, enabled: bool) -> Iterator[None]:
        """A pass whose gradients wait for those of a later one: several processes need not tell each other yet."""
        with ExitStack() as stack:
            for learner in self.values():
                stack.enter_context(learner.fabric.no_backward_sync(learner.model, enabled=enabled))
            yield

    @property
    def averages(self) -> dict[str, nn.Module]:
        return {name: learner.average.module for name, learner in self.items()}

    @property
    def rates(self) -> dict[str, float]:
        """`learning_rate` of the last update; where models learn at rates of their own, of each `learning_rate_MODEL`."""
        found = {name: float(learner.raw.param_groups[0]["lr"]) for name, learner in self.items()}
        if len(set(found.values())) == 1:
            return {"learning_rate": next(iter(found.values()))}
        return {f"learning_rate_{name}": rate for name, rate in found.items()}

    @property
    def skipped(self) -> Tensor:
        """Updates in a row that were left out, of the model that has it worst."""
        return torch.stack([learner.skipped for learner in self.values()]).max()

    def state(self) -> dict[str, Tensor]:
        """Weights, averages and optimisers under flat names: live tensors, to be written before the next step."""
        return {f"{name}.{key}": value for name, learner in self.items() for key, value in learner.state().items()}

    def restore(self, state: Mapping[str, Tensor], *, share: float = 1.0) -> None:
        """Be what `state` was taken of; from here on `share` of the learning rate is used.

        Raises: CheckpointError where it was taken of other networks.
        """
        here = self.state()
        missing = sorted({name for name in here if ".optimizer." not in name} - set(state))
        odd = missing or [name for name, value in state.items() if name in here and here[name].shape != value.shape]
        if odd:
            raise CheckpointError(f"the checkpoint is of other networks (see {odd[0]})", fix="choose another --out")
        for name, learner in self.items():
            learner.restore(under(f"{name}.", state))
            learner.share = share


class Learner:
    """One model with its optimiser, schedule and moving average. An update that is not finite is left out."""

    def __init__(self, network: nn.Module, settings: FitSettings, fabric: "Fabric") -> None:
        self.settings, self.fabric, self.share = settings, fabric, 1.0
        self.on_device = fabric.device.type == "cuda"  # there the fused kernel leaves it out, and the host never waits
        self.raw = torch.optim.AdamW(
            channels_last(network).parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=self.on_device or None,
        )
        network.train()
        self.model, self.optimizer = fabric.setup(network, self.raw)
        self.network = network
        self.average = MovingAverage(network, settings.ema)
        self.skipped = torch.zeros((), device=fabric.device)
        self.finite = torch.ones((), device=fabric.device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that it moves."""
        return [each for each in self.network.parameters() if each.requires_grad]

    def saw(self, loss: Tensor) -> None:
        """Remember whether every loss that the coming update adds up was finite."""
        self.finite = self.finite * loss.isfinite()

    def update(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * learning_rate_factor(self.settings, step) * self.share
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        finite = self.fabric.all_reduce(self.finite * norm.isfinite(), reduce_op="min")
        assert isinstance(finite, Tensor)
        if self.on_device:
            self.raw.found_inf = 1 - finite  # type: ignore[attr-defined]
        if self.on_device or finite:
            self.optimizer.step()
        self.skipped = (self.skipped + 1) * (1 - finite)
        self.finite = torch.ones_like(finite)
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update_parameters(self.network)

    def state(self) -> dict[str, Tensor]:
        """`model.`, `average.`, `optimizer.` (by parameter, nothing before the first update) and `skipped`."""
        moments = {
            f"{name}.{key}": value
            for name, parameter in self.network.named_parameters()
            for key, value in self.raw.state.get(parameter, {}).items()
        }
        parts = {"model.": self.network.state_dict(), "average.": self.average.state_dict(), "optimizer.": moments}
        named = {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}
        return named | {"skipped": self.skipped}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(under("model.", state))
        self.average.load_state_dict(under("average.", state))
        moments = under("optimizer.", state)
        self.raw.state.clear()
        for name, parameter in self.network.named_parameters():
            for key, value in under(f"{name}.", moments).items():
                counts = key == "step"  # kept beside the fused kernel, else on the host
                place = (
                    value.to(parameter.device if self.on_device else "cpu") if counts else torch.empty_like(parameter)
                )
                self.raw.state[parameter][key] = place.copy_(value)
        self.raw.zero_grad(set_to_none=True)
        self.skipped = state["skipped"].to(self.skipped.device)
        self.finite = torch.ones_like(self.finite)


def learning_rate_factor(settings: FitSettings, step: int) -> float:
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
