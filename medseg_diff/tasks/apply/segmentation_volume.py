"""A trained segmentation system, and the ensemble that it draws of one volume."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from medseg_diff.console import bar
from medseg_diff.data.results import MEMBER_MASKS
from medseg_diff.data.transforms import Prepared
from medseg_diff.data.views import Patches
from medseg_diff.device import autocast
from medseg_diff.diffusion import Denoiser
from medseg_diff.diffusion.denoiser import AnyDenoiser
from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.methods.components import HALF, Findings
from medseg_diff.methods.cuts import SpreadCut, recentred
from medseg_diff.methods.fusion import Fusion
from medseg_diff.methods.sampled_segmentation import Ensemble, Plan, Sample, sample_masks
from medseg_diff.methods.tiled import Tiled
from medseg_diff.metrics import conformal
from medseg_diff.recipes.calibration import SegmentationCalibration, read_calibration
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.trained import Trained, open_run
from medseg_diff.recipes.typicality import Typicality, read_typicality
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.studies import FoundModel, study_of
from medseg_diff.tasks.apply.segmentation_maps import brought_back, suffix_of
from medseg_diff.tasks.options import Compute, EnsembleOptions
from medseg_diff.training.weights import load_weights


@dataclass(frozen=True)
class SegmentationSystem:
    """A trained run, or several of one recipe, ready to draw ensembles; `facts` is what every case.json says of it. Of
    several the denoiser puts on one set of `weights` after the other: the memory is that of one.
    `thresholds` are of each region, `temperatures` too, but for runs that are not asked for calibrated maps.
    `volume_scores` are those of the patients that its volumes were measured on, none where they were not; intervals are
    of the `level`. `guaranteed` are the thresholds of the masks that miss no more than was asked, none where nothing was.
    `typical` of the runs that measured it tell scans that are unlike those trained on."""

    recipe: SegmentationRecipe
    denoiser: Denoiser
    weights: tuple[Path, ...]
    plan: Plan
    findings: Findings
    thresholds: dict[str, float]
    temperatures: dict[str, float]
    volume_scores: dict[str, tuple[float, ...]]
    level: float
    guaranteed: dict[str, float]
    device: torch.device
    precision: str
    seed: int
    facts: dict[str, Any]
    typical: tuple[Typicality, ...]

    def at_once(self, batch: int) -> "SegmentationSystem":
        """The same with so many samples in a pass of the network."""
        return replace(self, plan=replace(self.plan, network_batch=batch))


def open_system(model: FoundModel, *, ensemble: EnsembleOptions, compute: Compute) -> SegmentationSystem:
    """The best weights of a run, or of the runs of a study, on a device, and the plan and the findings with some numbers
    changed.

    Raises: CheckpointError where a run's files are damaged or do not fit each other, or the runs are of several recipes;
    UsageError for an unknown fusion, or where calibrated maps are asked of a model without calibration.
    """
    name, runs = model
    if not 0 < ensemble.level < 1:
        raise UsageError(f"there is no level {ensemble.level:g}", fix="use one between 0 and 1, such as 0.9")
    trained = open_run(runs[0], SegmentationRecipe, device=compute.device, precision=compute.precision)
    digests = [_digest_of_weights(run, trained) for run in runs]
    recipe = trained.recipe
    plan = recipe.plan(
        members=ensemble.members,
        steps=ensemble.steps,
        network_batch=compute.network_batch,
        members_at_once=ensemble.members_at_once,
        noise=ensemble.noise,
    )
    findings = _findings(recipe, ensemble)
    calibration, measured_as = _calibration(model), recipe.findings
    thresholds = _thresholds(calibration, recipe, findings)
    temperatures = _temperatures(calibration, recipe, name) if findings.calibrated else {}
    same = (findings.fusion, findings.threshold) == (measured_as.fusion, measured_as.threshold)
    known_volumes = calibration.regions if calibration and same else {}
    scores = {each: known_volumes[each].volume_scores if each in known_volumes else () for each in recipe.regions}
    facts = trained.facts | {
        "regions": {region: list(labels) for region, labels in recipe.regions.items()},
        "nested": recipe.nested,
        "seed": ensemble.seed,
        "solver": plan.solver.model_dump(mode="json"),
        "steps": len(plan.times) - 1,
        "members": plan.members * len(runs),
        "network_batch": plan.network_batch,
        "noise": "shared" if plan.shared_noise else "independent",
        "cut": plan.cut.model_dump(mode="json"),
        "mirrors": list(plan.mirrors),
        "fusion": findings.fusion,
        "thresholds": thresholds,
        "temperatures": temperatures,
        "level": ensemble.level,
    }
    if len(runs) > 1:
        each = [{"model": run.name, "sha256": digest} for run, digest in zip(runs, digests, strict=True)]
        joined = hashlib.sha256("".join(digests).encode()).hexdigest()
        facts |= {"model": name, "sha256": joined, "models": each}
    denoiser = recipe.denoiser.around(trained.networks["best"], recipe.schedule)
    guaranteed = {} if ensemble.guarantee is None else _of_risk(calibration, recipe, ensemble.guarantee, name)
    if guaranteed:
        facts |= {"guarantee": {"fnr": ensemble.guarantee, "thresholds": guaranteed}}
    chosen = (findings, thresholds, temperatures, scores, ensemble.level, guaranteed)
    typical = [trained.typicality, *(read_typicality(run) for run in runs[1:])]
    known = (trained.device, trained.precision, ensemble.seed, facts, tuple(each for each in typical if each))
    return SegmentationSystem(recipe, denoiser, tuple(run.weights("best") for run in runs), plan, *chosen, *known)


def _digest_of_weights(run: Run, first: Trained[SegmentationRecipe]) -> str:
    """The verified digest of a run's weights. Raises: CheckpointError where it is damaged or of another recipe."""
    digests = run.verified(run.recipe_file, run.weights("best"))
    if digests[run.recipe_file] != first.facts["recipe_sha256"]:
        raise CheckpointError(
            f"was trained by another recipe than {first.facts['model']}", fix="train its study again", file=run.name
        )
    return digests[run.weights("best")]


