"""What the patients of a study, each predicted by a run that never saw it, show of the whole: its calibration.json."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from medseg_diff.console import log
from medseg_diff.data import geometry
from medseg_diff.data.geometry import axial_axis
from medseg_diff.data.results import CaseResult, holds_result, read_result
from medseg_diff.data.tables.manifest import Case, Manifest
from medseg_diff.errors import UsageError, counted
from medseg_diff.evaluation.summary import majority
from medseg_diff.metrics import conformal, presence
from medseg_diff.recipes.calibration import (
    OutOfFold,
    PresenceScores,
    RegionCalibration,
    SegmentationCalibration,
    write_calibration,
)
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.studies import FoldStudy
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.apply.segmentation_maps import cut_masks
from medseg_diff.tasks.train.calibration import calibrate_patients, tell
from medseg_diff.tasks.train.folds import Fold
from medseg_diff.tasks.train.train import Material
from medseg_diff.tasks.training_options import TrainingRun

MOST_VOXELS = 500_000  # of a brain, evenly spaced, that a calibration looks at,
MOST_IN_ALL = 50_000_000  # and of all brains together: 250 MB a region


def that_choose_nothing(given: Material[SegmentationRecipe]) -> Material[SegmentationRecipe]:
    """Weights or thresholds that a fold's own patients had chosen would make what is said of these too good: the last
    weights are kept, and the study is calibrated as a whole.

    Raises: UsageError for a recipe that screens slices, which a study as a whole cannot measure.
    """
    if given.recipe.sampling.screen:
        found = (
            "sampling.screen needs a threshold that is measured at the end of a training, but folds do not measure it"
        )
        raise UsageError(found, fix="leave it out, or train without --folds")
    validation = given.recipe.validation.but(weights="last", calibration_slices=0).model_dump(mode="json")
    return replace(given, recipe=given.recipe.but(validation=validation))


def predict(fold: Fold, given: Material[SegmentationRecipe], options: TrainingRun, device: str) -> None:
    """Segment those whom the run has not seen, into the study's `out_of_fold`; what is complete stays."""
    segment(
        data=fold.run.folder / "cases.csv",
        split="val",
        data_root=fold.manifest.root,
        model=fold.run.folder,
        out=fold.study.out_of_fold,
        device=device,
        runs=options.runs,
        steps=given.recipe.sampling.steps,  # what is measured of the study, whatever was tuned of this run
        members=given.recipe.sampling.members,
        resample_to=given.recipe.preparation.resample_to,
    )


def conclude(study: FoldStudy, given: Material[SegmentationRecipe], data: Path) -> bool:
    """Calibrate the study, unless another process still predicts; whether it is done. Raises: as `calibrate_study`."""
    predicted = [case.name for case in given.manifest.cases if case.split != "test"]
    if missing := [name for name in predicted if not holds_result(study.out_of_fold / name, "segment")]:
        left = counted(len(missing), "case")
        log.info("another process is still predicting %s and will finish the study", left)
        return False
    calibrate_study(study, given.recipe, given.manifest)
    log.info(
        "to evaluate every patient with a model that never saw it: medseg-diff evaluate --predictions %s --data %s",
        study.out_of_fold,
        data,
    )
    return True


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
    regions = {
        region: _chosen(_of_patients(cases, [each.regions[region] for each in predicted])) for region in recipe.regions
    }
    thresholds = {region: recipe.findings.threshold or chosen.threshold for region, chosen in regions.items()}
    errors = [_volume_errors(study, case, recipe, thresholds) for case in cases]
    for region, chosen in regions.items():
        patients = _of_patients(cases, [each.regions[region] for each in predicted])
        of_volumes = _of_patients(cases, [each[region] for each in errors])
        shown = _shown(patients, [max(own) for own in of_volumes.values()])
        regions[region] = chosen.but(out_of_fold=shown.model_dump(mode="json"))
    whole = SegmentationCalibration(
        slices=sum(each.slices for each in predicted),
        patients=len({case.patient for case in cases}),
        separate=True,
        members=recipe.sampling.members,
        steps=recipe.sampling.steps,
        regions=regions,
    )
    write_calibration(study.whole, whole)
    tell(whole)
    return whole


Value = TypeVar("Value")


