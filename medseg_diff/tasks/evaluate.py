"""How good are these predictions? Every measure of every case, and their means with intervals, as JSON and CSV."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_diff import files
from medseg_diff.data.geometry import axes_of, spacing_of
from medseg_diff.data.manifest import SPLITS, Case, Manifest, read_manifest
from medseg_diff.data.predictions import NEEDED, SegmentedCase, read_brain, read_references, read_segmented_case
from medseg_diff.data.sources.phantom import is_phantom_folder
from medseg_diff.errors import ManifestError, UsageError
from medseg_diff.metrics import calibration, diversity, overlap
from medseg_diff.metrics.intervals import mean_interval

logger = logging.getLogger(__name__)

Mask = npt.NDArray[np.bool_]
Values = dict[str, float | None]

SCHEMA = 1
THRESHOLD = 0.5
TOLERANCE_MM = 1.0
NAMES_SHOWN = 10


class Measure(NamedTuple):
    """How one number is summarised: its unit, over what, and whether cases without a lesion are left out."""

    unit: str
    over: str
    lesion_only: bool = False


LESIONS, BRAIN = "cases with a lesion", "cases, each over its brain voxels"
MEASURES = {
    "dice": Measure("1", LESIONS, lesion_only=True),
    "dice_raw": Measure("1", LESIONS, lesion_only=True),
    "dice_raters": Measure("1", LESIONS, lesion_only=True),
    "iou": Measure("1", LESIONS, lesion_only=True),
    "hd95_mm": Measure("mm", "cases with a lesion in the reference and in the mask", lesion_only=True),
    "surface_dice_1mm": Measure("1", LESIONS, lesion_only=True),
    "volume_error_ml": Measure("ml", "cases"),
    "volume_bias_ml": Measure("ml", "cases"),
    "ged2": Measure("1", "cases, each over its axial slices with a lesion", lesion_only=True),
    "ece": Measure("1", BRAIN),
    "brier": Measure("1", BRAIN),
    "aurc": Measure("1", BRAIN),
    "auroc_error": Measure("1", BRAIN),
}
CONVENTIONS = {
    "dice": "3D, mask.nii.gz (small remote components removed) against seg; seg missing: majority of the raters",
    "dice_raw": "3D, mean probability > 0.5 against seg, nothing removed",
    "dice_raters": "3D, mask.nii.gz against every rater (seg_1 …), mean",
    "hd95_mm": "larger of the two directions' 95th percentiles, surface voxels (MONAI)",
    "surface_dice_1mm": "tolerance 1 mm, surfaces weighted by area (MONAI, use_subvoxels)",
    "volume_error_ml": "absolute difference of the volumes; volume_bias_ml is mask minus reference",
    "ged2": "d = 1 - IoU, members against raters (seg alone counts as one rater), a mask with itself included",
    "ece": f"{calibration.BINS} bins of equal mass",
    "aurc": "error of mask.nii.gz, voxels ordered by uncertainty.nii.gz",
    "auroc_error": "does uncertainty.nii.gz find the wrong voxels of mask.nii.gz; undefined where none or all are wrong",
    "interval": "95 %, percentile bootstrap, patients drawn with replacement; null for fewer than two patients",
    "empty": {name: empty._asdict() for name, empty in overlap.CONVENTIONS.items()},
}


def evaluate(
    predictions: Path, data: Path, *, out: Path | None = None, split: str | None = None, data_root: Path | None = None
) -> dict[str, Any]:
    """Compare a folder of segmentations with the references of a manifest.

    Reads `predictions`/<case>/{case.json, mask.nii.gz} and, where present, probability, uncertainty and members; writes
    `out`/metrics.json (returned as well) and `out`/per_case.csv; `out` defaults to `predictions`. `split` defaults to
    the splits that have predictions; every case of them must have been segmented.
    Raises: UsageError where predictions are missing (all are named), ManifestError where references are, ImageError
    where a file is damaged or lies on another grid than its reference.
    """
    manifest = read_manifest(data, data_root=data_root)
    cases = _cases_to_measure(manifest, predictions, split)
    measured = [measure_case(case, predictions / case.name) for case in cases]
    summary = {
        "schema": SCHEMA,
        "task": "segment",
        "data": _name_of(manifest, cases),
        "split": split or ", ".join(sorted({case.split for case in cases if case.split})) or None,
        "cases": len(cases),
        "patients": len({case.patient for case in cases}),
        "metrics": dict(_summaries(measured)),
        "baselines": {},
        "conventions": CONVENTIONS,
    }
    folder = out or predictions
    _write_per_case(folder / "per_case.csv", measured)
    files.write_json(folder / "metrics.json", summary)
    return summary


@dataclass(frozen=True)
class MeasuredCase:
    """One case's numbers for each region; None, or no entry, where undefined or where nothing was written to measure."""

    case: Case
    regions: dict[str, Values]
    reference_ml: dict[str, float]


