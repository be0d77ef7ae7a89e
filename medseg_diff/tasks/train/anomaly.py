"""`train-anomaly`: a table of cases in, a run folder out with an engine's networks and its calibration on healthy brains."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from lightning_fabric import Fabric
from torch import nn

from medseg_diff.console import log
from medseg_diff.data.datasets.batch import Items
from medseg_diff.data.datasets.labelled import HalfAndHalf
from medseg_diff.errors import counted
from medseg_diff.evenly import evenly_spaced
from medseg_diff.files import write_table
from medseg_diff.methods.anomaly.engine import Reconstruction
from medseg_diff.networks.noisy_classifier import HEALTHY
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.spaces import AUTOENCODER, LatentSettings, space_of
from medseg_diff.recipes.trained import load_network
from medseg_diff.recipes.typicality import write_typicality
from medseg_diff.run import Run
from medseg_diff.spaces import Space
from medseg_diff.studies import FoldStudy
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.train.folds import FoldedVerb
from medseg_diff.tasks.train.labelled_study import LabelledStudy, prepare_labelled_study
from medseg_diff.tasks.train.latent import MEASURED, autoencoder_phase, examples_in, standardise, work_of_autoencoder
from medseg_diff.tasks.train.normative import calibrate
from medseg_diff.tasks.train.study import ValidationSlices, learned_from_phantoms
from medseg_diff.tasks.train.train import Material, TrainVerb, averaged, say_how_long
from medseg_diff.tasks.train.trajectories import draw_reconstruction
from medseg_diff.tasks.train.validation import loss_on_slices
from medseg_diff.tasks.training_options import Folds, TrainingRun
from medseg_diff.training.classification import NoisyClassification, Skill, skill_by_time
from medseg_diff.training.denoising import (
    Denoising,
    HiddenTissue,
    ImageAndLabel,
    ImageOnItself,
    Pair,
)
from medseg_diff.training.estimate import Work
from medseg_diff.training.fit import Progress
from medseg_diff.training.job import Bench, Phase, seeded

TIMES_MEASURED = 11  # of the classifier, from 1 to the deepest that it has learned


@with_plain_keywords
def train_anomaly(
    data: Annotated[Path, "Table of cases (CSV)."],
    training: TrainingRun,
    folds: Folds,
    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps."] = "auto",
    data_root: Annotated[Path | None, "Folder that paths in the table are relative to [the table's]."] = None,
) -> Run | FoldStudy:
    """Train the networks of a recipe's engine on the table `data`, one after the other; then measure healthy brains.

    Returns the run: weights/denoiser.safetensors, calibration.json (normative mean and threshold); with a classifier also
    weights/classifier.safetensors and classifier.csv (how well it tells slices apart, time by time). With `folds` it is a
    study of so many runs, each measured on patients that it has not learned from.
    Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; Diverged.
    """
    return FOLDED.run(data, training, folds, device=device, data_root=data_root)


def _phases(given: Material[AnomalyRecipe], bench: Bench) -> Iterator[Phase]:
    recipe, fabric = given.recipe, bench.fabric
    study = prepare_labelled_study(given.manifest, recipe, cache=given.cache)
    numbers = len(study.training), counted(study.cases, "case"), study.healthy, study.diseased, len(study.validation)
    log.info("training on %d slices of %s (labelled: %d healthy, %d diseased), validating on %d", *numbers)
    examples = {"denoiser": study.training, "classifier": study.classified}
    say_how_long(works_of(recipe, bench, examples), bench, quick="quick/inpainting")
    networks: dict[str, nn.Module] = {}
    if isinstance(recipe.space, LatentSettings):
        autoencoder = seeded(recipe.training.seed, recipe.build_autoencoder)
        given.warmed(AUTOENCODER, autoencoder)
        learned = study.training
        yield autoencoder_phase(recipe, autoencoder, learned, cohort_of(recipe, study).image, bench)
        images = (learned.plain(number)[None] for number in evenly_spaced(range(len(learned)), MEASURED))
        networks[AUTOENCODER] = standardise(recipe.build_autoencoder(), images, bench)
    yield _denoiser_phase(given, study, space_of(recipe.space, networks), bench)
    if study.classified:
        yield _classifier_phase(given, study, study.classified, bench)
    if fabric.global_rank == 0:
        write_typicality(bench.run, study.appearances, phantoms=learned_from_phantoms(given.manifest))
        skill = measure_classifier(bench.run, recipe, study, fabric) if study.classified else []
        calibrate(bench.run, given.manifest, skill=skill, device=_name_of(fabric), precision=bench.precision)


VERB = TrainVerb("train-anomaly", "anomaly", "inpainting", _phases)
FOLDED = FoldedVerb(VERB)


def _denoiser_phase(given: Material[AnomalyRecipe], study: LabelledStudy, space: Space, bench: Bench) -> Phase:
    """The last weights are kept: an average that has cooled down does not overtake itself."""
    recipe, rank = given.recipe, bench.fabric.global_rank
    seed = recipe.training.seed
    built = seeded(seed, recipe.build_denoiser)
    given.warmed("denoiser", built.module())
    earliest, deepest = recipe.denoised_times
    examples, learned_in = examples_in(recipe, study.training, space, bench)
    pair = pair_of(recipe, learned_in, rank)
    objective = Denoising(built, pair, seed=seed, rank=rank, earliest=earliest, deepest=deepest, noise=recipe.noise)

    def draw(progress: Progress, path: Path) -> None:
        draw_reconstruction(recipe.networks(averaged(progress, recipe), space=space), recipe, study, path, bench.fabric)

    return Phase(
        "denoiser",
        objective,
        examples,
        recipe.training,
        validate=lambda progress: denoising_error(progress, recipe, study, space, bench.fabric),
        draw=draw if shows_trajectories(recipe) else None,
        prefix="denoiser_",
        weights={"denoiser": {"best": "denoiser"}},
    )


def _classifier_phase(given: Material[AnomalyRecipe], study: LabelledStudy, slices: HalfAndHalf, bench: Bench) -> Phase:
    """The weights that told validation slices apart best are kept, if there are slices of both kinds."""
    recipe, settings = given.recipe, given.recipe.classifier_training
    built = seeded(settings.seed, recipe.build_classifier)
    given.warmed("classifier", built)
    objective = NoisyClassification(
        built,
        recipe.schedule,
        seed=settings.seed,
        rank=bench.fabric.global_rank,
        space=space_of(recipe.space, {}),
        deepest=recipe.deepest,
        noise=recipe.noise,
    )

    def validate(progress: Progress) -> dict[str, float]:
        skill = skill_of(progress.averages["classifier"], recipe, study, bench.fabric)
        passed = [each for each in skill if each.t <= recipe.engine.deepest(recipe.schedule)]
        return {
            "val_accuracy": sum(each.balanced_accuracy for each in passed) / len(passed),
            "val_auroc": sum(each.auroc for each in passed) / len(passed),
        }

    def draw(progress: Progress, path: Path) -> None:
        denoiser = recipe.build_denoiser()
        load_network(denoiser.module(), bench.run.weights("denoiser"), bench.fabric.device)
        networks = recipe.networks(denoiser, progress.averages["classifier"])
        draw_reconstruction(networks, recipe, study, path, bench.fabric)

    both = study.of_both_kinds
    return Phase(
        "classifier",
        objective,
        slices,
        settings,
        validate=validate if both else None,
        draw=draw if shows_trajectories(recipe) else None,
        better="val_auroc" if both else None,
        prefix="classifier_",
        weights={"classifier": {"best": "classifier"}},
    )


def shows_trajectories(recipe: AnomalyRecipe) -> bool:
    """Whether validation draws how the engine decodes: one that makes no reconstruction has nothing to show."""
    return recipe.validation.trajectories > 0 and isinstance(recipe.engine, Reconstruction)


def denoising_error(
    progress: Progress, recipe: AnomalyRecipe, study: LabelledStudy, space: Space, fabric: Fabric
) -> dict[str, float]:
    """The averaged denoiser's loss on validation slices of its cohort, told no label, with the same noise every time."""
    denoiser, slices = averaged(progress, recipe), cohort_of(recipe, study)
    pair = pair_of(recipe, space, labels=False)
    return loss_on_slices(denoiser, recipe, slices, pair, fabric, times=recipe.denoised_times)