def _of_patients(cases: Sequence[Case], values: Sequence[Value]) -> dict[str, list[Value]]:
    """The values of each patient, who may have several scans: these are no two patients."""
    own: dict[str, list[Value]] = {}
    for case, value in zip(cases, values, strict=True):
        own.setdefault(case.patient, []).append(value)
    return own


class RegionVoxels(NamedTuple):
    """Probability in [0, 1] and whether the reference marks it, of some of a brain's voxels, [N] each; which share of the
    reference's voxels is missed at each threshold, None without a lesion; and the score of there being one."""

    probability: npt.NDArray[np.float32]
    reference: npt.NDArray[np.bool_]
    missed: npt.NDArray[np.float64] | None
    presence: float


def _chosen(patients: Mapping[str, Sequence[RegionVoxels]]) -> RegionCalibration:
    """Threshold and temperature of a region."""
    return calibrate_patients(
        [np.concatenate([scan.probability for scan in scans]) for scans in patients.values()],
        [np.concatenate([scan.reference for scan in scans]) for scans in patients.values()],
    )


def _shown(patients: Mapping[str, Sequence[RegionVoxels]], volume_errors: Sequence[float]) -> OutOfFold:
    """What the patients showed of a region: nothing of them is kept but these numbers, in no order of theirs."""
    first = [scans[0] for scans in patients.values()]
    shares = [[scan.missed for scan in scans if scan.missed is not None] for scans in patients.values()]
    missed = [np.mean(own, axis=0) for own in shares if own]
    return OutOfFold(
        volume_errors=tuple(sorted(round(error, 6) for error in volume_errors)),
        presence=PresenceScores(
            diseased=tuple(sorted(scan.presence for scan in first if scan.missed is not None)),
            healthy=tuple(sorted(scan.presence for scan in first if scan.missed is None)),
        ),
        missed=tuple(round(float(share), 6) for share in np.mean(missed, axis=0)) if missed else (),
        lesions=len(missed),
    )


class Predicted(NamedTuple):
    """A case as the run that never saw it predicts it: how many slices hold brain, and its regions."""

    slices: int
    regions: dict[str, RegionVoxels]


def _predicted(study: FoldStudy, case: Case, most: int) -> Predicted:
    result = read_result(study.out_of_fold / case.name, case.name)
    brain, references = result.brain_seen(case), result.references(case)
    places = np.flatnonzero(brain)
    places = places[:: -(-len(places) // most) or 1]
    regions = {}
    for region in result.regions:
        probability, truth = _probability(result, region), _truth(result, references, region)
        missed = conformal.missed_shares(probability, truth) if truth.any() else None
        present = presence.score(probability, geometry.voxel_ml(result.main.affine))
        regions[region] = RegionVoxels(probability.ravel()[places], truth.ravel()[places], missed, present)
    slices = np.moveaxis(brain, axial_axis(result.main.affine), 0)
    return Predicted(int(slices.any(axis=(1, 2)).sum()), regions)


def _volume_errors(
    study: FoldStudy, case: Case, recipe: SegmentationRecipe, thresholds: Mapping[str, float]
) -> dict[str, float]:
    """How far the volume of each region's mask is from the true one, the mask cut as `segment` will cut it."""
    result = read_result(study.out_of_fold / case.name, case.name)
    voxel_ml, references = geometry.voxel_ml(result.main.affine), result.references(case)
    values = {region: _probability(result, region) for region in recipe.regions}
    if recipe.findings.fusion == "mean":
        masks, _ = cut_masks(np.stack(list(values.values())), recipe, recipe.findings, thresholds, voxel_ml)
    else:
        masks = {region: result.mask(region) for region in recipe.regions}
    true = {region: _truth(result, references, region) for region in recipe.regions}
    return {
        region: conformal.volume_error(
            np.count_nonzero(masks[region]) * voxel_ml,
            np.count_nonzero(true[region]) * voxel_ml,
            conformal.volume_uncertainty(values[region], voxel_ml),
        )
        for region in recipe.regions
    }


def _probability(result: CaseResult, region: str) -> npt.NDArray[np.float32]:
    """Raises: UsageError where it is not there."""
    probability = result.map("probability", region)
    if probability is None:
        raise UsageError("has no probability", fix="train the study again", case=result.name)
    return probability


def _truth(result: CaseResult, references: Mapping[str, npt.NDArray[np.int16]], region: str) -> npt.NDArray[np.bool_]:
    return majority({name: result.marked(labels, region) for name, labels in references.items()})
