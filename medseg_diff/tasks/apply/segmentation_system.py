"""A trained segmentation model ready for use: weights, how its ensembles are drawn and cut, and what it can promise."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from medseg_diff.console import log
from medseg_diff.diffusion import Denoiser
from medseg_diff.errors import UsageError
from medseg_diff.methods.components import HALF, Findings
from medseg_diff.methods.fusion import Fusion
from medseg_diff.methods.labels import MaskLabel, labels_of_masks
from medseg_diff.methods.plan import Plan
from medseg_diff.recipes.calibration import ScreeningCalibration, SegmentationCalibration, read_calibration
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.trained import Trained, facts_of_study, open_other, open_run
from medseg_diff.recipes.tuned import TUNED, MeasuredSetting, Tuned, folder_of, read_tuned
from medseg_diff.recipes.typicality import Typicality
from medseg_diff.studies import FoundModel, study_of
from medseg_diff.tasks.apply.promises import Promises, promises_of
from medseg_diff.tasks.apply.start_masks import StartMasks
from medseg_diff.tasks.options import Compute, EnsembleOptions


@dataclass(frozen=True)
class SegmentationSystem:
    """A trained run, or several of one recipe, ready to draw ensembles; `facts` is what every case.json says of it. Of
    several the denoiser puts on one set of `weights` after the other: the memory is that of one.
    `labels` are what its masks hold. `thresholds` are of each region, `temperatures` too, but for runs that are not asked
    for calibrated maps. `typical` of the runs that measured it tell scans that are unlike those trained on. `starts`: the
    masks that its samples start from, where any are given. `screening` is what leaves slices out, where that is wanted."""

    recipe: SegmentationRecipe
    labels: tuple[MaskLabel, ...]
    denoiser: Denoiser
    weights: tuple[Path, ...]
    plan: Plan
    findings: Findings
    thresholds: dict[str, float]
    temperatures: dict[str, float]
    promises: Promises
    device: torch.device
    precision: str
    seed: int
    facts: dict[str, Any]
    typical: tuple[Typicality, ...]
    starts: StartMasks | None = None
    screening: ScreeningCalibration | None = None

    def at_once(self, batch: int) -> "SegmentationSystem":
        """The same with so many samples in a pass of the network."""
        return replace(self, plan=replace(self.plan, network_batch=batch))

    @property
    def learned_from_phantoms(self) -> bool:
        """Whether one of its models saw nothing but phantoms."""
        return any(each.phantoms for each in self.typical)


@dataclass(frozen=True)
class SegmentationModel:
    """The best weights of a run, or of the runs of a study, verified and on a device: they are read once, for any number of
    systems. `others` are the runs besides the first of a study."""

    found: FoundModel
    trained: Trained[SegmentationRecipe]
    others: tuple[Trained[SegmentationRecipe], ...] = ()

    @classmethod
    def load(cls, found: FoundModel, compute: Compute) -> "SegmentationModel":
        """Raises: CheckpointError where a run's files are damaged or do not fit each other, or the runs are of several
        recipes; UsageError, EnvironmentFault for the device."""
        first = open_run(found.runs[0], SegmentationRecipe, device=compute.device, precision=compute.precision)
        return cls(found, first, tuple(open_other(run, first) for run in found.runs[1:]))

    @property
    def weights(self) -> tuple[str, ...]:
        """Digests of the best weights of its runs."""
        return tuple(each.facts["sha256"] for each in (self.trained, *self.others))


def open_system(found: FoundModel, *, ensemble: EnsembleOptions, compute: Compute) -> SegmentationSystem:
    """A run, or the runs of a study, ready to draw. Raises: as `SegmentationModel.load` and `system_of`."""
    return system_of(SegmentationModel.load(found, compute), ensemble, network_batch=compute.network_batch)


def system_of(model: SegmentationModel, ensemble: EnsembleOptions, *, network_batch: int | None) -> SegmentationSystem:
    """A model with some numbers of its plan and its findings changed, or with the steps and members that `tune` stored.

    Raises: UsageError for an unknown fusion, a level that is none, a guarantee that cannot be given, a folder without masks
    to start from, or where calibrated maps, or that slices are screened, are asked of a model without calibration;
    CheckpointError where its calibration or what `tune` stored is damaged.
    """
    (name, runs), trained, opened = model.found, model.trained, (model.trained, *model.others)
    recipe = trained.recipe
    starts = None
    if ensemble.start_from is not None:
        starts = StartMasks.of(ensemble.start_from, recipe, name=trained.facts["recipe"])
    tuned = _tuned(model, ensemble)
    asked: EnsembleOptions | MeasuredSetting = tuned.chosen if tuned and tuned.chosen else ensemble
    plan = recipe.plan(
        strength=ensemble.noised_to or 1.0,
        members=asked.members,
        steps=asked.steps,
        network_batch=network_batch,
        members_at_once=ensemble.members_at_once,
        noise=ensemble.noise,
        adaptive=ensemble.adaptive,
        tolerance=ensemble.tolerance,
        screen=ensemble.screen,
    )
    findings = _findings(recipe, ensemble)
    calibration = _calibration(model.found)
    screening = _screening(calibration, recipe, ensemble, model.found)
    plan = replace(plan, screen=screening.threshold if screening else None)
    promises = promises_of(calibration, recipe, plan, findings, ensemble, models=len(runs), name=name)
    thresholds = _thresholds(calibration, recipe, findings)
    temperatures = _temperatures(calibration, recipe, name) if findings.calibrated else {}
    typical = [each.typicality for each in opened if each.typicality]
    seen = sum((Counter(each.labels) for each in typical), Counter[int]())
    labels = labels_of_masks(recipe.regions, recipe.label_names, seen)
    facts = trained.facts | {
        "regions": {region: list(labels) for region, labels in recipe.regions.items()},
        "mask_labels": [label._asdict() for label in labels],
        "seed": ensemble.seed,
        "solver": plan.solver.model_dump(mode="json"),
        "steps": len(plan.times) - 1,
        "members": plan.members * len(runs),
        "tuned": tuned.sha256 if tuned else None,
        "network_batch": plan.network_batch,
        "noise": "shared" if plan.shared_noise else "independent",
        "cut": plan.cut.model_dump(mode="json"),
        "mirrors": list(plan.mirrors),
        "tolerance": plan.tolerance,
        "screening": screening and screening.model_dump(mode="json"),
        "fusion": findings.fusion,
        "thresholds": thresholds,
        "temperatures": temperatures,
        "level": ensemble.level,
        "strength": ensemble.noised_to,
    }
    if len(runs) > 1:
        study = study_of(runs[0])
        calibrated = study.facts["calibration_sha256"] if study else None
        facts |= facts_of_study(name, opened) | {"calibration_sha256": calibrated}
    denoiser = recipe.denoiser.around(trained.networks["best"], recipe.schedule)
    if promises.guaranteed:
        facts |= {"guarantee": {"fnr": ensemble.guarantee, "thresholds": promises.guaranteed}}
    return SegmentationSystem(
        recipe=recipe,
        labels=labels,
        denoiser=denoiser,
        weights=tuple(run.weights("best") for run in runs),
        plan=plan,
        findings=findings,
        thresholds=thresholds,
        temperatures=temperatures,
        promises=promises,
        device=trained.device,
        precision=trained.precision,
        seed=ensemble.seed,
        facts=facts,
        typical=tuple(typical),
        starts=starts,
        screening=screening,
    )


def _tuned(model: SegmentationModel, ensemble: EnsembleOptions) -> Tuned | None:
    """What `tune` stored of these very weights, unless samples of another kind are asked for. Raises: CheckpointError."""
    if any(each is not None for each in (ensemble.steps, ensemble.members, ensemble.noise, ensemble.start_from)):
        return None
    tuned, recipe_sha256 = read_tuned(folder_of(model.found)), model.trained.facts["recipe_sha256"]
    if tuned is None or tuned.chosen is None:
        return None
    if not tuned.was_measured_with(model.weights, recipe_sha256):
        said = "%s/%s was measured with other weights and is not used: run `medseg-diff tune` again, or remove it"
        log.warning(said, model.found.name, TUNED)
        return None
    return tuned


def _findings(recipe: SegmentationRecipe, ensemble: EnsembleOptions) -> Findings:
    """The recipe's, with what is asked for changed. Raises: UsageError."""
    if ensemble.fusion not in (None, *get_args(Fusion)):
        raise UsageError(f"unknown fusion `{ensemble.fusion}`", fix=f"use one of {', '.join(get_args(Fusion))}")
    changes = {"fusion": ensemble.fusion, "calibrated": ensemble.calibrated or None}
    return recipe.findings.but(**{name: value for name, value in changes.items() if value is not None})