def cohort_of(recipe: AnomalyRecipe, study: LabelledStudy) -> ValidationSlices:
    """The validation slices of what the denoiser learns from; all of them where they are of one kind."""
    if recipe.engine.learns_from == "healthy" and study.of_both_kinds:
        return study.validation.take(study.label == HEALTHY)
    return study.validation


def pair_of(recipe: AnomalyRecipe, space: Space, rank: int = 0, *, labels: bool = True) -> Pair:
    """What its denoiser learns from a batch."""
    seed, engine = recipe.training.seed, recipe.engine
    if engine.conditioned_on == "rest":
        return HiddenTissue(engine.hiding, space, recipe.preparation.background, seed, rank)
    if engine.conditioned_on == "image":
        return ImageOnItself(space)
    return ImageAndLabel(space, recipe.label_dropout if labels and recipe.learns_labels else None, seed, rank)


def skill_of(classifier: nn.Module, recipe: AnomalyRecipe, study: LabelledStudy, fabric: Fabric) -> list[Skill]:
    """How well the classifier tells the validation slices apart, from t = 1 to the deepest that it has learned."""
    steps = min(TIMES_MEASURED, recipe.learned) - 1
    times = recipe.schedule.times(steps, start=1, stop=recipe.learned) if steps else [1]
    with fabric.autocast():
        return skill_by_time(
            classifier,
            recipe.schedule,
            study.validation.image.to(fabric.device),
            study.label,
            sorted({*times, recipe.engine.deepest(recipe.schedule)}),
            seed=recipe.classifier_training.seed,
            space=space_of(recipe.space, {}),
            kind=recipe.noise,
            batch=recipe.classifier_training.passes_batch,
        )


