"""`train-anomaly`: a table of cases in, a run folder with a denoiser and a noisy classifier out, and what healthy shows."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg_diff.console import log
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.diffusion import Condition
from medseg_diff.diffusion.losses import denoising_loss
from medseg_diff.files import write_table
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.train.anomaly_study import AnomalyStudy, LabelledValidation, prepare_anomaly_study
from medseg_diff.tasks.train.normative import calibrate
from medseg_diff.tasks.train.study import check_channels, with_splits
from medseg_diff.tasks.train.trajectories import film_healing
from medseg_diff.training.classification import NoisyClassification, Skill, skill_by_time
from medseg_diff.training.denoising import ImageDenoising, draw_times_and_noise
from medseg_diff.training.estimate import LONG_SECONDS, in_words, pass_seconds
from medseg_diff.training.fit import FitSettings, Progress, channels_last
from medseg_diff.training.job import Bench, Job, Phase, Resume, seeded, train
from medseg_diff.training.weights import load_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from medseg_diff.diffusion import Denoiser
    from medseg_diff.diffusion.denoiser import AnyDenoiser

SKILL_COLUMNS = ("t", "balanced_accuracy", "auroc", "cross_entropy")
TIMES_MEASURED = 11  # of the classifier, from 1 to the deepest that it has learned


def train_anomaly(
    data: Path,
    *,
    config: str = "guided",
    out: Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    data_root: Path | None = None,
    runs: Path = Path("runs"),
    mlflow: bool = True,
    resume: Resume | None = None,
    parent: str | None = None,
) -> Run:
    """Train the recipe `config` on the table `data`: the denoiser, then the classifier; then measure what healthy shows.

    Returns the run, whose folder is `out` or a new one below `runs`: weights/denoiser.safetensors, weights/classifier.
    safetensors, classifier.csv (how well it tells slices apart, time by time), calibration.json (floor and threshold).
    In MLflow, the runs of one `parent`, a study's name, hang below a run of that name.
    Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; Diverged.
    """
    recipe = load_recipe(config, task="anomaly", overrides=overrides)
    manifest, by_slices = with_splits(read_manifest(Path(data), data_root=data_root))
    check_channels(manifest, recipe.channels)
    name = Path(config).stem if config.endswith((".yaml", ".yml")) else config.replace("/", "-")

    def phases(bench: Bench) -> Iterator[Phase]:
        study = prepare_anomaly_study(manifest, recipe, cache=runs / "cache", by_slices=by_slices)
        healthy, diseased = (len(places) for places in study.classified.places)
        log.info(
            "training on %d slices of %d cases (%d healthy, %d diseased), validating on %d",
            len(study.training),
            study.cases,
            healthy,
            diseased,
            len(study.validation.label),
        )
        settings = {"denoiser": recipe.training, "classifier": recipe.classifier_training}
        training, classifier_training = (bench.left(name, each) for name, each in settings.items())
        left = recipe.model_copy(update={"training": training, "classifier_training": classifier_training})
        log.info("%s", estimate(left, bench.fabric, bench.precision))
        yield _denoiser_phase(recipe, study, bench)
        yield _classifier_phase(recipe, study, bench)
        if bench.fabric.global_rank == 0:
            skill = measure_classifier(bench.run, recipe, study.validation, bench.fabric)
            calibrate(bench.run, manifest, skill=skill, device=_name_of(bench.fabric), precision=bench.precision)

    command = ["medseg-diff", "train-anomaly", "--data", str(data), "--config", config, *overrides]
    command += ["--data-root", str(data_root)] if data_root else []
    job = Job("anomaly", name, recipe, manifest, precision=recipe.training.precision, command=command, parent=parent)
    run = train(job, phases, out=out, runs=runs, device=device, mlflow=mlflow, resume=resume)
    log.info("next: medseg-diff anomaly --model %s --volume PATIENT_FOLDER --out results", run.folder)
    return run


def _denoiser_phase(recipe: AnomalyRecipe, study: AnomalyStudy, bench: Bench) -> Phase:
    """The last weights are kept: an average that has cooled down does not overtake itself."""
    objective = ImageDenoising(
        seeded(recipe.training.seed, recipe.build_denoiser),
        seed=recipe.training.seed,
        rank=bench.fabric.global_rank,
        image_scale=recipe.image_scale,
        deepest=recipe.deepest,
        label_dropout=recipe.label_dropout if recipe.network.classes else None,
    )

    def filmed(progress: Progress, path: Path) -> None:
        denoiser = recipe.denoiser.around(progress.averages["denoiser"], recipe.schedule)
        film(denoiser, denoiser, recipe, study.validation, bench.fabric, path)

    return Phase(
        "denoiser",
        objective,
        study.training,
        recipe.training,
        validate=lambda progress: denoising_error(progress, recipe, study.validation, bench.fabric),
        film=filmed if recipe.validation.film else None,
        prefix="denoiser_",
        keeps="denoiser",
        weights={"best": "denoiser"},
    )


def _classifier_phase(recipe: AnomalyRecipe, study: AnomalyStudy, bench: Bench) -> Phase:
    """The weights that told validation slices apart best are kept, if there are slices of both kinds."""
    import torch

    settings = recipe.classifier_training
    objective = NoisyClassification(
        seeded(settings.seed, recipe.build_classifier),
        recipe.schedule,
        seed=settings.seed,
        rank=bench.fabric.global_rank,
        image_scale=recipe.image_scale,
        deepest=recipe.deepest,
    )

    def validate(progress: Progress) -> dict[str, float]:
        skill = skill_of(progress.averages["classifier"], recipe, study.validation, bench.fabric)
        passed = [each for each in skill if each.t <= recipe.healing.depth]
        return {
            "val_accuracy": sum(each.balanced_accuracy for each in passed) / len(passed),
            "val_auroc": sum(each.auroc for each in passed) / len(passed),
        }

    def filmed(progress: Progress, path: Path) -> None:
        denoiser = recipe.build_denoiser()
        assert isinstance(denoiser.network, torch.nn.Module)
        load_weights(denoiser.network, bench.run.weights("denoiser"))
        channels_last(denoiser.network).to(bench.fabric.device).eval()
        guided = recipe.healing.guided(denoiser, progress.averages["classifier"])
        film(denoiser, guided, recipe, study.validation, bench.fabric, path)

    both = study.validation.of_both_kinds
    return Phase(
        "classifier",
        objective,
        study.classified,
        settings,
        validate=validate if both else None,
        film=filmed if recipe.validation.film else None,
        better="val_auroc" if both else None,
        prefix="classifier_",
        keeps="classifier",
        weights={"best": "classifier"},
    )


def denoising_error(
    progress: Progress, recipe: AnomalyRecipe, slices: LabelledValidation, fabric: "Fabric"
) -> dict[str, float]:
    """The averaged denoiser's loss on the validation slices, told nothing, at the same times and noise every time."""
    import torch

    denoiser = recipe.denoiser.around(progress.averages["denoiser"], recipe.schedule)
    batch, losses = recipe.training.passes_batch, []
    with torch.no_grad(), fabric.autocast():
        for start in range(0, len(slices.image), batch):
            clean = slices.image[start : start + batch].to(fabric.device) * recipe.image_scale
            own = seed_of(recipe.training.seed, "validation", start)
            t, noise = draw_times_and_noise(clean, own, deepest=recipe.deepest or recipe.schedule.length)
            losses.append(denoising_loss(denoiser, clean, t, noise, Condition())["simple"].float())
    return {"val_loss": float(torch.cat(losses).mean())}