def _calibration(model: FoundModel) -> SegmentationCalibration | None:
    """What a run, or a study as a whole, measured. Raises: CheckpointError."""
    run, *others = model.runs
    study = study_of(run) if others else None
    measured = study.calibrated() if study else run
    return read_calibration(measured, SegmentationCalibration) if measured else None


def _screening(
    calibration: SegmentationCalibration | None,
    recipe: SegmentationRecipe,
    ensemble: EnsembleOptions,
    model: FoundModel,
) -> ScreeningCalibration | None:
    """What leaves slices out, where that is asked for. Raises: UsageError where nobody measured what is missed by it."""
    if not (recipe.sampling.screen if ensemble.screen is None else ensemble.screen):
        return None
    fix = "leave --screen out" if ensemble.screen else "add --no-screen"
    if ensemble.start_from is not None:
        found = "the recipe screens: it looks at the scan alone, and would skip what the masks of --start-from mark"
        raise UsageError(found, fix=fix)
    if len(model.runs) > 1:
        raise UsageError(
            f"{model.name} is a study, and its folds did not measure screening", fix=f"{fix}, or use one run"
        )
    if calibration is None or calibration.screening is None:
        found = f"{model.name} did not measure what screening misses"
        raise UsageError(
            found, fix=f"{fix}, or train with validation.calibration_slices above 0 and lesions to validate on"
        )
    if not calibration.separate:
        found = f"{model.name} measured what screening misses on patients that it was trained on"
        raise UsageError(found, fix=f"{fix}, or train with some patients in split val")
    return calibration.screening


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
