"""What a trained anomaly system shows of healthy brains: normative mean, threshold at a stated rate, and its errors."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from medseg_diff.console import bar, duration, log
from medseg_diff.data.datasets.labelled import is_labelled
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.manifest import Case, Manifest
from medseg_diff.data.transforms import Prepared, prepare_case
from medseg_diff.device import halved_to_fit
from medseg_diff.errors import counted
from medseg_diff.evenly import evenly_spaced
from medseg_diff.methods.anomaly.baselines import plain_baselines
from medseg_diff.methods.anomaly.normative import (
    OWN,
    RECONSTRUCTED,
    NormativeMean,
    above_normal,
    cleaned,
    depth_of,
    stored,
)
from medseg_diff.metrics import conformal
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.calibration import (
    AnomalyCalibration,
    ClassifierSkill,
    MapCalibration,
    RoundTrip,
    write_calibration,
)
from medseg_diff.run import Run
from medseg_diff.tasks.apply.anomaly_volume import AnomalySystem, AnomalyVolume, map_volume, measure_volume, open_system
from medseg_diff.tasks.options import Compute
from medseg_diff.training.classification import Skill

WORTH_SAYING_SECONDS = 60.0
# Times a threshold of slices without lesion: as few voxels of whole brains then lie above (docs/results.md).
WIDENED = 2.0
TRIP_TOLERANCE = 1.5  # a scan may come back this much worse than the worst case of the calibration


def calibrate(
    run: Run, manifest: Manifest, *, skill: Sequence[Skill], device: str = "auto", precision: str | None = None
) -> Path:
    """Measure a run whose weights are written, store RUN/calibration.json, and seal the run again.

    `manifest` has the splits that it was trained with (none: all cases trained). `skill` is the classifier's on validation
    slices, as `skill_by_time` measured it; empty where these are of one kind only, or there is no classifier. Healthy
    validation brains and the slices without lesion of other validation cases give normative mean and threshold; failing
    these, such slices of training cases, which a model knows too well. Raises: ImageError, CheckpointError.
    """
    run.calibration_file.unlink(missing_ok=True)
    run.seal()  # only sealed weights are opened
    system = open_system(run, compute=Compute(device=device, precision=precision), calibrated=False)
    source = find_source(manifest, system.recipe)
    system = with_reference(system, source)
    measured, started = [], time.perf_counter()
    with bar("calibrating", len(source.cases)) as advance:
        for number, case in enumerate(source.cases):
            found = measure_case(case, system)
            measured += [replace(found, unseen=case.name in source.unseen)] if found else []
            advance(note=case.name)
            left = (time.perf_counter() - started) * (len(source.cases) - 1)
            if number == 0 and left > WORTH_SAYING_SECONDS:
                log.info("calibrating on %s: about %s more", counted(len(source.cases), "case"), duration(left))
    calibration = _calibration(measured, source, system, skill)
    write_calibration(run, calibration)
    run.seal()
    threshold = calibration.own and calibration.own.threshold
    log.info("calibrated on %s: threshold %s, round trip %s", source.words, threshold, calibration.round_trip.error)
    if calibration.separate is False:
        log.warning(
            "normative mean and threshold were measured on training patients: "
            "--folds 2 or more measures every run on patients that it has not seen"
        )
    if calibration.widened != 1:
        log.warning(
            "no whole healthy brain was measured: the threshold is %g times that of slices without lesion",
            calibration.widened,
        )
    return run.calibration_file


@dataclass(frozen=True)
class HealthySource:
    """Cases of the table that hold something healthy: whole brains, or slices without a lesion. `unseen`: the names of
    whole brains of patients not trained on, one of each; `separate`: no patient was trained on; `whole`: whole brains are
    among them."""

    cases: tuple[Case, ...]
    words: str
    unseen: frozenset[str] = frozenset()
    separate: bool = False
    whole: bool = False


def find_source(manifest: Manifest, recipe: AnomalyRecipe) -> HealthySource:
    """Where something healthy is to be found, the best first: healthy brains before the others, spread over all."""
    most = recipe.validation.calibration_cases
    trained = manifest.of("train") or tuple(case for case in manifest.cases if case.split is None)
    for cases, name in ((manifest.of("val"), "validation"), (trained, "training")):
        labelled = [case for case in cases if is_labelled(case)]
        healthy = [case for case in labelled if is_healthy(case, recipe)]
        marked = [case for case in labelled if case not in healthy]
        whole = evenly_spaced(healthy, most - min(len(marked), most // 2))
        partly = evenly_spaced(marked, most - len(whole))
        said = [f"healthy {name} brains ({len(whole)})"] if whole else []
        said += [f"slices without lesion of {name} cases ({len(partly)})"] if partly else []
        if labelled:
            separate = name == "validation"
            unseen = {case.patient: case.name for case in whole if separate}
            words, names = " and ".join(said), frozenset(unseen.values())
            return HealthySource((*whole, *partly), words, names, separate=separate, whole=bool(whole))
    return HealthySource((), "nothing: no case is healthy or has a reference")


def is_healthy(case: Case, recipe: AnomalyRecipe) -> bool:
    """By its label, else by its reference: nothing marked that the recipe calls diseased."""
    if case.label or not is_labelled(case):
        return case.label == "healthy"
    images = read_case(case, recipe.channels, resample_to=recipe.preparation.resample_to)
    opinions = [labels for labels in (images.reference, images.raters) if labels is not None]
    return not any(recipe.lesion_in(torch.from_numpy(labels)).any() for labels in opinions)


@dataclass(frozen=True)
class MeasuredCase:
    """Healthy voxels [N] of one case: cleaned scores of the map and of each baseline, and their depth in mm. `unseen`: they
    are the whole brain of a patient not trained on."""

    scores: dict[str, npt.NDArray[np.float32]]
    depth_mm: npt.NDArray[np.float32]
    volume: AnomalyVolume
    voxel_ml: float
    unseen: bool = False


def with_reference(system: AnomalySystem, source: HealthySource) -> AnomalySystem:
    """The system with what its engine has to know of healthy slices before it maps anything, where that is something."""
    found = []
    for case in source.cases:
        prepared, slices = healthy_slices(case, system.recipe)
        values = measure_volume(prepared, system, slices)
        if values is not None:
            found.append(values)
    if not found:
        return system
    reference = {name: round(value, 6) for name, value in system.engine.of_healthy(torch.cat(found)).items()}
    log.info("of healthy slices: %s", ", ".join(f"{name} {value:g}" for name, value in reference.items()))
    return replace(system, networks=system.networks._replace(reference=reference))


def healthy_slices(case: Case, recipe: AnomalyRecipe) -> tuple[Prepared, list[int]]:
    """A case, and which of its slices hold brain and no lesion."""
    images = read_case(case, recipe.channels, resample_to=recipe.preparation.resample_to)
    prepared = prepare_case(images, recipe.preparation)
    slices = recipe.view.for_sampling(prepared.brain)
    opinions = [labels for labels in (prepared.reference, prepared.raters) if labels is not None]
    if opinions:
        marked = recipe.lesion_in(torch.cat(opinions)).flatten(0, 2).any(0)
        slices = [z for z in slices if not marked[z]]
    return prepared, slices


def measure_case(case: Case, system: AnomalySystem) -> MeasuredCase | None:
    """Map a healthy brain, or the slices of a brain without lesion, which are then smoothed among themselves alone.

    None where every slice has a lesion.
    """
    recipe = system.recipe
    prepared, slices = healthy_slices(case, recipe)
    if not slices:
        return None
    volume, _ = halved_to_fit(
        lambda batch: map_volume(prepared, system.but(network_batch=batch), slices=slices, baselines=True),
        system.engine.network_batch,
    )
    region = torch.zeros_like(prepared.brain)
    region[..., slices] = prepared.brain[..., slices]
    depth_mm, inside = depth_of(prepared.brain, prepared.spacing_mm), region[0].numpy()
    plain = plain_baselines(prepared.image, prepared.brain, prepared.channels, prepared.spacing_mm)
    scores = {
        name: cleaned(score, region, recipe.findings, spacing_mm=prepared.spacing_mm)[0].numpy()[inside]
        for name, score in {OWN: volume.score, **volume.baselines, **plain}.items()
    }
    return MeasuredCase(scores, depth_mm[inside], volume, prepared.voxel_ml)


def _calibration(
    measured: Sequence[MeasuredCase], source: HealthySource, system: AnomalySystem, skill: Sequence[Skill]
) -> AnomalyCalibration:
    volumes = [each.volume for each in measured]
    known = AnomalyCalibration(
        source=source.words,
        engine=system.engine,
        findings=system.recipe.findings,
        voxels=sum(len(each.depth_mm) for each in measured),
        slices=sum(len(volume.slices) for volume in volumes),
        classifier=_skill_passed(skill, system),
    )
    if not measured:
        return known
    facts = {name: torch.cat([volume.facts[name] for volume in volumes]) for name in volumes[0].facts}
    trips = [volume.round_trip for volume in volumes if volume.round_trip is not None]
    widened = 1.0 if source.whole else WIDENED
    maps = {
        name: _map_calibration(measured, name, system.recipe, widened=widened if name in RECONSTRUCTED else 1.0)
        for name in measured[0].scores
    }
    changes = {"separate": source.separate, "widened": widened, "maps": maps}
    changes["reference"] = dict(system.networks.reference) | system.engine.reference(facts)
    if trips:
        error, limit = round(float(np.mean(trips)), 5), round(TRIP_TOLERANCE * max(trips), 5)
        changes["round_trip"] = RoundTrip(error=error, limit=limit)
    return known.model_copy(update=changes)


def _map_calibration(
    measured: Sequence[MeasuredCase], name: str, recipe: AnomalyRecipe, *, widened: float = 1.0
) -> MapCalibration:
    """Normative mean and threshold of one map: above the threshold lies the stated share of healthy voxels; `widened` by a
    factor."""
    normal = _normal_of(measured, name)
    above = np.concatenate([_above(each, name, normal, recipe) for each in measured])
    threshold = np.quantile(above, 1 - recipe.findings.false_positive_rate)
    return MapCalibration(
        normative_mean=normal,
        threshold=stored(widened * max(float(threshold), 0.0)),
        thresholds_by_volume=tuple(_thresholds_by_volume(measured, recipe)) if name == OWN else (),
    )


def _thresholds_by_volume(measured: Sequence[MeasuredCase], recipe: AnomalyRecipe) -> Iterator[tuple[float, ...]]:
    """Of each whole brain not trained on, above the normative mean of all others, as a new one will be."""
    for each in measured:
        others = [other for other in measured if other is not each]
        if each.unseen and others:
            above = _above(each, OWN, _normal_of(others, OWN), recipe)
            yield tuple(stored(value) for value in conformal.thresholds_of_volumes(above, each.voxel_ml))


def _normal_of(measured: Sequence[MeasuredCase], name: str) -> NormativeMean:
    return NormativeMean.measured(
        np.concatenate([each.scores[name] for each in measured]), np.concatenate([each.depth_mm for each in measured])
    )


def _above(case: MeasuredCase, name: str, normal: NormativeMean, recipe: AnomalyRecipe) -> npt.NDArray[np.float32]:
    """What `anomaly` would make of its scores, [N]."""
    taken = normal if recipe.findings.normative else None
    gain = taken.gain_of(case.scores[name], case.depth_mm) if taken and name in RECONSTRUCTED else 1.0
    return above_normal(case.scores[name], case.depth_mm, taken, rim_mm=recipe.findings.rim_mm, gain=gain)


def _skill_passed(skill: Sequence[Skill], system: AnomalySystem) -> ClassifierSkill:
    """Mean over the times that the engine passes, and each time's own numbers."""
    if not skill:
        return ClassifierSkill()
    passed = [each for each in skill if each.t <= system.engine.deepest(system.recipe.schedule)] or list(skill)
    return ClassifierSkill(
        balanced_accuracy=round(float(np.mean([each.balanced_accuracy for each in passed])), 4),
        auroc=round(float(np.mean([each.auroc for each in passed])), 4),
        by_time=tuple({name: round(value, 4) for name, value in each._asdict().items()} for each in skill),
    )