def film(
    denoiser: "Denoiser",
    guided: "AnyDenoiser",
    recipe: AnomalyRecipe,
    slices: LabelledValidation,
    fabric: "Fabric",
    path: Path,
) -> None:
    """Draw a few validation slices on their way to noise and back. Raises: EnvironmentFault."""
    with fabric.autocast():
        film_healing(denoiser, guided, recipe, slices.image, slices.label, path, device=fabric.device)


def skill_of(
    classifier: "nn.Module", recipe: AnomalyRecipe, slices: LabelledValidation, fabric: "Fabric"
) -> list[Skill]:
    """How well the classifier tells the validation slices apart, from t = 1 to the deepest that it has learned."""
    deepest = recipe.deepest or recipe.schedule.length
    steps = min(TIMES_MEASURED, deepest) - 1
    times = recipe.schedule.times(steps, start=1, stop=deepest) if steps else [1]
    with fabric.autocast():
        return skill_by_time(
            classifier,
            recipe.schedule,
            slices.image.to(fabric.device),
            slices.label,
            sorted({*times, recipe.healing.depth}),
            seed=recipe.classifier_training.seed,
            image_scale=recipe.image_scale,
            batch=recipe.classifier_training.passes_batch,
        )


def measure_classifier(run: Run, recipe: AnomalyRecipe, slices: LabelledValidation, fabric: "Fabric") -> list[Skill]:
    """The kept classifier's skill by time, written as classifier.csv and drawn; empty where slices are of one kind only."""
    from medseg_diff.reporting.skill import draw_skill

    if not slices.of_both_kinds:
        log.warning("the validation slices are all of one kind: how well the classifier does is not known")
        return []
    classifier = recipe.build_classifier()
    load_weights(classifier, run.weights("classifier"))
    channels_last(classifier).to(fabric.device).eval()
    skill = skill_of(classifier, recipe, slices, fabric)
    table = run.folder / "classifier.csv"
    write_table(table, SKILL_COLUMNS, [[each.t, *(f"{value:.4f}" for value in each[1:])] for each in skill])
    draw_skill(table, run.figures / "classifier.png")
    log.info(
        "classifier by time: %s",
        ", ".join(f"t {each.t} accuracy {each.balanced_accuracy:.2f} AUROC {each.auroc:.2f}" for each in skill[::3]),
    )
    return skill


