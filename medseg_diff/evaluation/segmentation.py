"""Every measure of one segmented case: overlap, lesions found, calibration, uncertainty, diversity; also slice by slice."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_diff.data.geometry import axes_of, spacing_of
from medseg_diff.data.predictions import SegmentedCase, read_brain, read_references
from medseg_diff.data.tables.manifest import Case
from medseg_diff.metrics import calibration, diversity, overlap
from medseg_diff.metrics.detection import HIT, Detection, lesion_detection
from medseg_diff.metrics.intervals import mean_interval

logger = logging.getLogger(__name__)

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Values = dict[str, float | None]

THRESHOLD = 0.5
TOLERANCE_MM = 1.0
SMALLEST_LESION_ML = 0.05  # 50 voxels of 1 mm
# Most of a brain is certain: the curve is looked at closely where the doubtful voxels come in.
COVERAGE = np.concatenate([np.arange(5, 90, 5), np.arange(90, 101)]) / 100


class Measure(NamedTuple):
    """How one number is summarised: its unit, over what, whether cases without a lesion are left out, what is better."""

    unit: str
    over: str
    lesion_only: bool = False
    better: Literal["higher", "lower"] | None = "higher"


LESIONS, BRAIN = "cases with a lesion", "cases, each over its brain voxels"
MEASURES = {
    "dice": Measure("1", LESIONS, lesion_only=True),
    "dice_raw": Measure("1", LESIONS, lesion_only=True),
    "dice_raters": Measure("1", LESIONS, lesion_only=True),
    "dice_slices": Measure("1", "cases, each over its axial slices with a lesion", lesion_only=True),
    "iou": Measure("1", LESIONS, lesion_only=True),
    "hd95_mm": Measure("mm", "cases with a lesion in the reference and in the mask", lesion_only=True, better="lower"),
    "surface_dice_1mm": Measure("1", LESIONS, lesion_only=True),
    "volume_error_ml": Measure("ml", "cases", better="lower"),
    "volume_bias_ml": Measure("ml", "cases", better=None),
    "lesion_sensitivity": Measure("1", "cases with a lesion of 0.05 ml or more"),
    "lesion_precision": Measure("1", "cases in which a lesion was marked"),
    "lesion_f1": Measure("1", "cases with a lesion of 0.05 ml or more"),
    "false_positive_lesions": Measure("lesions", "cases", better="lower"),
    "false_positives_ml": Measure("ml", "cases", better="lower"),
    "ged2": Measure("1", "cases, each over its axial slices with a lesion", lesion_only=True, better="lower"),
    "ece": Measure("1", BRAIN, better="lower"),
    "ece_calibrated": Measure("1", BRAIN, better="lower"),
    "brier": Measure("1", BRAIN, better="lower"),
    "brier_calibrated": Measure("1", BRAIN, better="lower"),
    "aurc": Measure("1", BRAIN, better="lower"),
    "auroc_error": Measure("1", BRAIN),
}
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
    "ged2": "d = 1 - IoU, members against raters (seg alone counts as one rater), a mask with itself included",
    "ece": f"mean probability, {calibration.BINS} bins of equal mass; *_calibrated: at the run's temperature",
    "aurc": "error of the mask, voxels ordered by uncertainty.nii.gz",
    "auroc_error": "does uncertainty.nii.gz find the wrong voxels of the mask; undefined where none or all are wrong",
    "interval": "95 %, percentile bootstrap, patients drawn with replacement; null for fewer than two patients",
    "reliability": f"brain voxels of all cases together, {calibration.BINS} bins of equal width; empty bins are left out",
    "risk_coverage": "error rate of the most certain share of a brain's voxels, mean over cases",
    "empty": {name: empty._asdict() for name, empty in overlap.CONVENTIONS.items()},
}


@dataclass(frozen=True)
class Curves:
    """Of one case and region; None where nothing was written to measure. `risk` is at each of COVERAGE."""

    reliability: calibration.Reliability | None = None
    reliability_calibrated: calibration.Reliability | None = None
    risk: Floats | None = None


@dataclass(frozen=True)
class MeasuredCase:
    """One case's numbers for each region; None, or no entry, where undefined or where nothing was written to measure.

    `slices` has a row for each region and axial slice with brain or a mark: axis, slice, reference_ml, mask_ml, …
    """

    case: Case
    regions: dict[str, Values]
    reference_ml: dict[str, float]
    curves: dict[str, Curves]
    slices: dict[str, list[Values]]
    uncounted: tuple[int, ...] = ()  # labels of the reference in no region: taken for background


@dataclass(frozen=True)
class _Seen:
    """What is held of one region at once, [X, Y, Z] each; `raters` falls back on the reference."""

    region: str
    mask: Mask
    reference: Mask
    raters: Sequence[Mask]
    brain: Mask
    uncertainty: npt.NDArray[np.float32] | None


SLICE_COLUMNS = ("axis", "slice", "reference_ml", "mask_ml", "dice", "error_ml", "expected_error_ml", "ged2")


def measure_case(case: Case, segmented: SegmentedCase) -> MeasuredCase:
    """All measures of one case from the files in its folder. Raises: UsageError, ImageError."""
    references, brain = read_references(case, segmented), read_brain(case, segmented)
    spacing_mm = [float(step) for step in spacing_of(segmented.mask.affine)]
    known = {label for labels in segmented.regions.values() for label in labels}
    found = {int(label) for voxels in references.values() for label in np.unique(voxels[voxels > 0])}
    measured = MeasuredCase(case, {}, {}, {}, {}, uncounted=tuple(sorted(found - known)))
    for region, labels in segmented.regions.items():
        opinions = {name: np.isin(voxels, labels) for name, voxels in references.items()}
        raters = [opinion for name, opinion in opinions.items() if name != "seg"]
        reference = opinions["seg"] if "seg" in opinions else np.mean(raters, axis=0) > THRESHOLD
        mask = segmented.region_mask(region)
        probability, calibrated, uncertainty = (
            segmented.map(kind, region) for kind in ("probability", "calibrated", "uncertainty")
        )
        error = mask != reference
        slices = list(_slices(segmented, _Seen(region, mask, reference, raters or [reference], brain, uncertainty)))
        measured.slices[region] = slices
        measured.regions[region] = {
            **_overlap(mask, reference, spacing_mm),
            **_lesions(lesion_detection(mask, reference, spacing_mm=spacing_mm, smallest_ml=SMALLEST_LESION_ML)),
            "dice_raters": float(np.mean([overlap.dice(mask, rater) for rater in raters])) if raters else None,
            "dice_slices": _mean([row["dice"] for row in slices if row["reference_ml"]]),
            "ged2": _mean([row["ged2"] for row in slices]),
            **_probability(probability, reference, brain),
            **_calibrated(calibrated, reference, brain),
            **_uncertainty(uncertainty, error, brain),
        }
        measured.curves[region] = Curves(
            None if probability is None else calibration.reliability(probability[brain], reference[brain]),
            None if calibrated is None else calibration.reliability(calibrated[brain], reference[brain]),
            None
            if uncertainty is None
            else calibration.risk_coverage(uncertainty[brain], error[brain], coverage=COVERAGE),
        )
        measured.reference_ml[region] = overlap.volume_ml(reference, spacing_mm=spacing_mm)
    dice = ", ".join(f"{name} Dice {numbers['dice']:.3f}" for name, numbers in measured.regions.items())
    logger.info("%s: %s", case.name, dice)
    return measured


def _overlap(mask: Mask, reference: Mask, spacing_mm: Sequence[float]) -> Values:
    bias_ml = overlap.volume_error_ml(mask, reference, spacing_mm=spacing_mm)
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


def _probability(probability: npt.NDArray[np.float32] | None, reference: Mask, brain: Mask) -> Values:
    if probability is None:
        return {}
    return {
        "dice_raw": overlap.dice(probability > THRESHOLD, reference),
        "ece": calibration.ece(probability[brain], reference[brain]),
        "brier": calibration.brier(probability[brain], reference[brain]),
    }


def _calibrated(calibrated: npt.NDArray[np.float32] | None, reference: Mask, brain: Mask) -> Values:
    if calibrated is None:
        return {}
    return {
        "ece_calibrated": calibration.ece(calibrated[brain], reference[brain]),
        "brier_calibrated": calibration.brier(calibrated[brain], reference[brain]),
    }


def _uncertainty(uncertainty: npt.NDArray[np.float32] | None, error: Mask, brain: Mask) -> Values:
    if uncertainty is None:
        return {}
    return {
        "aurc": calibration.aurc(uncertainty[brain], error[brain]),
        "auroc_error": calibration.auroc_error(uncertainty[brain], error[brain]),
    }


def _slices(segmented: SegmentedCase, seen: _Seen) -> Iterator[Values]:
    """A row for each axial slice that holds brain or is marked, from the first to the last; see SLICE_COLUMNS."""
    affine = segmented.mask.affine
    axial = next(axis for axis, towards in enumerate(axes_of(affine)) if towards in "SI")
    voxel_ml = float(np.prod(spacing_of(affine))) / 1000
    ged2, uncertainty = _ged2_of_slices(segmented, seen, axial), seen.uncertainty
    stacks = (np.moveaxis(each, axial, 0) for each in (seen.mask, seen.reference, seen.brain))
    for z, (marked, truth, tissue) in enumerate(zip(*stacks, strict=True)):
        if not (tissue.any() or marked.any() or truth.any()):
            continue
        doubt = None if uncertainty is None else np.take(uncertainty, z, axis=axial).sum(dtype=np.float64) * voxel_ml
        yield {
            "axis": axial,
            "slice": z,
            "reference_ml": np.count_nonzero(truth) * voxel_ml,
            "mask_ml": np.count_nonzero(marked) * voxel_ml,
            "dice": overlap.dice(marked, truth) if marked.any() or truth.any() else None,
            "error_ml": np.count_nonzero(marked != truth) * voxel_ml,
            "expected_error_ml": None if doubt is None else float(doubt),
            "ged2": ged2.get(z),
        }


def _ged2_of_slices(segmented: SegmentedCase, seen: _Seen, axial: int) -> dict[int, float]:
    """GED² of each axial slice in which a rater marked the region; nothing without members."""
    members = [member > THRESHOLD for member in segmented.members(seen.region)]
    if not members:
        return {}
    return dict(
        diversity.ged2_of_slices(
            np.stack([np.moveaxis(member, axial, 0) for member in members]),
            np.stack([np.moveaxis(rater, axial, 0) for rater in seen.raters]),
        )
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def regions_of(measured: Sequence[MeasuredCase]) -> list[str]:
    """Every region that a case has, in their order."""
    return list(dict.fromkeys(region for each in measured for region in each.regions))


def summaries(measured: Sequence[MeasuredCase]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, mean with interval) for every measure of every region; a value is null where nothing could be measured."""
    regions = regions_of(measured)
    for region in regions:
        of_region = [each for each in measured if region in each.regions]
        for name, measure in MEASURES.items():
            counted = [each for each in of_region if each.reference_ml[region] > 0 or not measure.lesion_only]
            interval = mean_interval(
                [each.regions[region].get(name) for each in counted], patients=[each.case.patient for each in counted]
            )
            key = f"{region}_{name}" if len(regions) > 1 else name
            yield (
                key,
                {
                    "value": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                    "unit": measure.unit,
                    "over": measure.over,
                    "cases": interval.cases,
                },
            )


def curves_of(measured: Sequence[MeasuredCase]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """For each region its reliability (cases pooled; also calibrated, where written) and risk–coverage (mean of cases)."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for region in regions_of(measured):
        of_region = [each.curves[region] for each in measured if region in each.curves]
        found[region] = {}
        for name in ("reliability", "reliability_calibrated"):
            tallies = [tallied for curves in of_region if (tallied := getattr(curves, name)) is not None]
            if tallies:
                found[region][name] = sum(tallies[1:], start=tallies[0]).as_dict()
        risks = [curves.risk for curves in of_region if curves.risk is not None]
        if risks:
            risk = np.mean(risks, axis=0)
            found[region]["risk_coverage"] = {"coverage": COVERAGE.tolist(), "risk": risk.round(8).tolist()}
    return found