def _findings(recipe: SegmentationRecipe, ensemble: EnsembleOptions) -> Findings:
    """The recipe's, with what is asked for changed. Raises: UsageError."""
    if ensemble.fusion not in (None, *get_args(Fusion)):
        raise UsageError(f"there is no fusion `{ensemble.fusion}`", fix=f"use one of {', '.join(get_args(Fusion))}")
    changes = {"fusion": ensemble.fusion, "calibrated": ensemble.calibrated or None}
    return recipe.findings.but(**{name: value for name, value in changes.items() if value is not None})


def _calibration(model: FoundModel) -> SegmentationCalibration | None:
    """What a run, or a study as a whole, measured. Raises: CheckpointError."""
    run, *others = model.runs
    study = study_of(run) if others else None
    measured = study.calibrated() if study else run
    return read_calibration(measured, SegmentationCalibration) if measured else None


def _thresholds(
    calibration: SegmentationCalibration | None, recipe: SegmentationRecipe, findings: Findings
) -> dict[str, float]:
    """Where each region's fused map is cut."""
    thresholds = {}
    for region in recipe.regions:
        tuned = calibration.threshold(region) if calibration else HALF
        thresholds[region] = HALF if findings.fusion != "mean" else findings.threshold or tuned
    return thresholds


def _temperatures(
    calibration: SegmentationCalibration | None, recipe: SegmentationRecipe, name: str
) -> dict[str, float]:
    """Each region's, of the model `name`. Raises: UsageError where it has none."""
    known = calibration.regions if calibration else {}
    missing = [region for region in recipe.regions if region not in known]
    if missing:
        raise UsageError(
            f"{name} has no calibration for {', '.join(missing)}",
            fix="train with validation.calibration_slices above 0, or leave --calibrated out",
        )
    return {region: known[region].temperature for region in recipe.regions}


def _of_risk(
    calibration: SegmentationCalibration | None, recipe: SegmentationRecipe, risk: float, name: str
) -> dict[str, float]:
    """Where each region is cut for its mask to miss at most that share of a lesion. Raises: UsageError where too few
    patients with a lesion were measured to promise it."""
    known = calibration.regions if calibration else {}
    thresholds = {}
    for region in recipe.regions:
        own = known.get(region)
        lesions = own.lesions if own else 0
        threshold = conformal.threshold_of_risk(own.missed, lesions, risk) if own and lesions else None
        if threshold is None:
            raise UsageError(
                f"{name} cannot promise fnr={risk:g} for {region}: measured on {lesions} patients with a lesion",
                fix="train a study (--folds) on more patients, or ask for a larger share",
            )
        thresholds[region] = threshold
    return thresholds