def measure_classifier(run: Run, recipe: AnomalyRecipe, study: LabelledStudy, fabric: Fabric) -> list[Skill]:
    """The kept classifier's skill by time, written as classifier.csv and drawn; empty where slices are of one kind only."""
    from medseg_diff.reporting.curves import draw_skill

    if not study.of_both_kinds:
        log.warning("the validation slices are all of one kind: how good the classifier is remains unknown")
        return []
    classifier = load_network(recipe.build_classifier(), run.weights("classifier"), fabric.device)
    skill = skill_of(classifier, recipe, study, fabric)
    table = run.folder / "classifier.csv"
    write_table(table, Skill._fields, [[each.t, *(f"{value:.4f}" for value in each[1:])] for each in skill])
    draw_skill(table, run.figures / "classifier.png")
    log.info(
        "classifier by time: %s",
        ", ".join(f"t {each.t} accuracy {each.balanced_accuracy:.2f} AUROC {each.auroc:.2f}" for each in skill[::3]),
    )
    return skill


def works_of(
    recipe: AnomalyRecipe, bench: Bench, examples: Mapping[str, Items | None] = MappingProxyType({})
) -> list[Work]:
    """What is left to do for each network of the engine, learning from its `examples`."""
    settings = {"denoiser": recipe.training, "classifier": recipe.classifier_training}
    width = {"denoiser": recipe.network.width, "classifier": recipe.classifier.width}
    step = recipe.space.step
    works = [
        Work(
            build,
            bench.left(name, settings[name]),
            width[name],
            [-(-n // step) for n in recipe.view.size],
            len(recipe.x_channels),
            len(recipe.names.image) if name == "denoiser" else 0,
            examples=None if recipe.encodes_once else examples.get(name),
        )
        for name, build in recipe.parts().items()
        if name in settings
    ]
    if AUTOENCODER in recipe.parts():
        works.append(work_of_autoencoder(recipe, bench, examples.get("denoiser")))
    return works


def _name_of(fabric: Fabric) -> str:
    """The device as the command line calls it."""
    device = fabric.device
    return device.type if device.index is None or device.type != "cuda" else f"cuda:{device.index}"
