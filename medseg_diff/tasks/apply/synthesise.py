"""`synthesise`: scans of nobody, drawn by a trained run as they are asked for by covariates."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_diff.console import bar, duration, log
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.results import FACTS, SCHEMA
from medseg_diff.data.tables.manifest import write_manifest
from medseg_diff.device import autocast
from medseg_diff.diffusion import Denoiser
from medseg_diff.errors import UsageError
from medseg_diff.files import check_room, check_writable, read_facts, sha256_of, write_json
from medseg_diff.methods.synthesised import Drawing
from medseg_diff.recipes.covariates import Covariates, read_covariates
from medseg_diff.recipes.spaces import space_of
from medseg_diff.recipes.synthesis import DENOISER, REGRESSOR, SynthesisRecipe
from medseg_diff.recipes.trained import find_model, open_run
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.apply.case_folder import Identity, made_anew
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import Model
from medseg_diff.tasks.synthesis_options import SynthesisOptions

TABLE, PREFIX = "cases.csv", "synthetic_"
BRIGHTEST, FAINTEST = 1000, 20  # of the written values; what is fainter is background, 0
SAME = ("sha256", "autoencoder_sha256", "recipe_sha256", "seed", "guidance", "steps", "limit", "asked")
WORTH_SAYING_SECONDS = 60.0


@dataclass(frozen=True)
class SynthesisSystem:
    """A trained run ready to draw; `facts` is what every case.json says of it, `covariates` those it was trained on, and
    `regressor` the network that reads them off a scan."""

    recipe: SynthesisRecipe
    denoiser: Denoiser
    drawing: Drawing
    covariates: Covariates | None
    device: torch.device
    precision: str
    facts: Mapping[str, Any]
    regressor: nn.Module | None = None

    def images(self, seeds: list[int], scaled: list[list[float]] | None) -> Tensor:
        """Images [N, C, *S], one for each seed, as asked for by covariates [N, K] in [0, 1]."""
        covariates = None if scaled is None else torch.tensor(scaled, dtype=torch.float32)
        with autocast(self.device, self.precision):
            return self.drawing.images(self.denoiser, seeds, covariates, self.device)


@with_plain_keywords
def synthesise(
    out: Annotated[Path, "Where scans go, a folder for each."],
    model: Model,
    options: SynthesisOptions,
    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps."] = "auto",
) -> list[Path]:
    """Draw `number` scans into OUT/synthetic_0000 …, and their table OUT/cases.csv; returns the folders.

    A scan depends on the model, the seed, its number and what is asked for alone. Those that are complete are skipped.
    Raises: UsageError, CheckpointError, EnvironmentFault.
    """
    options.check()
    check_writable(out)
    system = open_synthesis(model, options, device=device)
    recipe, drawing = system.recipe, system.drawing
    check_room(out, options.number * len(recipe.channels) * 2 * int(np.prod(recipe.view.size)))
    asked = asked_for(system.covariates, options)
    names = [f"{PREFIX}{number:04d}" for number in range(options.number)]
    identity = Identity({key: system.facts.get(key) for key in SAME})
    left = [number for number, name in enumerate(names) if options.overwrite or not _is_complete(out / name, identity)]
    started = time.perf_counter()
    with bar("drawing", len(names), done=len(names) - len(left)) as advance:
        for start in range(0, len(left), drawing.network_batch):
            chosen = left[start : start + drawing.network_batch]
            scaled = [asked[number] for number in chosen] if asked else None
            began = time.perf_counter()
            images = system.images([seed_of(options.seed, "synthesis", number) for number in chosen], scaled)
            seconds = round((time.perf_counter() - began) / len(chosen), 3)
            for number, image in zip(chosen, images, strict=True):
                facts = dict(system.facts) | {"seconds": seconds}
                if system.covariates and asked:
                    facts["covariates"] = system.covariates.named(asked[number])
                _write(out / names[number], image, recipe, facts)
                advance(note=names[number])
            after = (time.perf_counter() - started) * (len(left) / len(chosen) - 1)
            if start == 0 and after > WORTH_SAYING_SECONDS:
                log.info("drawing %d more: about %s", len(left) - len(chosen), duration(after))
    _write_table(out, names, recipe.channels)
    log.info("%d scans of nobody in %s, listed in %s", len(names), out, TABLE)
    return [out / name for name in names]


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
    steps = len(drawing.times) - 1
    facts = {
        **trained.facts,
        "seed": options.seed,
        "guidance": drawing.guidance,
        "steps": steps,
        "limit": drawing.limit,
        "solver": drawing.solver.model_dump(mode="json"),
        "network_evaluations": steps * (2 if drawing.guidance not in (0, 1) else 1),
        "asked": options.asked,
    }
    log.info("model %s (%s): %d steps, guidance %g", run.name, trained.facts["recipe"], steps, drawing.guidance)
    return SynthesisSystem(
        recipe,
        denoiser,
        drawing,
        read_covariates(run),
        trained.device,
        trained.precision,
        facts,
        trained.networks.get(REGRESSOR),
    )


def asked_for(known: Covariates | None, options: SynthesisOptions) -> list[list[float]] | None:
    """The scaled covariates of every scan; None of a model without. Raises: UsageError for what the model does not know."""
    if known is None or options.unconditional:
        if options.asked:
            why = "--unconditional leaves covariates out" if known else "the model was trained without covariates"
            raise UsageError(f"{why}, but {next(iter(options.asked))} is asked for", fix="leave it out")
        return None if known is None else [list(known.mean)] * options.number
    draws = [np.random.default_rng(seed_of(options.seed, "covariates", number)) for number in range(options.number)]
    return [known.drawn(options.asked, draw) for draw in draws]


def _is_complete(folder: Path, identity: Identity) -> bool:
    """Whether this very scan is there, every file as it was written. Raises: UsageError where another one is."""
    known = read_facts(folder / FACTS)
    if not known:
        return False
    identity.check(known, folder.name)
    outputs = known.get("outputs")
    if known.get("schema") != SCHEMA or not isinstance(outputs, dict):
        return False
    return all((folder / name).is_file() and sha256_of(folder / name) == digest for name, digest in outputs.items())


def _write(folder: Path, image: Tensor, recipe: SynthesisRecipe, facts: Mapping[str, Any]) -> None:
    """CHANNEL.nii.gz of image [C, *S] in [-1, 1], and case.json."""
    with made_anew(folder) as new:
        new.mkdir(parents=True)
        digests = {}
        for channel, values in zip(recipe.channels, image, strict=True):
            path = new / f"{channel}.nii.gz"
            write_volume(path, as_written(values.numpy()), affine_of(recipe), code=2)
            digests[path.name] = sha256_of(path)
        known = {"case": folder.name, "schema": SCHEMA, "task": "synthesise", **facts}
        write_json(new / FACTS, known | {"warnings": [], "outputs": digests})


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


def _write_table(out: Path, names: list[str], channels: tuple[str, ...]) -> None:
    """OUT/cases.csv: a row a scan, with its covariates, as every verb reads it."""
    rows = []
    for name in names:
        covariates = read_facts(out / name / FACTS).get("covariates") or {}
        paths = {channel: f"{name}/{channel}.nii.gz" for channel in channels}
        rows.append({"case": name, "patient": name, **paths, **{key: str(value) for key, value in covariates.items()}})
    write_manifest(out / TABLE, rows)
