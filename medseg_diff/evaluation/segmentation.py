"""Every metric of segmented cases: overlap, lesions found, calibration, uncertainty, diversity; also slice by slice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from medseg_diff.console import log
from medseg_diff.data import geometry
from medseg_diff.data.geometry import axial_axis, spacing_of
from medseg_diff.data.label_maps import AnyResults
from medseg_diff.data.results import CaseResult
from medseg_diff.data.tables.manifest import Case
from medseg_diff.evaluation.catalogue import SEGMENTATION
from medseg_diff.evaluation.ensembles import BAND, THRESHOLD, distances_of_slices, in_doubt, raters_in
from medseg_diff.evaluation.labels import LabelsOfCase, labels_of_case, warn_of_labels
from medseg_diff.evaluation.promises import coverage_curve, promises_kept
from medseg_diff.evaluation.slices import SLICE_COLUMNS, slice_rows, sums_ml
from medseg_diff.evaluation.summary import (
    Each,
    Evaluation,
    Floats,
    Mask,
    Values,
    majority,
    mean,
    over_cases,
    table,
)
from medseg_diff.metrics import calibration, diversity, overlap
from medseg_diff.metrics.anomaly import rank
from medseg_diff.metrics.detection import HIT, Detection, lesion_detection

TOLERANCE_MM = 1.0
SMALLEST_LESION_ML = 0.05  # 50 voxels of 1 mm
SUFFIXES = {"probability": "", "calibrated": "_calibrated"}  # of the metrics and the curve of each map
# Most of a brain is certain: the curve is looked at closely where the doubtful voxels come in.
COVERAGE = np.concatenate([np.arange(5, 90, 5), np.arange(90, 101)]) / 100


CONVENTIONS = {
    "dice": "3D, the mask (its threshold and fusion are in case.json; small remote components removed) against seg; "
    "seg missing: majority of the raters",
    "dice_raw": "3D, mean probability > 0.5 against seg, nothing removed",
    "dice_raters": "3D, the mask against every rater (seg_1 …), mean",
    "dice_slices": "2D, the mask against seg, mean over the axial slices with a lesion in seg",
    "hd95_mm": "larger of the two directions' 95th percentiles, surface voxels (MONAI)",
    "surface_dice_1mm": "tolerance 1 mm, surfaces weighted by area (MONAI, use_subvoxels)",
    "volume_error_ml": "absolute difference of the volumes; volume_bias_ml is mask minus reference",
    "lesions": f"components of 26 neighbours of {SMALLEST_LESION_ML} ml or more; found where the mask covers {HIT:.0%} "
    f"of one; a component of the mask with less than {HIT:.0%} of it in the reference is a false positive",
    "ged2": "d = 1 - IoU, members against raters (seg alone counts as one rater), a mask with itself included; "
    "ged2_unbiased over pairs of different masks, from the three means of d beside it",
    "band": f"brain voxels with {BAND[0]:g} < probability < {BAND[1]:g}: over a whole brain, most of it surely healthy, ece "
    "and auroc_error look good whatever is said of the rest",
    "ece": f"mean probability, {calibration.BINS} bins of equal mass; *_calibrated: at the run's temperature",
    "aurc": "error of the mask, voxels ordered by uncertainty.nii.gz",
    "auroc_error": "does uncertainty.nii.gz find the wrong voxels of the mask; undefined where none or all are wrong",
    "coverage90": "share of the cases whose true volume lies in the 90 % interval of case.json, width90_ml wide",
    "guaranteed_missed": "share of the lesion outside guaranteed_mask.nii.gz, which has guaranteed_ratio times its volume",
    "presence_brier": "squared difference of lesion_presence's probability and whether there is a lesion",
    "typicality": "score of case.json over its threshold; atypical: share of the cases above it, of which `segment` warned",
    "interval": "95 %, percentile bootstrap, patients drawn with replacement; null for fewer than two patients",
    "reliability": f"brain voxels of all cases together, {calibration.BINS} bins of equal width; empty bins are left out",
    "risk_coverage": "error rate of the most certain share of a brain's voxels, mean over cases",
    "empty": {name: empty._asdict() for name, empty in overlap.CONVENTIONS.items()},
}


INTERVAL = ("low90_ml", "high90_ml")


@dataclass(frozen=True)
class MeasuredRegion:
    """One region of one case: `values` of SEGMENTATION's metrics and reference_ml, and a row for each axial slice.

    A value or a curve is None (or not there) where nothing was written to measure it by; `reliability` is by the name of its
    curve, `risk` at each of COVERAGE.
    """

    values: Values
    slices: list[Values]
    reliability: dict[str, calibration.Reliability]
    risk: Floats | None


@dataclass(frozen=True)
class MeasuredCase:
    """All regions of a case, and whether its labels mean what is taken for granted."""

    case: Case
    regions: dict[str, MeasuredRegion]
    labels: LabelsOfCase


def evaluate_segmentation(cases: Sequence[Case], results: AnyResults, *, each: Each = map) -> Evaluation:
    """Compare masks and maps with the cases' references; one case is in memory at a time. `each` measures the cases, in
    other processes perhaps.

    Raises: UsageError where a case.json is unreadable, ImageError where a file is damaged or lies on another grid.
    """
    measured = list(each(partial(_measured, results), cases))
    warn_of_labels({each.case.name: each.labels for each in measured})
    regions = list(dict.fromkeys(region for each in measured for region in each.regions))
    found = {
        region: [(each.case, each.regions[region]) for each in measured if region in each.regions] for region in regions
    }
    metrics: dict[str, Any] = {}
    for region, of_region in found.items():
        prefix = f"{region}_" if len(regions) > 1 else ""
        metrics |= {f"{prefix}{name}": summary for name, summary in _summaries(of_region)}
    every = [(each.case, name, region) for each in measured for name, region in each.regions.items()]
    return Evaluation(
        facts={
            "metrics": metrics,
            "curves": {region: _curves([part for _, part in of_region]) for region, of_region in found.items()},
            "baselines": {},
            "conventions": CONVENTIONS,
        },
        per_case=table(
            ("case", "patient", "split", "region"),
            ("reference_ml", *INTERVAL, *SEGMENTATION),
            [((case.name, case.patient, case.split, name), region.values) for case, name, region in every],
        ),
        per_slice=table(
            ("case", "patient", "region"),
            SLICE_COLUMNS,
            [((case.name, case.patient, name), row) for case, name, region in every for row in region.slices],
        ),
    )


def _measured(results: AnyResults, case: Case) -> MeasuredCase:
    return measure_case(case, results.read(case.name))


def measure_case(case: Case, result: CaseResult) -> MeasuredCase:
    """All metrics of one case from the files in its folder. Raises: UsageError, ImageError."""
    references, brain = result.references(case), result.brain_seen(case)
    regions = {
        region: _measure_region(
            result, region, {name: result.marked(voxels, region) for name, voxels in references.items()}, brain
        )
        for region in result.regions
    }
    log.info("%s: %s", case.name, ", ".join(_in_words(name, region.values) for name, region in regions.items()))
    return MeasuredCase(case, regions, labels_of_case(result, references))


def _in_words(region: str, values: Values) -> str:
    """Its Dice; where the reference has no lesion there is none, but what is marked all the same."""
    if values["reference_ml"]:
        return f"{region} Dice {values['dice']:.3f}"
    return f"no {region}, {values['false_positives_ml']:.2f} ml false positive"


def _measure_region(result: CaseResult, region: str, opinions: Mapping[str, Mask], brain: Mask) -> MeasuredRegion:
    """`opinions` [X, Y, Z] each: `seg`, or the raters whose majority stands for it, or both."""
    reference, raters = majority(opinions), raters_in(opinions)
    mask, affine = result.mask(region), result.main.affine
    spacing_mm, voxel_ml = [float(step) for step in spacing_of(affine)], geometry.voxel_ml(affine)
    maps = {kind: result.map(kind, region) for kind in (*SUFFIXES, "uncertainty")}
    uncertainty = maps["uncertainty"]
    apart = distances_of_slices(result.members(region), raters or [reference], axial_axis(affine))
    of_slices = {
        "expected_error_ml": sums_ml(uncertainty, affine),
        "ged2": {z: of_slice.ged2 for z, of_slice in apart.items()},
    }
    slices = list(slice_rows(mask, reference, brain, affine, of_slices))
    reference_ml = overlap.volume_ml(reference, voxel_ml=voxel_ml)
    values: Values = {
        "reference_ml": reference_ml,
        **_overlap(mask, reference, spacing_mm, voxel_ml),
        **_lesions(lesion_detection(mask, reference, voxel_ml=voxel_ml, smallest_ml=SMALLEST_LESION_ML)),
        "dice_raters": mean([overlap.dice(mask, rater) for rater in raters]),
        "dice_slices": mean([row["dice"] for row in slices if row["reference_ml"]]),
        **_diversity(list(apart.values())),
        **promises_kept(result, region, reference, reference_ml),
    }
    reliability, risk = {}, None
    wrong, doubt = (mask != reference)[brain], None if uncertainty is None else uncertainty[brain]
    for kind, suffix in SUFFIXES.items():
        if (probability := maps[kind]) is not None:
            inside, truth = probability[brain], reference[brain]
            values |= {
                f"ece{suffix}": calibration.ece(inside, truth),
                f"brier{suffix}": calibration.brier(inside, truth),
            }
            reliability[f"reliability{suffix}"] = calibration.reliability(inside, truth)
            if kind == "probability":
                values["dice_raw"] = overlap.dice(probability > THRESHOLD, reference)
                values |= in_doubt(inside, truth, wrong, doubt)
    if doubt is not None:
        values |= {"aurc": calibration.aurc(doubt, wrong), "auroc_error": rank(doubt, wrong).auroc()}
        risk = calibration.risk_coverage(doubt, wrong, coverage=COVERAGE)
    return MeasuredRegion(values, slices, reliability, risk)


def _overlap(mask: Mask, reference: Mask, spacing_mm: Sequence[float], voxel_ml: float) -> Values:
    bias_ml = overlap.volume_error_ml(mask, reference, voxel_ml=voxel_ml)
    return {
        "dice": overlap.dice(mask, reference),
        "iou": overlap.iou(mask, reference),
        "hd95_mm": overlap.hd95_mm(mask, reference, spacing_mm=spacing_mm),
        "surface_dice_1mm": overlap.surface_dice(mask, reference, spacing_mm=spacing_mm, tolerance_mm=TOLERANCE_MM),
        "volume_error_ml": abs(bias_ml),
        "volume_bias_ml": bias_ml,
    }


def _lesions(found: Detection) -> Values:
    return {
        "lesion_sensitivity": found.sensitivity,
        "lesion_precision": found.precision,
        "lesion_f1": found.f1,
        "false_positive_lesions": found.false_positives,
        "false_positives_ml": found.false_positive_ml,
    }


def _diversity(slices: Sequence[diversity.Distances]) -> Values:
    """Means over the slices in which a rater marked the region; None without members."""
    return {
        "ged2": mean([each.ged2 for each in slices]),
        "ged2_unbiased": mean([each.ged2_unbiased for each in slices]),
        "distance_to_raters": mean([each.between for each in slices]),
        "distance_of_members": mean([each.among_members for each in slices]),
        "distance_of_raters": mean([each.among_raters for each in slices]),
    }


def _summaries(measured: Sequence[tuple[Case, MeasuredRegion]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, mean with interval) for every metric of one region; a value is null where nothing could be measured."""
    values = [(case, part.values) for case, part in measured]
    yield from ((name, over_cases(name, metric, values)) for name, metric in SEGMENTATION.items())


def _curves(measured: Sequence[MeasuredRegion]) -> dict[str, Mapping[str, Any]]:
    """Of one region: reliability (cases pooled; also calibrated, where written) and risk–coverage (mean of cases)."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in (f"reliability{suffix}" for suffix in SUFFIXES.values()):
        tallies = [each.reliability[name] for each in measured if name in each.reliability]
        if tallies:
            found[name] = sum(tallies[1:], start=tallies[0]).as_dict()
    risks = [each.risk for each in measured if each.risk is not None]
    if risks:
        risk = np.mean(risks, axis=0)
        found["risk_coverage"] = {"coverage": COVERAGE.tolist(), "risk": risk.round(8).tolist()}
    if held := coverage_curve([each.values for each in measured]):
        found["intervals"] = held
    return found
