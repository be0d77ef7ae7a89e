"""`train-seg`: a table of cases in, a run folder with a trained segmentation model out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg_diff.console import log
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.diffusion import Condition
from medseg_diff.methods.sampled_segmentation import Ensemble, sample_masks
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe, for_masks
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.train.calibration import calibrate
from medseg_diff.tasks.train.study import ValidationSlices, check_channels, prepare_study, with_splits
from medseg_diff.tasks.train.trajectories import film_segmentation
from medseg_diff.training.denoising import MaskDenoising
from medseg_diff.training.estimate import BACKWARD_AND_FORWARD, LONG_SECONDS, in_words, pass_seconds
from medseg_diff.training.fit import Progress
from medseg_diff.training.job import Bench, Job, Phase, Resume, seeded, train

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def train_seg(
    data: Path,
    *,
    config: str = "mask_logits",
    out: Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    data_root: Path | None = None,
    runs: Path = Path("runs"),
    mlflow: bool = True,
    resume: Resume | None = None,
    parent: str | None = None,
) -> Run:
    """Train the recipe `config` on the table `data`; returns the run, whose folder is `out` or a new one below `runs`.

    In MLflow, the runs of one `parent`, a study's name, hang below a run of that name.
    Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; Diverged.
    """
    recipe = load_recipe(config, task="segment", overrides=overrides)
    manifest, by_slices = with_splits(read_manifest(Path(data), data_root=data_root))
    check_channels(manifest, recipe.channels, fill_missing=recipe.bears_missing_channels)
    name = Path(config).stem if config.endswith((".yaml", ".yml")) else config.replace("/", "-")

    def phases(bench: Bench) -> Iterator[Phase]:
        study = prepare_study(manifest, recipe, cache=runs / "cache", by_slices=by_slices)
        log.info(
            "training on %d %s of %d cases, validating on %d",
            len(study.training),
            recipe.view.piece,
            study.cases,
            len(study.validation),
        )
        left = recipe.model_copy(update={"training": bench.left("segmentation", recipe.training)})
        log.info("%s", estimate(left, bench.fabric, bench.precision))
        denoiser = seeded(recipe.training.seed, recipe.build_denoiser)

        def filmed(progress: Progress, path: Path) -> None:
            film(progress, recipe, study.validation, bench.fabric, path)

        yield Phase(
            "segmentation",
            MaskDenoising(denoiser, seed=recipe.training.seed, rank=bench.fabric.global_rank),
            study.training,
            recipe.training,
            validate=lambda progress: validate(progress, recipe, study.validation, bench.fabric),
            film=filmed if recipe.validation.film else None,
            better="val_dice",
        )
        if bench.fabric.global_rank == 0:
            calibrate(bench.run, recipe, study, bench.fabric)

    command = ["medseg-diff", "train-seg", "--data", str(data), "--config", config, *overrides]
    command += ["--data-root", str(data_root)] if data_root else []
    job = Job("segment", name, recipe, manifest, precision=recipe.training.precision, command=command, parent=parent)
    run = train(job, phases, out=out, runs=runs, device=device, mlflow=mlflow, resume=resume)
    log.info("next: medseg-diff segment --model %s --volume PATIENT_FOLDER --out results", run.folder)
    return run


def validate(
    progress: Progress, recipe: SegmentationRecipe, slices: ValidationSlices, fabric: "Fabric"
) -> dict[str, float]:
    """Dice of a small ensemble over all validation slices together, as `segment` would draw it."""
    averaged = progress.averages["denoiser"]
    denoiser = recipe.denoiser.around(averaged, recipe.schedule)
    plan = recipe.plan(members=recipe.validation.members, members_at_once=recipe.validation.members)
    images = slices.image.to(fabric.device)
    ensemble = Ensemble(len(slices), len(recipe.regions), images.shape[2:], plan.members, fabric.device)

    def own_seed(z: int, member: int) -> int:
        return seed_of(recipe.training.seed, "validation", z, member)

    with fabric.autocast():
        for place, probability in sample_masks(
            for_masks(denoiser), images, range(len(slices)), plan, regions=len(recipe.regions), seed_of=own_seed
        ):
            ensemble.add(place, probability)
    mask, reference = (ensemble.mean > 0.5).cpu(), slices.mask
    overlap = (mask & reference).transpose(0, 1).flatten(1).sum(1)
    size = mask.transpose(0, 1).flatten(1).sum(1) + reference.transpose(0, 1).flatten(1).sum(1)
    dice = [float(2 * o / s) if s else 1.0 for o, s in zip(overlap, size, strict=True)]
    named = {f"val_dice_{region}": value for region, value in zip(recipe.regions, dice, strict=True)}
    return {"val_dice": sum(dice) / len(dice), **(named if len(dice) > 1 else {})}


def film(
    progress: Progress, recipe: SegmentationRecipe, slices: ValidationSlices, fabric: "Fabric", path: Path
) -> None:
    """Draw a few validation slices on their way from noise to mask. Raises: EnvironmentFault."""
    denoiser = for_masks(recipe.denoiser.around(progress.averages["denoiser"], recipe.schedule))
    with fabric.autocast():
        film_segmentation(denoiser, recipe, slices.image, slices.mask, path, device=fabric.device)


def estimate(recipe: SegmentationRecipe, fabric: "Fabric", precision: str) -> str:
    """`this machine: about 41 days`, and what to do about it where that is long."""
    seconds = training_seconds(recipe, fabric, precision)
    settings = recipe.training
    words = f"this machine: about {in_words(seconds)} for {settings.steps} steps of {settings.batch} ({precision})"
    long = seconds > LONG_SECONDS and fabric.device.type == "cpu"
    return words + ("; try --config quick/mask_logits, or a machine with a GPU" if long else "")


def training_seconds(recipe: SegmentationRecipe, fabric: "Fabric", precision: str) -> float:
    """Seconds that the recipe's training takes here, the sampling of its validations included."""
    import torch

    settings = recipe.training

    def run(network: torch.nn.Module, batch: int, on: torch.device) -> torch.Tensor:
        x = torch.zeros(batch, len(recipe.regions), *recipe.view.size, device=on)
        image = torch.zeros(batch, recipe.view.shown(len(recipe.channels)), *recipe.view.size, device=on)
        answer = network(x, torch.ones(batch, device=on), Condition(image=image))
        assert isinstance(answer, torch.Tensor)
        return answer

    def build() -> torch.nn.Module:
        network = recipe.build_denoiser().network
        assert isinstance(network, torch.nn.Module)
        return network

    with fabric.autocast():
        per_pass = pass_seconds(
            build,
            run,
            batch=settings.passes_batch,
            width=recipe.network.width,
            device=fabric.device,
            precision=torch.bfloat16 if precision == "bf16" else torch.float32,
        )
    sampled = recipe.validation.slices * recipe.validation.members * recipe.sampling.steps
    sampled *= -(-settings.steps // settings.validate_every)
    forward = per_pass / settings.passes_batch / BACKWARD_AND_FORWARD
    return settings.steps * settings.accumulate * per_pass + sampled * forward