def measure_case(case: Case, folder: Path) -> MeasuredCase:
    """All measures of one case from the files in its folder. Raises: UsageError, ImageError."""
    segmented = read_segmented_case(folder, case.name)
    references, brain = read_references(case, segmented), read_brain(case, segmented)
    spacing_mm = [float(step) for step in spacing_of(segmented.mask.affine)]
    regions: dict[str, Values] = {}
    reference_ml: dict[str, float] = {}
    for region, labels in segmented.regions.items():
        opinions = {name: np.isin(voxels, labels) for name, voxels in references.items()}
        raters = [opinion for name, opinion in opinions.items() if name != "seg"]
        reference = opinions["seg"] if "seg" in opinions else np.mean(raters, axis=0) > THRESHOLD
        mask = segmented.region_mask(region)
        regions[region] = {
            **_overlap(mask, reference, spacing_mm),
            "dice_raters": float(np.mean([overlap.dice(mask, rater) for rater in raters])) if raters else None,
            **_probability(segmented, region, reference, brain),
            **_uncertainty(segmented, region, mask != reference, brain),
            "ged2": _ged2(segmented, region, raters or [reference]),
        }
        reference_ml[region] = overlap.volume_ml(reference, spacing_mm=spacing_mm)
    logger.info(
        "%s: %s", case.name, ", ".join(f"{name} Dice {numbers['dice']:.3f}" for name, numbers in regions.items())
    )
    return MeasuredCase(case, regions, reference_ml)


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


def _probability(segmented: SegmentedCase, region: str, reference: Mask, brain: Mask) -> Values:
    probability = segmented.map("probability", region)
    if probability is None:
        return {}
    return {
        "dice_raw": overlap.dice(probability > THRESHOLD, reference),
        "ece": calibration.ece(probability[brain], reference[brain]),
        "brier": calibration.brier(probability[brain], reference[brain]),
    }


def _uncertainty(segmented: SegmentedCase, region: str, error: Mask, brain: Mask) -> Values:
    uncertainty = segmented.map("uncertainty", region)
    if uncertainty is None:
        return {}
    return {
        "aurc": calibration.aurc(uncertainty[brain], error[brain]),
        "auroc_error": calibration.auroc_error(uncertainty[brain], error[brain]),
    }


def _ged2(segmented: SegmentedCase, region: str, raters: Sequence[Mask]) -> float | None:
    """Mean over the axial slices in which a rater marked the region; None without members or such slices."""
    members = [member > THRESHOLD for member in segmented.members(region)]
    if not members:
        return None
    axial = next(axis for axis, towards in enumerate(axes_of(segmented.mask.affine)) if towards in "SI")
    of_slices = diversity.ged2_of_slices(
        np.stack([np.moveaxis(member, axial, 0) for member in members]),
        np.stack([np.moveaxis(rater, axial, 0) for rater in raters]),
    )
    values = [value for _, value in of_slices]
    return float(np.mean(values)) if values else None


def _cases_to_measure(manifest: Manifest, predictions: Path, split: str | None) -> list[Case]:
    """The cases of the split, or of every split that has predictions. Raises: UsageError, ManifestError."""
    if split is not None and split not in SPLITS:
        raise UsageError(f"`{split}` is no split", fix=f"use one of {', '.join(SPLITS)}")
    begun = [case for case in manifest.cases if (predictions / case.name).is_dir()]
    if not begun:
        raise UsageError(
            f"no case of {manifest.file} has a folder in {predictions.name}",
            fix="run `medseg-diff segment` on this table, or check --predictions and --data",
        )
    splits = {case.split for case in begun} if split is None else {split}
    cases = [case for case in manifest.cases if case.split in splits]
    if not cases:
        raise ManifestError(f"no case has split {split}", fix="choose another --split", file=manifest.file)
    unfinished = [case.name for case in cases if not all((predictions / case.name / file).is_file() for file in NEEDED)]
    if unfinished:
        raise UsageError(
            f"{len(unfinished)} of {len(cases)} cases have no complete prediction: {_listed(unfinished)}",
            fix="run `medseg-diff segment` again (it continues), or choose --split",
        )
    unlabelled = [case.name for case in cases if case.seg is None and not case.raters]
    if unlabelled:
        raise ManifestError(
            f"{len(unlabelled)} of {len(cases)} cases have no reference: {_listed(unlabelled)}",
            fix="add a column seg, or drop the rows",
            file=manifest.file,
        )
    return cases


def _listed(names: Sequence[str]) -> str:
    hidden = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "")


def _name_of(manifest: Manifest, cases: Sequence[Case]) -> str:
    """What the numbers are about; made-up brains are never passed off as patients."""
    made_up = is_phantom_folder(manifest.root) or all(case.name.startswith("phantom_") for case in cases)
    return "phantom" if made_up else Path(manifest.file).stem


def _summaries(measured: Sequence[MeasuredCase]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, mean with interval) for every measure of every region; a value is null where nothing could be measured."""
    regions = list(dict.fromkeys(region for each in measured for region in each.regions))
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


def _write_per_case(path: Path, measured: Sequence[MeasuredCase]) -> None:
    """One row a case and region; an empty cell is an undefined value."""
    rows = [
        [each.case.name, each.case.patient, each.case.split, region, _rounded(each.reference_ml[region])]
        + [_rounded(values.get(name)) for name in MEASURES]
        for each in measured
        for region, values in each.regions.items()
    ]
    files.write_table(path, ["case", "patient", "split", "region", "reference_ml", *MEASURES], rows)


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"
