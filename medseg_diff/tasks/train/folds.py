"""`train-seg --folds K`: the recipe trained K times, each time without another part of the patients, who are then predicted.

What a run says of patients that it never saw is what thresholds and temperatures of the study are chosen on.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from medseg_diff.console import log
from medseg_diff.data import geometry
from medseg_diff.data.results import CaseResult, holds_result, read_result
from medseg_diff.data.tables.manifest import Case, Manifest, folds_by_patient, write_manifest
from medseg_diff.device import processes
from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.evaluation.summary import majority
from medseg_diff.metrics import conformal, presence
from medseg_diff.recipes.calibration import SegmentationCalibration, write_calibration
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.run import Run, new_name
from medseg_diff.settings import write_yaml
from medseg_diff.studies import FoldStudy, unfinished_study
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.apply.segmentation_maps import cut_masks
from medseg_diff.tasks.options import TrainingRun
from medseg_diff.tasks.train.calibration import calibrate_patients, tell
from medseg_diff.tasks.train.train import Material, TrainVerb

MOST_VOXELS = 500_000  # of a brain, evenly spaced, that a calibration looks at,
MOST_IN_ALL = 50_000_000  # and of all brains together: 250 MB a region


def train_folds(
    verb: TrainVerb[SegmentationRecipe],
    data: Path,
    options: TrainingRun,
    folds: int,
    shard: tuple[int, int],
    *,
    device: str,
    data_root: Path | None,
) -> FoldStudy:
    """Train this call's share of the folds into the study `options.out`, predict those whom each has not seen and, once all
    folds are done, by whomever, calibrate the study.

    Raises: what a training raises; ManifestError for fewer patients than folds; CheckpointError where the study was begun
    with another recipe, table or number of folds.
    """
    if processes() > 1:
        raise UsageError("folds are trained one by one, each by one process", fix="share them with --shard K/N")
    given = _that_choose_nothing(verb.material(data, options, data_root=data_root))
    chosen = _share(folds, shard)
    parts = folds_by_patient(given.manifest, folds)
    study = _begun(given, options, folds)
    for fold in chosen:
        held = len({case.patient for case in parts[fold - 1].of("val")})
        log.info("fold %d of %d: %d patients left out", fold, folds, held)
        words = [*given.command, "--folds", str(folds)]
        words += [] if shard == (1, 1) else ["--shard", "{}/{}".format(*shard)]
        run = verb.train(
            replace(given, manifest=parts[fold - 1], command=words),
            replace(options, out=study.run(fold).folder, parent=options.parent or study.name),
            device=device,
            study=study.folder,
        )
        _predict(study, run, parts[fold - 1], device=device, runs=options.runs)
    if left := study.unfinished:
        log.info("fold %s of %d: still to be trained", ", ".join(map(str, left)), folds)
        return study
    predicted = {case.name for part in parts for case in part.of("val")}
    if missing := [name for name in predicted if not holds_result(study.out_of_fold / name, "segment")]:
        log.info(
            "%d patients' scans are still being predicted by another process, which finishes the study", len(missing)
        )
        return study
    calibrate_study(study, given.recipe, given.manifest)
    study.finish()
    log.info(
        "every patient as a model that never saw it says: medseg-diff evaluate --predictions %s --data %s",
        study.out_of_fold,
        data,
    )
    log.info("next: medseg-diff %s --model %s --volume PATIENT_FOLDER --out results", verb.task, study.folder)
    return study


def _share(folds: int, shard: tuple[int, int]) -> Sequence[int]:
    """The numbers of the folds of a shard. Raises: UsageError."""
    number, shards = shard
    if not 1 <= number <= shards <= folds:
        raise UsageError(f"there is no shard {number} of {shards} of {folds} folds", fix="write --shard 1/2, 2/2 …")
    return range(number, folds + 1, shards)


def _that_choose_nothing(given: Material[SegmentationRecipe]) -> Material[SegmentationRecipe]:
    """Weights or thresholds that a fold's own patients had chosen would make what is said of these too good: the last
    weights are kept, and the study is calibrated as a whole."""
    validation = given.recipe.validation.but(weights="last", calibration_slices=0).model_dump(mode="json")
    return replace(given, recipe=given.recipe.but(validation=validation))


def _begun(given: Material[SegmentationRecipe], options: TrainingRun, folds: int) -> FoldStudy:
    """The study in --out, or a new one; with `resume` and no --out the newest of the same that is not finished."""
    digest = hashlib.sha256(write_yaml(given.recipe).encode()).hexdigest()
    facts = {
        "task": given.recipe.task,
        "recipe": given.name,
        "recipe_sha256": digest,
        "data_digest": given.manifest.digest(),
        "folds": folds,
    }
    study = FoldStudy(options.out) if options.out else None
    if study is None and options.resume:
        study = unfinished_study(options.runs, facts)
    study = study or FoldStudy(options.runs / new_name(given.name))
    if options.resume == "must" and not study.there:
        found = "study of these folds to go on with"
        raise CheckpointError(
            f"holds no {found}", fix="name its folder with --out, or use --resume auto", file=study.name
        )
    if not study.there and study.folder.exists() and any(study.folder.iterdir()):
        raise UsageError(f"{study.name} already exists and is no study", fix="choose another --out")
    study.begin(**facts)
    return study


def _predict(study: FoldStudy, run: Run, manifest: Manifest, *, device: str, runs: Path) -> None:
    """Segment those whom the run has not seen, into the study's `out_of_fold`; what is complete stays."""
    table = run.folder / "cases.csv"
    write_manifest(table, manifest.rows())
    segment(
        data=table,
        split="val",
        data_root=manifest.root,
        model=run.folder,
        out=study.out_of_fold,
        device=device,
        runs=runs,
    )


