"""`train-seg`: a table of cases in, a run folder with a trained segmentation model out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from lightning_fabric import Fabric

from medseg_diff.console import log
from medseg_diff.data.datasets.batch import Items
from medseg_diff.errors import counted
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.typicality import write_typicality
from medseg_diff.run import Run
from medseg_diff.studies import FoldStudy
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.train.calibration import calibrate, draw_ensemble
from medseg_diff.tasks.train.folds import FoldedVerb
from medseg_diff.tasks.train.out_of_fold import conclude, predict, that_choose_nothing
from medseg_diff.tasks.train.study import ValidationSlices, learned_from_phantoms, prepare_study
from medseg_diff.tasks.train.train import Material, TrainVerb, averaged, say_how_long
from medseg_diff.tasks.train.trajectories import draw_masks
from medseg_diff.tasks.train.validation import loss_on_slices
from medseg_diff.tasks.training_options import Folds, TrainingRun
from medseg_diff.training.denoising import Denoising, MaskAndImage
from medseg_diff.training.estimate import Work
from medseg_diff.training.fit import Progress
from medseg_diff.training.job import Bench, Phase, seeded


@with_plain_keywords
def train_seg(
    data: Annotated[Path, "Table of cases (CSV)."],
    training: TrainingRun,
    folds: Folds,
    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps."] = "auto",
    data_root: Annotated[Path | None, "Folder that paths in the table are relative to [the table's]."] = None,
) -> Run | FoldStudy:
    """Train a recipe on the table `data`. Returns the run, or the study of so many `folds`.

    Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; Diverged.
    """
    return FOLDED.run(data, training, folds, device=device, data_root=data_root)


def _phases(given: Material[SegmentationRecipe], bench: Bench) -> Iterator[Phase]:
    recipe, fabric, seed = given.recipe, bench.fabric, given.recipe.training.seed
    study = prepare_study(given.manifest, recipe, cache=given.cache)
    slices = study.validation(recipe.validation.slices)
    numbers = len(study.training), recipe.view.piece, counted(study.cases, "case"), len(slices)
    log.info("training on %d %s of %s, validating on %d", *numbers)
    say_how_long([work_of(recipe, bench, study.training)], bench, quick="quick/mask_logits")
    denoiser = seeded(seed, recipe.build_denoiser)
    given.warmed("best", denoiser.module())

    def draw(progress: Progress, path: Path) -> None:
        draw_masks(recipe.for_masks(averaged(progress, recipe)), recipe, slices, path, fabric)

    yield Phase(
        "segmentation",
        Denoising(denoiser, MaskAndImage(recipe.space), seed=seed, rank=fabric.global_rank, noise=recipe.noise),
        study.training,
        recipe.training,
        validate=lambda progress: validate(progress, recipe, slices, fabric),
        draw=draw if recipe.validation.trajectories else None,
        better="val_dice",
        latest=recipe.validation.weights == "last" or not study.separate,
    )
    if fabric.global_rank == 0:
        phantoms = learned_from_phantoms(given.manifest)
        write_typicality(bench.run, study.appearances, phantoms=phantoms, labels=study.labels)
        calibrate(bench.run, recipe, study, fabric)


VERB = TrainVerb("train-seg", "segment", "mask_logits", _phases)
FOLDED = FoldedVerb(VERB, that_choose_nothing, predict, conclude)


def validate(
    progress: Progress, recipe: SegmentationRecipe, slices: ValidationSlices, fabric: Fabric
) -> dict[str, float]:
    """Dice of a small ensemble over all validation slices together, as `segment` would draw it, and the loss on them."""
    plan = recipe.plan(members=recipe.validation.members, members_at_once=recipe.validation.members)
    ensemble = draw_ensemble(averaged(progress, recipe), recipe, slices, plan, fabric, purpose="validation")
    mask, reference = (ensemble.mean > 0.5).cpu(), slices.mask
    overlap = (mask & reference).transpose(0, 1).flatten(1).sum(1)
    size = mask.transpose(0, 1).flatten(1).sum(1) + reference.transpose(0, 1).flatten(1).sum(1)
    dice = [float(2 * o / s) if s else 1.0 for o, s in zip(overlap, size, strict=True)]
    named = {f"val_dice_{region}": value for region, value in zip(recipe.regions, dice, strict=True)}
    found = {"val_dice": sum(dice) / len(dice), **(named if len(dice) > 1 else {})}
    times = (1, recipe.schedule.length)
    return found | loss_on_slices(
        averaged(progress, recipe), recipe, slices, MaskAndImage(recipe.space), fabric, times=times
    )


def work_of(recipe: SegmentationRecipe, bench: Bench, examples: Items | None = None) -> Work:
    """What is left to do, the sampling of the validations included."""
    return Work(
        lambda: recipe.build_denoiser().module(),
        bench.left("segmentation", recipe.training),
        recipe.network.width,
        recipe.view.size,
        len(recipe.regions),
        image_channels=recipe.view.shown(len(recipe.channels)),
        sampled=recipe.validation.slices * recipe.validation.members * recipe.sampling.steps,
        examples=examples,
    )
