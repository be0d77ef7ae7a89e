"""`train-synth`: a table of cases in, a run folder out with the networks that draw scans: latent space and denoiser."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medseg_diff.console import log
from medseg_diff.data.datasets.batch import Batch
from medseg_diff.data.datasets.volumes import WithCovariates
from medseg_diff.data.tables.manifest import Manifest
from medseg_diff.errors import counted
from medseg_diff.evenly import evenly_spaced
from medseg_diff.networks.noisy_classifier import NoisyClassifier
from medseg_diff.recipes.covariates import Covariates, values_of, write_covariates
from medseg_diff.recipes.spaces import AUTOENCODER, space_of
from medseg_diff.recipes.synthesis import DENOISER, REGRESSOR, SynthesisRecipe
from medseg_diff.recipes.trained import load_network
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.spaces import Space
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.train.adversarial import EveryPass, adversarial, alike, rates
from medseg_diff.tasks.train.latent import MEASURED, autoencoder_phase, examples_in, standardise, work_of_autoencoder
from medseg_diff.tasks.train.study import Study, prepare_synthesis_study
from medseg_diff.tasks.train.train import Material, TrainVerb, averaged, say_how_long
from medseg_diff.tasks.train.trajectories import draw_beside
from medseg_diff.tasks.training_options import TrainingRun
from medseg_diff.training.compression import Features
from medseg_diff.training.denoising import Denoising, ImageAndCovariates, described, validation_loss
from medseg_diff.training.estimate import Work
from medseg_diff.training.fit import Progress
from medseg_diff.training.job import Bench, Phase, seeded
from medseg_diff.training.objective import Objective
from medseg_diff.training.regression import Regression, measured


@with_plain_keywords
def train_synth(
    data: Annotated[Path, "Table of cases (CSV)."],
    training: TrainingRun,
    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps."] = "auto",
    data_root: Annotated[Path | None, "Folder that paths in the table are relative to [the table's]."] = None,
) -> Run:
    """Train the networks that draw scans like those of the table `data`, one after the other.

    Returns the run: weights/denoiser.safetensors, in a latent space weights/autoencoder.safetensors, and with covariates
    weights/regressor.safetensors and covariates.json, their ranges.
    Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; Diverged.
    """
    return VERB.run(data, training, device=device, data_root=data_root)


def _phases(given: Material[SynthesisRecipe], bench: Bench) -> Iterator[Phase]:
    recipe, fabric = given.recipe, bench.fabric
    known = _covariates_of(given)
    study = prepare_synthesis_study(given.manifest, recipe, cache=given.cache)
    shown = ShownImages.of(study, given.manifest, recipe, known)
    examples = shown.training
    numbers = len(examples), recipe.view.piece, counted(study.cases, "case"), len(shown.image)
    log.info("training on %d %s of %s, validating on %d", *numbers)
    quick = "quick/mask_to_mr" if recipe.regions else "quick/brain_ldm_3d"
    say_how_long(works_of(recipe, bench, examples), bench, quick=quick)
    regressor: NoisyClassifier | None = None
    if known:
        yield _regressor_phase(given, shown, examples, bench, separate=study.separate)
        regressor = load_network(recipe.build_regressor(), bench.run.weights(REGRESSOR), fabric.device)
    networks: dict[str, nn.Module] = {}
    if AUTOENCODER in recipe.parts():
        autoencoder = seeded(recipe.training.seed, recipe.build_autoencoder)
        given.warmed(AUTOENCODER, autoencoder)
        features: Features | None = regressor.maps if regressor else None
        yield autoencoder_phase(recipe, autoencoder, examples, shown.image, bench, features=features)
        images = (examples.plain(number)["image"][None] for number in evenly_spaced(range(len(examples)), MEASURED))
        networks[AUTOENCODER] = standardise(recipe.build_autoencoder(), images, bench)
    if known and fabric.global_rank == 0:
        write_covariates(bench.run, known)
    yield _denoiser_phase(given, shown, space_of(recipe.space, networks), bench)


def _then(recipe: SynthesisRecipe) -> str:
    return "--masks CSV --out painted" if recipe.regions else "--number 8 --out synthetic"


VERB = TrainVerb("train-synth", "synthesise", "brain_ldm_3d", _phases, then=_then)


def _covariates_of(given: Material[SynthesisRecipe]) -> Covariates | None:
    """The ranges of the recipe's covariates among the cases trained on. Raises: ManifestError where a case lacks one."""
    manifest, names = given.manifest, given.recipe.covariates
    trained = manifest.of("train") or manifest.cases
    for case in manifest.of("val") if names else ():
        values_of(case, names)
    return Covariates.measured(names, trained) if names else None


@dataclass(frozen=True)
class ShownImages:
    """The pieces to learn from with their covariates; of those validated on image [N, C, *S], covariates [N, K] and, where
    the recipe has regions, mask [N, R, *S], -1 outside and 1 inside."""

    training: WithCovariates
    image: Tensor
    covariates: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(cls, study: Study, manifest: Manifest, recipe: SynthesisRecipe, known: Covariates | None) -> "ShownImages":
        used = {case.name for case in (*study.training.cases, *study.held.cases)} if known else set()
        cases = [case for case in manifest.cases if case.name in used]
        scaled = {case.name: known.scaled(values_of(case, known.names)) for case in cases if known}
        outline = recipe.preparation.background if recipe.outline else None
        held, training = (
            WithCovariates(pieces, scaled, bool(recipe.regions), outline) for pieces in (study.held, study.training)
        )
        chosen = evenly_spaced(range(len(held)), recipe.validation.images)
        parts = [held.plain(number) for number in chosen]
        together = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        return cls(training, together["image"], together.get("covariates"), together.get("mask"))

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, start: int, stop: int) -> Batch:
        """Some of those validated on."""
        known = {"image": self.image, "covariates": self.covariates, "mask": self.mask}
        return Batch(**{name: part[start:stop] for name, part in known.items() if part is not None})


