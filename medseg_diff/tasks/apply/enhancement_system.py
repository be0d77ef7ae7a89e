"""A trained second stage ready to draw, on scans that were read and on those that a first stage drew."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg_diff.device import autocast
from medseg_diff.diffusion import Denoiser
from medseg_diff.errors import UsageError
from medseg_diff.methods.enhanced import Enhancing
from medseg_diff.recipes.enhancement import DENOISER, EnhancementRecipe
from medseg_diff.recipes.synthesis import SynthesisRecipe
from medseg_diff.recipes.trained import find_model, open_run
from medseg_diff.recipes.typicality import Typicality
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.options import Compute
from medseg_diff.tasks.synthesis_options import EnhancementOptions

ALIKE = 0.1  # relative; voxels closer to those that were learned from than this are alike


@dataclass(frozen=True)
class EnhancementSystem:
    """A trained run ready to draw finer volumes; `facts` is what every case.json says of it."""

    recipe: EnhancementRecipe
    denoiser: Denoiser
    enhancing: Enhancing
    draws: int
    seed: int
    device: torch.device
    precision: str
    facts: dict[str, Any]
    typicality: Typicality | None

    def volume(self, image: Tensor, owner: str | int, advance: Callable[[int], None] = lambda tiles: None) -> Tensor:
        """[C, *R factor] of a coarse image [C, *R] in [-1, 1], on the CPU; the noise is that of its owner."""
        seeds = [seed_of(self.seed, "enhancement", owner, draw) for draw in range(self.draws)]
        with autocast(self.device, self.precision):
            return self.enhancing.volume(self.denoiser, image, seeds, self.device, advance=advance)

    def at_once(self, batch: int) -> "EnhancementSystem":
        """The same with so many tiles in a pass of the network."""
        return replace(self, enhancing=replace(self.enhancing, network_batch=batch))

    @property
    def learned_from_phantoms(self) -> bool:
        """Whether its network saw nothing but phantoms."""
        return self.typicality is not None and self.typicality.phantoms

    def tiles(self, size: Sequence[int]) -> int:
        """Tiles that all draws of a coarse volume of `size` show to the network."""
        return self.draws * self.enhancing.evaluations * self.enhancing.tiles(size)

    @property
    def coarse_mm(self) -> tuple[float | None, ...]:
        """The voxels that it learned to refine; None along an axis where each scan had its own."""
        return tuple(mm and mm * self.recipe.factor for mm in self.recipe.preparation.spacing_mm)

    def unlike(self, spacing_mm: Sequence[float]) -> bool:
        """Whether these voxels are others than it learned to refine."""
        known = [(mm, own) for mm, own in zip(spacing_mm, self.coarse_mm, strict=True) if own is not None]
        return not all(np.isclose(mm, own, rtol=ALIKE, atol=0) for mm, own in known)


def open_enhancement(
    model: Path | None, options: EnhancementOptions, compute: Compute, *, runs: Path
) -> EnhancementSystem:
    """A run on a device, and how it draws. Raises: CheckpointError, UsageError, EnvironmentFault, ConfigError."""
    run = find_model(model, task="enhance", runs=runs)
    trained = open_run(run, EnhancementRecipe, device=compute.device, precision=compute.precision)
    recipe = trained.recipe
    enhancing = recipe.enhancing(
        steps=options.steps, condition_noise=options.condition_noise, network_batch=compute.network_batch
    )
    facts = trained.facts | {
        "factor": recipe.factor,
        "seed": options.seed,
        "draws": options.draws,
        "steps": enhancing.evaluations,
        "condition_noise": enhancing.condition_noise,
        "solver": enhancing.solver.model_dump(mode="json"),
        "network_evaluations": options.draws * enhancing.evaluations,
    }
    denoiser = recipe.denoiser.around(trained.networks[DENOISER], recipe.schedule)
    known = (options.draws, options.seed, trained.device, trained.precision, facts, trained.typicality)
    return EnhancementSystem(recipe, denoiser, enhancing, *known)


def second_stage(model: Path, first: SynthesisRecipe, compute: Compute, *, seed: int, runs: Path) -> EnhancementSystem:
    """The run that refines what `first` draws. Raises: UsageError where that is none of what it learned to refine; as
    `open_enhancement`."""
    system = open_enhancement(model, EnhancementOptions(seed=seed), compute, runs=runs)
    recipe, spacing = system.recipe, [mm or 1.0 for mm in first.preparation.spacing_mm]
    name, fix = system.facts["model"], "name another run of train-enhance, or leave --enhance out"
    if recipe.channels != first.channels:
        found = f"{name} refines {', '.join(recipe.channels)}, but the model draws {', '.join(first.channels)}"
        raise UsageError(found, fix=fix)
    if first.view.dims != recipe.view.dims:
        raise UsageError(f"{name} refines volumes, but the model draws slices", fix=fix)
    if system.unlike(spacing):
        own, drawn = (" × ".join(f"{mm or 1:g}" for mm in voxel) for voxel in (system.coarse_mm, spacing))
        raise UsageError(f"{name} refines voxels of {own} mm, but the model draws {drawn} mm", fix=fix)
    return system