def sample_volume(
    case: str, prepared: Prepared, system: SegmentationSystem, members: Path | None = None
) -> tuple[Ensemble, int]:
    """The ensemble over what holds brain, and the network passes it took; each member is written into the folder
    `members`, where one is given, as it is finished."""
    recipe, plan, view = system.recipe, system.plan, system.recipe.view
    images = view.conditions(prepared.image, background=recipe.preparation.background)
    images = images.to(system.device).contiguous()
    slices, regions, size = view.for_sampling(prepared.brain), len(recipe.regions), images.shape[2:]
    if members is not None:
        # One member after the other: then only one has to be held.
        plan = replace(plan, members_at_once=1)
    keep_masks, models = system.findings.fusion == "staple", len(system.weights)
    ensemble = Ensemble(len(images), regions, size, models * plan.members, system.device, keep_masks=keep_masks)
    keeper = _MemberWriter(prepared, recipe, members, (len(images), regions, *size)) if members else None
    work = _work(system, plan, slices, size)
    with autocast(system.device, system.precision), bar(f"  {case}", models * work.total) as advance:
        if isinstance(work.denoiser, Tiled):
            work.denoiser.advance = advance
        finished = (lambda samples: None) if isinstance(work.denoiser, Tiled) else advance
        for number, weights in enumerate(system.weights):
            first = number * plan.members
            if models > 1:
                load_weights(system.denoiser.module(), weights)

            def own_seed(z: int, member: int, first: int = first) -> int:
                return seed_of(system.seed, case, *(() if plan.shared_noise else view.owner(z)), first + member)

            for sample, probability in sample_masks(
                work.denoiser, images, slices, work.plan, regions=regions, seed_of=own_seed, advance=finished
            ):
                own = Sample(sample.slice, first + sample.member)
                ensemble.add(own, probability)
                if keeper:
                    keeper.add(own, probability)
            if models > 1:
                ensemble.end_model(plan.members)
    if keeper:
        keeper.close()
    if isinstance(plan.cut, SpreadCut):
        _redraw(case, prepared, system, ensemble, slices, members)
    return ensemble, models * work.passes


def _redraw(
    case: str,
    prepared: Prepared,
    system: SegmentationSystem,
    ensemble: Ensemble,
    slices: Sequence[int],
    members: Path | None,
) -> None:
    """Give every member the mask that its surface of thresholds cuts out of the mean, and write it into MEMBER_MASKS beside
    the folder `members`, where one is given."""
    cut, view = system.plan.cut, system.recipe.view
    assert isinstance(cut, SpreadCut)
    grid = prepared.image.shape[1:], prepared.spacing_mm
    surfaces = cut.surfaces(ensemble.members, *grid, seed_of(system.seed, case, "cut"))

    def threshold_of(sample: Sample) -> Tensor:
        whole = isinstance(view, Patches)
        surface = surfaces.whole(sample.member) if whole else surfaces.plane(sample.member, sample.slice)
        return surface.to(system.device)

    ensemble.redraw(slices, threshold_of)
    if members is None:
        return
    mean = ensemble.mean
    for member in range(ensemble.members):
        odds = torch.zeros_like(mean, device="cpu")
        for z in slices:
            odds[z] = recentred(mean[z], threshold_of(Sample(z, member))).cpu()
        for region, values in zip(system.recipe.regions, brought_back(prepared, system.recipe, odds), strict=True):
            name = f"{member:02d}{suffix_of(system.recipe, region)}.nii.gz"
            prepared.write(members.with_name(MEMBER_MASKS) / name, (values > HALF).astype(np.uint8))


class _Work(NamedTuple):
    """How the samples of a case are drawn and what that takes: network passes, and the steps of a progress bar, which
    counts slices or, where volumes are drawn, tiles at every step."""

    denoiser: AnyDenoiser
    plan: Plan
    passes: int
    total: int


def _work(system: SegmentationSystem, plan: Plan, slices: Sequence[int], size: Sequence[int]) -> _Work:
    """Slices are batches of the network by themselves; volumes are cut into tiles, which are."""
    steps, view = len(plan.times) - 1, system.recipe.view
    if not isinstance(view, Patches):
        once = len(plan.views) * -(-len(slices) // plan.network_batch) if system.denoiser.says_prior else 0
        passes = once + plan.batches(slices) * steps
        return _Work(system.recipe.for_masks(system.denoiser), plan, passes, len(slices) * plan.members)
    tiled = system.recipe.in_tiles(system.denoiser, view, batch=plan.network_batch)
    plan = replace(plan, network_batch=max(1, plan.network_batch // tiled.tiles(size)))  # volumes in one walk
    walked = plan.batches(slices) * steps
    passes, tiles = tiled.passes(plan.network_batch, size), plan.network_batch * tiled.tiles(size)
    return _Work(tiled, plan, walked * passes, walked * tiles)


class _MemberWriter:
    """Collects the slices of one member, `shape` [N, R, *S] in all, and writes it when the next begins."""

    def __init__(self, prepared: Prepared, recipe: SegmentationRecipe, folder: Path, shape: Sequence[int]) -> None:
        self.prepared, self.recipe, self.folder, self.shape = prepared, recipe, folder, shape
        self.member: int | None = None

    def add(self, sample: Sample, probability: Tensor) -> None:
        if sample.member != self.member:
            self.close()
            self.member, self.slices = sample.member, torch.zeros(self.shape)
        self.slices[sample.slice] = probability.cpu()

    def close(self) -> None:
        if self.member is None:
            return
        maps = brought_back(self.prepared, self.recipe, self.slices)
        for region, values in zip(self.recipe.regions, maps, strict=True):
            name = f"{self.member:02d}{suffix_of(self.recipe, region)}.nii.gz"
            self.prepared.write(self.folder / name, values)