def calibrate_study(study: FoldStudy, recipe: SegmentationRecipe, manifest: Manifest) -> SegmentationCalibration | None:
    """Threshold, temperature and how far volumes are wrong, of each region, on all patients as the run that never saw them
    predicts them, written into the study; None where no case has a reference.

    Raises: UsageError, ImageError where a prediction is missing or damaged.
    """
    cases = [case for case in manifest.cases if case.split != "test" and case.references]
    if not cases:
        return None
    most = min(MOST_VOXELS, MOST_IN_ALL // len(cases))
    predicted = [_predicted(study, case, most) for case in cases]
    found = {
        region: calibrate_patients(
            [each.regions[region].probability for each in predicted],
            [each.regions[region].reference for each in predicted],
        )
        for region in recipe.regions
    }
    whole = SegmentationCalibration(
        slices=sum(each.slices for each in predicted),
        patients=len({case.patient for case in cases}),
        separate=True,
        members=recipe.sampling.members,
        steps=recipe.sampling.steps,
        regions=found,
    )
    thresholds = {region: recipe.findings.threshold or whole.threshold(region) for region in recipe.regions}
    scores = [_volume_scores(study, case, recipe, thresholds) for case in cases]
    parts = [{case.patient for case in part.of("val")} for part in folds_by_patient(manifest, study.facts["folds"])]
    regions = {}
    for region, chosen in found.items():
        volumes = _of_patients(cases, [score[region] for score in scores])
        looked_at = [each.regions[region] for each in predicted]
        shares = [np.mean(own, axis=0) for own in _of_patients(cases, [each.missed for each in looked_at]).values()]
        regions[region] = chosen.but(
            volume_scores=[
                sorted(round(max(own), 6) for patient, own in volumes.items() if patient in part) for part in parts
            ],
            presence=_presence_scores(_of_patients(cases, looked_at)),
            missed=[round(float(share), 6) for share in np.mean(shares, axis=0)] if shares else [],
            lesions=len(shares),
        )
    whole = whole.but(regions={region: each.model_dump(mode="json") for region, each in regions.items()})
    write_calibration(study.whole, whole)
    tell(whole)
    return whole


Value = TypeVar("Value")


def _of_patients(cases: Sequence[Case], values: Sequence[Value | None]) -> dict[str, list[Value]]:
    """The values that there are of each patient, who may have several scans: these are no two patients."""
    own: dict[str, list[Value]] = {}
    for case, value in zip(cases, values, strict=True):
        if value is not None:
            own.setdefault(case.patient, []).append(value)
    return own


class RegionVoxels(NamedTuple):
    """Probability in [0, 1] and whether the reference marks it, of some of a brain's voxels, [N] each; which share of the
    reference's voxels is missed at each threshold, None without a lesion; and the score of there being one."""

    probability: npt.NDArray[np.float32]
    reference: npt.NDArray[np.bool_]
    missed: npt.NDArray[np.float64] | None
    presence: float


def _presence_scores(patients: Mapping[str, Sequence[RegionVoxels]]) -> dict[str, list[float]]:
    """As calibration.json holds them: of each patient's first scan."""
    first = [own[0] for own in patients.values()]
    diseased, healthy = (
        sorted(round(each.presence, 6) for each in first if (each.missed is not None) == there)
        for there in (True, False)
    )
    return {"diseased": diseased, "healthy": healthy}


class Predicted(NamedTuple):
    """A case as the run that never saw it predicts it: how many slices hold brain, and its regions."""

    slices: int
    regions: dict[str, RegionVoxels]


def _predicted(study: FoldStudy, case: Case, most: int) -> Predicted:
    result = read_result(study.out_of_fold / case.name, case.name)
    brain, references = result.brain(case, case.channels[:1]), result.references(case)
    places = np.flatnonzero(brain)
    places = places[:: -(-len(places) // most) or 1]
    regions = {}
    for region in result.regions:
        probability, truth = _probability(result, region), _truth(result, references, region)
        missed = conformal.missed_shares(probability, truth) if truth.any() else None
        present = presence.score(probability, geometry.voxel_ml(result.main.affine))
        regions[region] = RegionVoxels(probability.ravel()[places], truth.ravel()[places], missed, present)
    return Predicted(int(brain.any(axis=(0, 1)).sum()), regions)


def _volume_scores(
    study: FoldStudy, case: Case, recipe: SegmentationRecipe, thresholds: Mapping[str, float]
) -> dict[str, float]:
    """How far the volume of each region's mask is from the true one, the mask cut as `segment` will cut it."""
    result = read_result(study.out_of_fold / case.name, case.name)
    voxel_ml, references = geometry.voxel_ml(result.main.affine), result.references(case)
    if recipe.findings.fusion == "mean":
        values = np.stack([_probability(result, region) for region in recipe.regions])
        masks, _ = cut_masks(values, recipe, recipe.findings, thresholds, voxel_ml)
    else:
        masks = {region: result.mask(region) for region in recipe.regions}
    return {
        region: conformal.volume_score(
            float(mask.sum()) * voxel_ml, float(_truth(result, references, region).sum()) * voxel_ml
        )
        for region, mask in masks.items()
    }


def _probability(result: CaseResult, region: str) -> npt.NDArray[np.float32]:
    """Raises: UsageError where it is not there."""
    probability = result.map("probability", region)
    if probability is None:
        raise UsageError("has no probability", fix="train the study again", case=result.name)
    return probability


def _truth(result: CaseResult, references: Mapping[str, npt.NDArray[np.int16]], region: str) -> npt.NDArray[np.bool_]:
    return majority({name: result.marked(labels, region) for name, labels in references.items()})
