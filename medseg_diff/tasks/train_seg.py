"""`train-seg`: a table of cases in, a run folder with a trained segmentation model out."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg_diff.data.loaders import SeededDraws, batches
from medseg_diff.data.manifest import read_manifest
from medseg_diff.diffusion import Condition, Denoiser
from medseg_diff.methods.sampled_segmentation import Ensemble, sample_masks
from medseg_diff.recipes import SegmentationRecipe, for_masks, load_recipe
from medseg_diff.run import Run, create_run, new_name
from medseg_diff.seeds import seed_of
from medseg_diff.settings import write_yaml
from medseg_diff.tasks.console import bar, log
from medseg_diff.tasks.device import find_device, find_precision, make_fabric
from medseg_diff.tasks.study import Study, ValidationSlices, check_channels, prepare_study, with_splits
from medseg_diff.tracking import Mirror
from medseg_diff.training.denoising import MaskDenoising
from medseg_diff.training.estimate import BACKWARD_AND_FORWARD, flops_per_second, forward_flops, in_words, timed_pass
from medseg_diff.training.fit import Progress, channels_last, fit
from medseg_diff.training.weights import save_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOG_EVERY = 10
LONG_SECONDS = 12 * 3600.0
QUICK_PASS_SECONDS = 2.0


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
) -> Run:
    """Train the recipe `config` on the table `data`; returns the run, whose folder is `out` or a new one below `runs`.

    Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; Diverged.
    """

    recipe = load_recipe(config, task="segment", overrides=overrides)
    manifest, by_slices = with_splits(read_manifest(Path(data), data_root=data_root))
    check_channels(manifest, recipe.channels)
    name = Path(config).stem if config.endswith((".yaml", ".yml")) else config.replace("/", "-")
    run = create_run(out or runs / new_name(name), task="segment", recipe=name, settings=write_yaml(recipe))
    place = find_device(device)
    precision = find_precision(recipe.training.precision, place)
    fabric = make_fabric(place, precision)
    mirror = (
        Mirror(
            runs,
            experiment="segment",
            name=run.name,
            parameters=recipe.model_dump(mode="json"),
            tags={"recipe": name, "data_digest": manifest.digest()},
        )
        if mlflow and fabric.global_rank == 0
        else None
    )
    study = prepare_study(manifest, recipe, cache=runs / "cache", by_slices=by_slices)
    log.info(
        "training on %d slices of %d cases, validating on %d slices",
        len(study.training),
        study.cases,
        len(study.validation),
    )
    started = time.time()
    run.note(data=manifest.file, data_digest=manifest.digest(), device=place.type, precision=precision, started=started)
    if mirror:
        mirror.dataset(manifest.file, manifest.digest())
        mirror.file(run.recipe_file)
    finished = False
    try:
        _train(run, recipe, study, fabric, precision, mirror)
        finished = True
    finally:
        if mirror:
            mirror.close(finished=finished)
    log.info("trained in %s: %s", in_words(time.time() - started), run.folder)
    log.info("next: medseg-diff segment --model %s --volume PATIENT_FOLDER --out results", run.folder)
    return run


def _train(
    run: Run, recipe: SegmentationRecipe, study: Study, fabric: "Fabric", precision: str, mirror: Mirror | None
) -> None:
    """The loop: log, validate, keep the best and the last weights."""
    import torch

    settings = recipe.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(settings.seed, "network"))
        denoiser = recipe.build_denoiser()
    log.info("%s", estimate(recipe, fabric, precision))
    objective = MaskDenoising(denoiser, seed=settings.seed, rank=fabric.global_rank)
    draws = SeededDraws(
        len(study.training),
        settings.passes_batch,
        settings.steps * settings.accumulate,
        seed=settings.seed,
        rank=fabric.global_rank,
        ranks=fabric.world_size,
    )
    best, chief = -1.0, fabric.global_rank == 0
    with bar("training", settings.steps) as advance:
        for progress in fit(objective, batches(study.training, draws, workers=settings.workers), settings, fabric):
            last = progress.step == settings.steps
            validating = last or progress.step % settings.validate_every == 0
            numbers = progress.read() if validating or progress.step % LOG_EVERY == 0 else {}
            if chief and validating:
                numbers |= validate(progress, recipe, study.validation, fabric)
                save_weights(progress.averages["denoiser"], run.weights("last"))
                if numbers["val_dice"] >= best:
                    best = numbers["val_dice"]
                    save_weights(progress.averages["denoiser"], run.weights("best"))
                    run.note(best_step=progress.step, best_val_dice=best)
                log.info(
                    "step %d: loss %.4f, validation Dice %.3f", progress.step, numbers["loss"], numbers["val_dice"]
                )
            if numbers and chief:
                run.log(progress.step, numbers)
                if mirror:
                    mirror.metrics(progress.step, numbers)
            advance(note=f"loss {numbers['loss']:.4f}" if "loss" in numbers else "")
    if chief:
        _finish(run, mirror)


def _finish(run: Run, mirror: Mirror | None) -> None:
    """Curves, checksums, and the word that the run is whole."""
    import torch

    from medseg_diff.reporting.figures import training_curves

    curves = run.figures / "training.png"
    training_curves(run.metrics_file, curves)
    run.seal()
    run.note(finished=True, ended=time.time(), threads=torch.get_num_threads())
    if mirror:
        for path in (curves, run.folder / "SHA256SUMS", run.folder / "environment.json", run.weights("best")):
            mirror.file(path)


def validate(
    progress: Progress, recipe: SegmentationRecipe, slices: ValidationSlices, fabric: "Fabric"
) -> dict[str, float]:
    """Dice of a small ensemble over all validation slices together, as `segment` would draw it."""
    averaged = progress.averages["denoiser"]
    denoiser = Denoiser(
        averaged, recipe.schedule, target=recipe.denoiser.target, learned_variance=recipe.denoiser.learned_variance
    )
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


def estimate(recipe: SegmentationRecipe, fabric: "Fabric", precision: str) -> str:
    """`this machine: about 41 days`, and what to do about it where that is long."""
    seconds = training_seconds(recipe, fabric, precision)
    settings = recipe.training
    words = f"this machine: about {in_words(seconds)} for {settings.steps} steps of {settings.batch} ({precision})"
    long = seconds > LONG_SECONDS and fabric.device.type == "cpu"
    return words + ("; try --config quick/mask_logits, or a machine with a GPU" if long else "")


def training_seconds(recipe: SegmentationRecipe, fabric: "Fabric", precision: str) -> float:
    """Seconds that the recipe's training takes here: counted operations over a measured rate; where a pass takes
    moments, a few are timed instead, because small networks spend their time elsewhere than in convolutions."""
    import torch

    settings, device = recipe.training, fabric.device

    def run(network: torch.nn.Module, batch: int, on: torch.device) -> torch.Tensor:
        x = torch.zeros(batch, len(recipe.regions), *recipe.view.size, device=on)
        image = torch.zeros(batch, len(recipe.channels), *recipe.view.size, device=on)
        answer = network(x, torch.ones(batch, device=on), Condition(image=image))
        assert isinstance(answer, torch.Tensor)
        return answer

    def build() -> torch.nn.Module:
        network = recipe.build_denoiser().network
        assert isinstance(network, torch.nn.Module)
        return network

    flops = forward_flops(build, lambda network: run(network, 1, torch.device("meta")))
    rate = flops_per_second(device, torch.bfloat16 if precision == "bf16" else torch.float32, recipe.network.width)
    per_pass = BACKWARD_AND_FORWARD * settings.passes_batch * flops / rate
    if per_pass < QUICK_PASS_SECONDS:
        with fabric.autocast():
            network = channels_last(build()).to(device)
            per_pass = timed_pass(network, lambda network: run(network, settings.passes_batch, device), device)
    sampled = recipe.validation.slices * recipe.validation.members * recipe.sampling.steps
    sampled *= -(-settings.steps // settings.validate_every)
    forward = per_pass / settings.passes_batch / BACKWARD_AND_FORWARD
    return settings.steps * settings.accumulate * per_pass + sampled * forward
