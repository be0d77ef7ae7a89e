"""A trained synthesis run ready to draw, and what every drawn scan has in common: its values, and whether it is there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_diff.console import log
from medseg_diff.data.results import FACTS, SCHEMA
from medseg_diff.data.tables.table import read_table
from medseg_diff.device import autocast
from medseg_diff.diffusion import Denoiser
from medseg_diff.errors import UsageError, counted
from medseg_diff.files import read_facts, sha256_of
from medseg_diff.methods.synthesised import Drawing
from medseg_diff.recipes.covariates import Covariates, read_covariates
from medseg_diff.recipes.spaces import space_of
from medseg_diff.recipes.synthesis import DENOISER, REGRESSOR, SynthesisRecipe
from medseg_diff.recipes.trained import find_model, open_run
from medseg_diff.tasks.apply.case_folder import Identity
from medseg_diff.tasks.apply.enhancement_system import EnhancementSystem, second_stage
from medseg_diff.tasks.options import Compute, Model
from medseg_diff.tasks.synthesis_options import SynthesisOptions

TABLE = "cases.csv"
BRIGHTEST, FAINTEST = 1000, 20  # of the written values; what is fainter is background, 0
SAME = ("sha256", "autoencoder_sha256", "recipe_sha256", "seed", "guidance", "steps", "limit", "asked", "enhanced_by")
OF_SECOND = ("model", "sha256", "recipe", "recipe_sha256", "factor", "steps", "solver", "condition_noise")


@dataclass(frozen=True)
class SynthesisSystem:
    """A trained run ready to draw; `facts` is what every case.json says of it, `covariates` those it was trained on,
    `regressor` the network that reads them off a scan, and `second` what draws it at a finer resolution."""

    recipe: SynthesisRecipe
    denoiser: Denoiser
    drawing: Drawing
    covariates: Covariates | None
    device: torch.device
    precision: str
    facts: Mapping[str, Any]
    regressor: nn.Module | None = None
    second: EnhancementSystem | None = None

    @property
    def factor(self) -> int:
        """Voxels along an axis of what is written to one of what the first stage draws."""
        return self.second.recipe.factor if self.second else 1

    def finished(self, image: Tensor, number: int) -> Tensor:
        """The scan of this number, [C, *S factor], of what `images` drew of it, [C, *S]."""
        return self.second.volume(image, number) if self.second else image

    def at(self, guidance: float) -> "SynthesisSystem":
        """The same with another guidance; 0 leaves covariates out. Raises: UsageError where it learned no such thing."""
        now = self.drawing
        drawing = self.recipe.drawing(
            now.space, guidance=guidance, steps=len(now.times) - 1, limit=now.limit, network_batch=now.network_batch
        )
        return replace(self, drawing=drawing, facts={**self.facts, **how(drawing)})

    def images(self, seeds: list[int], scaled: list[list[float]] | None = None, masks: Tensor | None = None) -> Tensor:
        """Images [N, C, *S], one for each seed, as asked for by covariates [N, K] in [0, 1], or masks [N, R, *S]."""
        covariates = None if scaled is None else torch.tensor(scaled, dtype=torch.float32)
        with autocast(self.device, self.precision):
            return self.drawing.images(self.denoiser, seeds, covariates, self.device, masks=masks)


def open_synthesis(model: Model, options: SynthesisOptions, *, device: str) -> SynthesisSystem:
    """The networks of a run on a device, and how they draw. Raises: CheckpointError, UsageError, EnvironmentFault."""
    run = find_model(model.model, task="synthesise", runs=model.runs)
    trained = open_run(run, SynthesisRecipe, device=device, precision=options.precision)
    recipe = trained.recipe
    guidance = 0.0 if options.unconditional else options.guidance
    drawing = recipe.drawing(
        space_of(recipe.space, trained.networks),
        guidance=guidance,
        steps=options.steps,
        limit=options.limit,
        network_batch=options.network_batch,
    )
    denoiser = recipe.denoiser.around(trained.networks[DENOISER], recipe.schedule)
    facts = {**trained.facts, "seed": options.seed, **how(drawing), "asked": options.asked}
    second = None
    if options.enhance is not None:
        compute = Compute(device=device, precision=options.precision)
        second = second_stage(options.enhance, recipe, compute, seed=options.seed, runs=model.runs)
        facts["enhanced_by"] = {key: second.facts[key] for key in OF_SECOND}
    said = run.name, facts["recipe"], counted(facts["steps"], "step"), facts["guidance"]
    log.info("model %s (%s): %s, guidance %g", *said)
    return SynthesisSystem(
        recipe,
        denoiser,
        drawing,
        read_covariates(run),
        trained.device,
        trained.precision,
        facts,
        trained.networks.get(REGRESSOR),
        second,
    )


def how(drawing: Drawing) -> dict[str, Any]:
    """What case.json says of how a scan was drawn."""
    return {
        "guidance": drawing.guidance,
        "steps": len(drawing.times) - 1,
        "limit": drawing.limit,
        "solver": drawing.solver.model_dump(mode="json"),
        "network_evaluations": drawing.evaluations,
    }


def is_complete(folder: Path, identity: Identity) -> bool:
    """Whether this very scan is there, every file as it was written. Raises: UsageError where another one is."""
    known = read_facts(folder / FACTS)
    if not known:
        return False
    identity.check(known, folder.name)
    outputs = known.get("outputs")
    if known.get("schema") != SCHEMA or not isinstance(outputs, dict):
        return False
    return all((folder / name).is_file() and sha256_of(folder / name) == digest for name, digest in outputs.items())


def table_in(out: Path, masks: Path | None = None) -> Path:
    """OUT/cases.csv, which a call writes last. Raises: UsageError where a table of that name lists other cases than those of
    an earlier call; ManifestError where it is no table."""
    table = out / TABLE
    if table.is_file():
        cases = {cells.get("case", "") for _, cells in read_table(table).rows}
        drawn = {name for name in cases if read_facts(out / name / FACTS).get("task") == "synthesise"}
        if not drawn or (masks is not None and table.resolve() == masks.resolve()):
            found = f"holds a {TABLE} of other cases, which would be replaced"
            raise UsageError(found, fix="use another --out", file=out.name)
    return table


def as_written(values: np.ndarray) -> np.ndarray:
    """Values [*S] in [-1, 1] as int16 [X, Y, Z] from 0, the background, to 1000."""
    scaled = ((values + 1) / 2 * BRIGHTEST).round().clip(0, None)
    whole = np.where(scaled < FAINTEST, 0, scaled).astype(np.int16)
    return whole if whole.ndim == 3 else whole[..., None]


def affine_of(recipe: SynthesisRecipe) -> np.ndarray:
    """Of a volume of the recipe's voxels, RAS, its middle at the origin."""
    spacing = [mm or 1.0 for mm in recipe.preparation.spacing_mm]
    size = (*recipe.view.size, 1)[:3]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-mm * (n - 1) / 2 for mm, n in zip(spacing, size, strict=True)]
    return affine