def _regressor_phase(
    given: Material[SynthesisRecipe], shown: ShownImages, examples: WithCovariates, bench: Bench, *, separate: bool
) -> Phase:
    """The network that reads covariates off a scan; its validation is the correlation with what the table says."""
    recipe, settings = given.recipe, given.recipe.regressor_training
    regressor = seeded(settings.seed, recipe.build_regressor)
    given.warmed(REGRESSOR, regressor)

    def validate(progress: Progress) -> dict[str, float]:
        return skill_of(progress.averages[REGRESSOR], shown, recipe, bench.fabric)

    return Phase(
        REGRESSOR,
        Regression(regressor),
        examples,
        settings,
        validate=validate,
        better="val_r" if separate else None,
        prefix="regressor_",
        weights={REGRESSOR: {"best": REGRESSOR}},
    )


def skill_of(regressor: nn.Module, shown: ShownImages, recipe: SynthesisRecipe, fabric: Fabric) -> dict[str, float]:
    """Pearson's correlation of every covariate with what the network reads off the validation images, and their mean."""
    assert shown.covariates is not None
    with torch.no_grad(), fabric.autocast():
        said = torch.cat([measured(regressor, part.to(fabric.device)).cpu() for part in shown.image.split(1)])
    truth = shown.covariates.double()
    away, off = (values - values.mean(dim=0) for values in (said.double(), truth))
    r = (away * off).sum(dim=0) / (away.norm(dim=0) * off.norm(dim=0)).clamp(min=1e-12)
    named = {f"val_r_{name}": float(value) for name, value in zip(recipe.covariates, r, strict=True)}
    return {"val_r": float(r.mean()), "val_error": float((said - truth).square().mean()), **named}


def _denoiser_phase(given: Material[SynthesisRecipe], shown: ShownImages, space: Space, bench: Bench) -> Phase:
    """The last weights are kept: an average that has cooled down does not overtake itself."""
    recipe, fabric = given.recipe, bench.fabric
    seed = recipe.training.seed
    built = seeded(seed, recipe.build_denoiser)
    given.warmed(DENOISER, built.module())
    examples, learned_in = examples_in(recipe, shown.training, space, bench)
    pair = ImageAndCovariates(learned_in, recipe.covariate_dropout, seed, fabric.global_rank)
    objective: Objective = Denoising(built, pair, seed=seed, rank=fabric.global_rank, noise=recipe.noise)
    if recipe.generator:
        objective = adversarial(recipe, built, rank=fabric.global_rank)

    def validate(progress: Progress) -> dict[str, float]:
        if recipe.generator:
            return alike(progress, recipe, space, fabric, count=len(shown.image))
        return denoising_error(progress, recipe, shown, space, fabric)

    def draw(progress: Progress, path: Path) -> None:
        count = min(recipe.validation.drawn, len(shown.image))
        known = described(shown.batch(0, count))
        with fabric.autocast():
            drawing = recipe.drawing(space, steps=min(recipe.sampling.steps, SHOWN_STEPS))
            seeds = [seed_of(seed, "shown", number) for number in range(count)]
            images = drawing.images(
                averaged(progress, recipe), seeds, known.covariates, fabric.device, masks=known.mask
            )
        beside = {"held out": shown.image[:count], "drawn": images}
        draw_beside(beside, path, orientation=recipe.preparation.orientation)

    return Phase(
        DENOISER,
        objective,
        examples,
        recipe.training,
        validate=validate,
        draw=draw if recipe.validation.drawn else None,
        prefix="denoiser_",
        settings_of=rates(recipe),
        weights={DENOISER: {"best": DENOISER}},
    )


SHOWN_STEPS = 25


def denoising_error(
    progress: Progress, recipe: SynthesisRecipe, shown: ShownImages, space: Space, fabric: Fabric
) -> dict[str, float]:
    """The averaged denoiser's loss on validation images, conditioned as they are, with the same noise every time."""
    size = recipe.training.passes_batch
    batches = [shown.batch(start, start + size) for start in range(0, len(shown.image), size)]
    pair, seed = ImageAndCovariates(space, 0.0), recipe.training.seed
    loss = validation_loss(averaged(progress, recipe), pair, batches, fabric, seed=seed, noise=recipe.noise)
    return {"val_loss": loss}


def works_of(recipe: SynthesisRecipe, bench: Bench, examples: WithCovariates | None = None) -> list[Work]:
    """What is left to do for each network."""
    channels, size = len(recipe.channels), recipe.view.size
    works = [
        Work(
            lambda: EveryPass(recipe) if recipe.generator else recipe.build_denoiser().module(),
            bench.left(DENOISER, recipe.training),
            recipe.network.width,
            recipe.grid,
            len(recipe.x_channels),
            examples=None if recipe.encodes_once else examples,
        )
    ]
    if REGRESSOR in recipe.parts():
        settings = bench.left(REGRESSOR, recipe.regressor_training)
        works.append(Work(recipe.build_regressor, settings, recipe.regressor.width, size, channels, examples=examples))
    if AUTOENCODER in recipe.parts():
        works.append(work_of_autoencoder(recipe, bench, examples))
    return works