def estimate(recipe: AnomalyRecipe, fabric: "Fabric", precision: str) -> str:
    """`this machine: about 41 days`, and what to do about it where that is long."""
    seconds = training_seconds(recipe, fabric, precision)
    long = seconds > LONG_SECONDS and fabric.device.type == "cpu"
    advice = "; try --config quick/guided, or a machine with a GPU" if long else ""
    return f"this machine: about {in_words(seconds)} for both networks ({precision}){advice}"


def training_seconds(recipe: AnomalyRecipe, fabric: "Fabric", precision: str) -> float:
    """Seconds that both trainings take here."""
    import torch

    def denoiser() -> torch.nn.Module:
        network = recipe.build_denoiser().network
        assert isinstance(network, torch.nn.Module)
        return network

    def run(network: torch.nn.Module, batch: int, on: torch.device) -> torch.Tensor:
        x = torch.zeros(batch, len(recipe.channels), *recipe.view.size, device=on)
        answer = network(x, torch.ones(batch, device=on), Condition())
        assert isinstance(answer, torch.Tensor)
        return answer

    works: list[tuple[Callable[[], torch.nn.Module], FitSettings, int]] = [
        (denoiser, recipe.training, recipe.network.width),
        (recipe.build_classifier, recipe.classifier_training, recipe.classifier.width),
    ]
    seconds, dtype = 0.0, torch.bfloat16 if precision == "bf16" else torch.float32
    for build, settings, width in works:
        with fabric.autocast():
            per_pass = pass_seconds(
                build, run, batch=settings.passes_batch, width=width, device=fabric.device, precision=dtype
            )
        seconds += settings.steps * settings.accumulate * per_pass
    return seconds


def _name_of(fabric: "Fabric") -> str:
    """The device as the command line calls it."""
    device = fabric.device
    return device.type if device.index is None or device.type != "cuda" else f"cuda:{device.index}"
