"""`--init-from`: a training that begins with the weights of another, whose channels, regions or labels may differ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg_diff.console import log
from medseg_diff.errors import CheckpointError
from medseg_diff.networks.unet import Axes
from medseg_diff.recipes.base import Recipe
from medseg_diff.recipes.trained import find_model, recipe_of
from medseg_diff.run import Run
from medseg_diff.training.weights import read_finite

SAME_NETWORK = "the network's settings must be those of the run, as with --config {run}/recipe.yaml"


@dataclass(frozen=True)
class WarmStart:
    """The run whose weights a training begins with, its recipe, and the digests of its files, which were verified."""

    run: Run
    recipe: Recipe
    digests: Mapping[Path, str]

    @classmethod
    def of(cls, model: str, recipe: Recipe, *, runs: Path) -> "WarmStart":
        """Of a finished run of the same task. Raises: CheckpointError, UsageError."""
        run = find_model(model, task=recipe.task, runs=runs)
        start = cls(run, recipe_of(run, type(recipe)), run.verified(run.recipe_file))
        before, now = start.recipe.preparation, recipe.preparation
        if differing := [name for name, value in before if value != getattr(now, name)]:
            log.warning("%s was trained on other preprocessing: preparation.%s differs", run.name, ", ".join(differing))
        return start

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says of it."""
        files = {part: self.run.weights(part) for part in self.recipe.parts()}
        known = {part: self.digests[path] for part, path in files.items() if path in self.digests}
        return {"model": self.run.name, "weights": known}

    def fill(self, part: str, network: nn.Module, recipe: Recipe) -> None:
        """Give `network`, the untrained `part` of `recipe`, the weights that it has in the run. What it is new to begins
        silent: a channel with zeros, a region as an untrained network says it.

        Raises: CheckpointError where the run has no such network, or one of another size.
        """
        path = self.run.weights(part)
        if path not in self.digests:
            fix = f"name a run with weights of its {part}"
            raise CheckpointError(f"has no weights for a {part}", fix=fix, file=self.run.name)
        with torch.device("meta"):
            axes_before = _axes(self.recipe.parts()[part](), self.recipe)
        axes_now, given, own = _axes(network, recipe), read_finite(path), network.state_dict()
        unlike = sorted(set(given) ^ set(own))
        for name, tensor in own.items():
            if not unlike and name in axes_now:
                moved = _moved(tensor, given[name], axes_now[name], axes_before[name])
                own[name] = tensor if moved is None else moved
                unlike += [name] if moved is None else []
            elif not unlike:
                own[name] = given[name]
                unlike += [name] if given[name].shape != tensor.shape else []
        if unlike:
            found = f"its {part} differs from the recipe's network (first at {unlike[0]})"
            raise CheckpointError(found, fix=SAME_NETWORK.format(run=self.run.name), file=self.run.name)
        network.load_state_dict(own)
        log.info("the %s starts from the weights of %s%s", part, self.run.name, _news(axes_now, axes_before))


def _axes(network: nn.Module, recipe: Recipe) -> Axes:
    """Where a network has its channels; of one that does not say, nothing may differ."""
    say: Callable[..., Axes] | None = getattr(network, "channel_axes", None)
    return say(*recipe.names) if say else {}


def _moved(
    own: Tensor, given: Tensor, now: tuple[int, Sequence[str]], before: tuple[int, Sequence[str]]
) -> Tensor | None:
    """`given`, whose `axis` has equally many places for each of its names, with the places of other names; None where it
    does not fit."""
    axis, names = now
    places, odd = divmod(own.shape[axis], len(names))
    if odd or given.shape[axis] != places * len(before[1]):
        return None
    if given.movedim(axis, 0).shape[1:] != own.movedim(axis, 0).shape[1:]:
        return None
    known = dict(zip(before[1], torch.split(given, places, axis), strict=True))
    inputs = axis == 1
    fresh = dict(zip(names, torch.split(torch.zeros_like(own) if inputs else own, places, axis), strict=True))
    return torch.cat([known.get(name, fresh[name]) for name in names], axis)


def _news(now: Axes, before: Axes) -> str:
    """`; new to it: flair`, and what it knew beyond that."""
    names, known = (list(dict.fromkeys(name for _, own in axes.values() for name in own)) for axes in (now, before))
    new, gone = [name for name in names if name not in known], [name for name in known if name not in names]
    said = [f"new to it: {', '.join(new)}"] * bool(new) + [f"no longer there: {', '.join(gone)}"] * bool(gone)
    return "".join(f"; {part}" for part in said)
