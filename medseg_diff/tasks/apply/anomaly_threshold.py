"""Where an anomaly map becomes a mask: the threshold stored with the model, Otsu's, a number, or one with a guarantee."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg_diff.errors import UsageError
from medseg_diff.methods.anomaly.normative import otsu
from medseg_diff.metrics import conformal
from medseg_diff.tasks.apply.anomaly_ensemble import AnomalyEnsemble
from medseg_diff.tasks.options import MapOptions, Threshold

IN_UNITS = "in units of the runs' own thresholds"  # the map of a study
USUAL_LEVEL = 0.9  # share of healthy brains that a guarantee is for


@dataclass(frozen=True)
class Cut:
    """Where a map becomes a mask: `value`, or, where it is None, each scan's own Otsu threshold; and how it was set."""

    asked_for: str | float
    value: float | None
    how: str

    @classmethod
    def asked(cls, ensemble: AnomalyEnsemble, threshold: Threshold | None) -> "Cut":
        """From the command line, else from the recipe.

        Raises: UsageError where the stored threshold is asked for and there is none for these settings.
        """
        chosen, study = ensemble.recipe.findings.threshold if threshold is None else threshold, ensemble.is_study
        if chosen == "otsu":
            return cls("otsu", None, "Otsu's threshold of this scan's brain")
        if not isinstance(chosen, str):
            if not 0 <= chosen < np.inf:
                raise UsageError(
                    f"threshold {chosen} is out of range", fix="use healthy, otsu or a number of 0 or more"
                )
            if study and threshold is None:
                name = ensemble.facts["model"]
                found = f"the recipe's threshold of {chosen:g} is for one run's scores, but {name} is a study"
                raise UsageError(found, fix="use --threshold 1 (in units of its runs' own), healthy or otsu")
            return cls(float(chosen), float(chosen), f"given, {IN_UNITS}" if study else "given")
        if chosen != "healthy":
            raise UsageError(f"unknown threshold `{chosen}`", fix="use healthy, otsu or a number of 0 or more")
        (system, *_), other = ensemble.systems, "use --threshold otsu, or a number"
        known = system.calibration
        if known is None or known.own is None:
            raise UsageError(f"the model has no threshold from healthy brains ({known and known.source})", fix=other)
        if not system.calibrated:
            found = "the stored threshold was measured with other settings of engine or findings"
            raise UsageError(found, fix=f"{other}, or train with these settings")
        share, whose = known.findings.false_positive_rate, f"the voxels of {known.source}"
        if study:
            whose = "the healthy voxels that it rests on"
        how = f"{share:.2%} of {whose} lie above"
        if known.widened != 1:
            how = f"{known.widened:g} times the score that {share:.2%} of {whose} exceed"
        return cls("healthy", 1.0, f"{IN_UNITS}, each: {how}") if study else cls("healthy", known.own.threshold, how)

    @classmethod
    def guaranteed(cls, ensemble: AnomalyEnsemble, maps: MapOptions) -> "Cut":
        """Of which a healthy brain has no more than so much above it. Raises: UsageError where too few were measured."""
        volume_ml, level = maps.guarantee, USUAL_LEVEL if maps.level is None else maps.level
        if volume_ml is None:
            raise UsageError("--level belongs to --guarantee", fix="add --guarantee fp_ml=1, or leave it out")
        if maps.threshold is not None:
            raise UsageError("--guarantee and --threshold both set the threshold", fix="leave one of them out")
        if ensemble.is_study:
            found = f"--guarantee was measured on the maps of each run alone, but {ensemble.facts['model']} is a study"
            raise UsageError(found, fix="name one of its runs with --model, or use --threshold")
        if not 0 < level < 1:
            raise UsageError(f"level {level:g} is out of range", fix="use one between 0 and 1, such as 0.9")
        least, needed = conformal.FALSE_POSITIVES_ML[0], conformal.fewest_patients(level)
        if not volume_ml >= least:
            raise UsageError(f"no threshold was measured for fp_ml={volume_ml:g}", fix=f"ask for {least:g} ml or more")
        known = ensemble.systems[0].calibrated
        brains = known.own.thresholds_by_volume if known and known.own else ()
        value = conformal.threshold_of_volume(brains, volume_ml, level)
        if value is None:
            found = f"the model cannot promise fp_ml={volume_ml:g} in {100 * level:g}% of healthy brains"
            raise UsageError(
                f"{found}: {needed} are needed, {len(brains)} are measured with these settings",
                fix=f"train with more healthy brains of split val and validation.calibration_cases={2 * needed}",
            )
        how = f"{100 * level:g}% of healthy brains have at most {volume_ml:g} ml above it, measured on {len(brains)}"
        return cls(f"fp_ml={volume_ml:g} at {level:g}", max(value, 0.0), how)

    def of(self, values: npt.NDArray[np.float32]) -> float:
        """The threshold for a brain whose voxels score `values` [N]."""
        return otsu(values) if self.value is None else self.value
