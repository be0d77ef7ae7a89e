"""Is an anomaly map to be trusted? The engine's own checks of a volume, and those that hold for every engine."""

from collections.abc import Sequence
from typing import Any

from medseg_diff.methods.anomaly.checks import CALLED_HEALTHY
from medseg_diff.methods.anomaly.engine import Check
from medseg_diff.tasks.apply.anomaly_ensemble import AnomalyEnsemble
from medseg_diff.tasks.apply.anomaly_volume import AnomalySystem, AnomalyVolume

HIGHEST_GAIN = 1.5  # times the normative mean at which a whole scan may lie
FEWEST_CALLED = 0.1  # share of a scan's slices that are called diseased, above which something should be marked
OFTEN = 2.0  # the same, as a multiple of the share of healthy slices that are called so


def checks_of_runs(
    ensemble: AnomalyEnsemble, volumes: Sequence[AnomalyVolume], gains: Sequence[float], *, lesions: int
) -> tuple[dict[str, Any], list[str]]:
    """What case.json says of the quality of a map, of a study each run's checks by the run's name; and the warnings, which
    say whose they are."""
    known = zip(volumes, ensemble.systems, gains, strict=True)
    checks = [quality_checks(volume, system, gain, lesions=lesions) for volume, system, gain in known]
    values = [{check.name: check.values for check in each} for each in checks]
    warnings = [[check.warning for check in each if check.warning] for each in checks]
    if not ensemble.is_study:
        return values[0], warnings[0]
    names = [system.facts["model"] for system in ensemble.systems]
    said: dict[str, list[str]] = {}
    for name, each in zip(names, warnings, strict=True):
        for warning in each:
            said.setdefault(warning, []).append(name)
    by_run = dict(zip(names, values, strict=True))
    return by_run, [f"{', '.join(runs)}: {warning}" for warning, runs in said.items()]


def quality_checks(volume: AnomalyVolume, system: AnomalySystem, gain: float, *, lesions: int) -> list[Check]:
    """What case.json says of the quality of one volume's map, in which so many lesions are marked, and what a person must be
    warned of."""
    reference = system.calibrated.reference if system.calibrated else {}
    marked = _marked(volume, reference.get("called_diseased", 0.0), lesions)
    of_engine = system.engine.checks(volume.facts, reference)
    return [_calibration(system), _round_trip(volume, system), _gain(gain), *marked, *of_engine]


def _calibration(system: AnomalySystem) -> Check:
    known = system.calibrated
    why = "settings are not those of the calibration" if known is None else "the calibration found nothing healthy"
    holds = known is not None and known.own is not None
    return Check(
        "calibration", {"holds": holds}, None if holds else f"{why}: no normative mean was subtracted from the map"
    )


def _round_trip(volume: AnomalyVolume, system: AnomalySystem) -> Check:
    """Relative error of a few slices that came back without any push, against the limit of the calibration."""
    error, limit = volume.round_trip, system.calibrated.round_trip.limit if system.calibrated else None
    within = None if error is None or limit is None else error <= limit
    measured = {"error": None if error is None else round(error, 5), "limit": limit, "within": within}
    warning = (
        f"some slices were reconstructed without guidance with an error of {error:.3f}; limit {limit:.3f}"
        if within is False
        else None
    )
    return Check("round_trip", measured, warning)


def _gain(gain: float) -> Check:
    """Whether the whole scan came back much more changed than healthy brains do."""
    warning = (
        f"the whole scan changed {gain:.1f} times as much as healthy brains did: it is unlike the training scans, "
        "and its map was scaled down by that factor"
    )
    return Check("intensity_gain", {"gain": round(gain, 4)}, warning if gain > HIGHEST_GAIN else None)


def _marked(volume: AnomalyVolume, usual: float, lesions: int) -> list[Check]:
    """Whether nothing is marked in a scan that a classifier calls diseased in far more slices than the `usual` share of
    healthy ones; no check where there is no classifier."""
    if "p_healthy_before" not in volume.facts:
        return []
    diseased = volume.facts["p_healthy_before"] < CALLED_HEALTHY
    called, slices = int(diseased.sum()), len(diseased)
    many = called > FEWEST_CALLED * slices and called > OFTEN * usual * slices
    warning = f"{called} of {slices} slices are called diseased, but nothing is marked: this is not an all-clear"
    measured = {"called_diseased": called, "lesions": lesions}
    return [Check("marked", measured, warning if many and not lesions else None)]
