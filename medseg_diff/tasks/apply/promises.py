"""What a segmentation model can promise of a new patient, by what patients that it never saw have shown; and in words."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_diff.errors import UsageError
from medseg_diff.methods.components import Findings
from medseg_diff.methods.plan import Plan
from medseg_diff.metrics import conformal, presence
from medseg_diff.recipes.calibration import OutOfFold, SegmentationCalibration
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.tasks.options import EnsembleOptions

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Promises:
    """`measured` of each region, nothing where it was not, or on samples unlike those of now; `other_masks`: it was with
    masks made otherwise, so that nothing is known of volumes. `reason`: in words, why something is not promised that was
    measured. Intervals are of the `level`; `guaranteed` thresholds make the masks that miss no more than was asked."""

    measured: Mapping[str, OutOfFold]
    other_masks: bool
    reason: str
    level: float
    guaranteed: Mapping[str, float]

    def volume(self, region: str, mask_ml: float, probability: Floats, voxel_ml: float) -> dict[str, Any]:
        """What case.json says of a volume: the mask's; the interval that the true one lies in with probability `level`, how
        and on how many patients that was measured; and the same at the usual levels."""
        errors = () if self.other_masks else self.measured[region].volume_errors
        uncertainty = conformal.volume_uncertainty(probability, voxel_ml)

        def interval(level: float) -> dict[str, float | None]:
            found = conformal.volume_interval(mask_ml, uncertainty, errors, level)
            if found is None:
                return {"low": None, "high": None, "level": None}
            return {"low": round(found.low, 3), "high": round(found.high, 3), "level": level}

        asked, usual = interval(self.level), [interval(level) for level in conformal.LEVELS]
        return {
            "mask": round(mask_ml, 3),
            **asked,
            "method": "cross-conformal" if asked["level"] else None,
            "calibrated_on": len(errors),
            "intervals": [each for each in usual if each["level"]],
        }

    def presence(self, region: str, probability: Floats, voxel_ml: float) -> dict[str, Any]:
        """What case.json says of there being a lesion: the score and, where enough patients of both kinds were measured, a
        probability, and those of the two trials that it lies between."""
        known = self.measured[region].presence
        score = presence.score(probability, voxel_ml)
        said = presence.presence(score, known.diseased, known.healthy)
        numbers = dict.fromkeys(presence.Presence._fields) if said is None else said._asdict()
        rounded = {name: None if value is None else round(value, 4) for name, value in numbers.items()}
        measured = {"diseased": len(known.diseased), "healthy": len(known.healthy)}
        return {"score": score, **rounded, "calibrated_on": measured}

    def in_words(self) -> str:
        """What the intervals of volumes are worth."""
        patients = min(len(each.volume_errors) for each in self.measured.values())
        needed = conformal.fewest_patients(self.level)
        if not self.reason and patients >= needed:
            return f"volumes with {percent(self.level)} intervals, measured on {patients} patients new to their models"
        measured = f"{patients} patients are measured" if patients else "no patient is measured: train with --folds"
        why = self.reason or f"{percent(self.level)} needs {needed} patients, {measured}"
        return f"volumes without an interval: {why}; the range of the members guarantees nothing"


def promises_of(
    calibration: SegmentationCalibration | None,
    recipe: SegmentationRecipe,
    plan: Plan,
    findings: Findings,
    ensemble: EnsembleOptions,
    *,
    models: int,
    name: str,
) -> Promises:
    """What a run, or a study of so many models, called `name`, can promise with such samples and findings.

    Raises: UsageError for a level or a share that is none, and where too few patients were measured to guarantee it.
    """
    if not 0 < ensemble.level < 1:
        raise UsageError(f"level {ensemble.level:g} is out of range", fix="use one between 0 and 1, such as 0.9")
    if ensemble.guarantee is not None and not 0 < ensemble.guarantee < 1:
        raise UsageError(
            f"fnr={ensemble.guarantee:g} is out of range", fix="use a share between 0 and 1, such as fnr=0.1"
        )
    known = calibration.regions if calibration else {}
    measured = {each: known[each].out_of_fold if each in known else OutOfFold() for each in recipe.regions}
    reason, other_masks = "", _masks_of(findings) != _masks_of(recipe.findings)
    if any(each.volume_errors for each in measured.values()):
        reason = _other_samples(plan, recipe.plan(), models)
        if ensemble.start_from is not None:
            reason = "no measurements exist for samples that start from given masks"
        if reason:
            measured = dict.fromkeys(recipe.regions, OutOfFold())
        elif other_masks:
            reason = f"no measurements exist for masks made by {findings.fusion}"
    promises = Promises(measured, other_masks, reason, ensemble.level, {})
    if ensemble.guarantee is None:
        return promises
    return replace(promises, guaranteed=_guaranteed(promises, ensemble.guarantee, name))


def _masks_of(findings: Findings) -> tuple[Any, Any]:
    return findings.fusion, findings.threshold


def _other_samples(plan: Plan, measured: Plan, models: int) -> str:
    """What tells the samples from those that were measured, in words; empty where nothing does that matters."""
    if (plan.times, plan.shared_noise) != (measured.times, measured.shared_noise):
        return "no measurements exist for these steps or this noise"
    if plan.screen is not None:
        return "no measurements exist for samples with screened-out slices"
    if models * plan.members < measured.members:
        return f"{measured.members} samples were measured, but {models * plan.members} are drawn"
    same_rule = plan.tolerance is not None and measured.tolerance is not None and plan.tolerance <= measured.tolerance
    if models * plan.stops[0] < measured.members and not same_rule:
        fewest = models * plan.stops[0]
        return f"{measured.members} samples were measured, but as few as {fewest} may be drawn of a case that settles"
    return ""


def _guaranteed(promises: Promises, risk: float, name: str) -> dict[str, float]:
    """Where each region is cut for its mask to miss at most that share of a lesion. Raises: UsageError."""
    thresholds = {}
    for region, known in promises.measured.items():
        threshold = conformal.threshold_of_risk(known.missed, known.lesions, risk) if known.lesions else None
        if threshold is None:
            found = f"{name} cannot promise fnr={risk:g} for {region}: "
            if promises.reason and not known.lesions:
                raise UsageError(found + promises.reason, fix="draw the samples that its recipe draws")
            raise UsageError(
                f"{found}measured on {known.lesions} patients with a lesion",
                fix="train a study (--folds) on more patients, or ask for a larger share",
            )
        thresholds[region] = threshold
    return thresholds


def volume_in_words(volume: Mapping[str, Any], lesion_presence: Mapping[str, Any], *, applies: bool) -> str:
    """`45.3 ml, with 90% between 38.1 and 53.9; a lesion with probability 0.98`, or that nothing is known. `applies`: the
    scan is like those of the patients that it was measured on."""
    words, known = f"{volume['mask']:.1f} ml", lesion_presence["probability"]
    if volume["level"]:
        words += f", with {percent(volume['level'])} between {volume['low']:.1f} and {volume['high']:.1f}"
    else:
        low, high = (volume["members"][end] for end in ("low", "high"))
        words += (
            f"; its members range from {low:.1f} to {high:.1f}; not calibrated ({volume['calibrated_on']} patients)"
        )
    if known is not None:
        words += f"; a lesion with probability {known:.2f}"
    promised = volume["level"] or known is not None
    return words if applies or not promised else f"{words}; but that was measured on scans unlike this one"


def percent(level: float) -> str:
    """`97.5%`."""
    return f"{100 * level:g}%"
