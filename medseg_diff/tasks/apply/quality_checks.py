"""Was the way back to be trusted? What every anomaly map is checked for, and the warnings where it fails."""

from typing import Any

import numpy as np

from medseg_diff.tasks.apply.anomaly_volume import HealedVolume
from medseg_diff.tasks.apply.healer import CALLED_HEALTHY, Healer

MOST_FALSE_ALARMS = 0.3  # share of healthy slices that a classifier may call diseased
LARGEST_DRIFT = 2.0  # times what healthy brains drifted in the calibration
HIGHEST_LEVEL = 1.5  # times the floor at which a whole scan may lie


def guards_of(volume: HealedVolume, healer: Healer) -> tuple[dict[str, Any], list[str]]:
    """What case.json says of the healing of one volume, and what a person must be warned of.

    `round_trip`: relative error of a few slices at scale 0, against the limit of the calibration; `p_healthy`: of the
    slices that the classifier calls diseased, before, at L and after; `drift`: mean raw score of the slices that it calls
    healthy; `classifier`: how well it does on validation slices, and how many healthy ones it called diseased.
    """
    known = healer.calibration if healer.is_calibrated else None
    sick = volume.before < CALLED_HEALTHY
    trip = _round_trip(volume, known.round_trip_limit if known else None)
    rise = _rise(volume, sick)
    drift = _drift(volume, ~sick, known.drift if known else None)
    facts = healer.calibration.facts if healer.calibration else {"classifier": {}}
    guards = {
        "round_trip": trip,
        "p_healthy": rise,
        "drift": drift,
        "classifier": {name: facts["classifier"].get(name) for name in ("balanced_accuracy", "auroc")}
        | {"healthy_called_diseased": facts.get("called_diseased")},
    }
    warnings = doubts_about(healer)
    if trip["within"] is False:
        warnings.append(
            f"some slices came back at scale 0 with an error of {trip['error']:.3f}; limit {trip['limit']:.3f}"
        )
    if rise["rose"] is False:
        warnings.append(
            f"p(healthy) did not rise on the way back: {rise['before']:.2f} before, {rise['after']:.2f} after"
        )
    if drift["within"] is False:
        warnings.append(
            f"slices that look healthy changed by {drift['score']:.3f} on average, healthy brains by "
            f"{drift['healthy']:.3f}: the map shows more than anomalies"
        )
    return guards, warnings


def doubts_about_level(level: float) -> list[str]:
    """The warning where a whole scan came back much more changed than healthy brains do."""
    if level <= HIGHEST_LEVEL:
        return []
    return [
        f"the whole scan changed {level:.1f} times as much as healthy brains did: it is unlike what the model has learned, "
        "and its map was scaled down by as much"
    ]


def doubts_about(healer: Healer) -> list[str]:
    """The warnings that are true of every scan that this model maps."""
    facts = healer.calibration.facts if healer.calibration else {}
    alarms, doubts = facts.get("called_diseased"), []
    if not healer.is_calibrated:
        doubts.append("depth, steps or scale are not those of the calibration: no floor was taken off the map")
    if alarms is not None and alarms > MOST_FALSE_ALARMS:
        doubts.append(
            f"the classifier calls {alarms:.0%} of healthy slices diseased: it may know where lesions lie, not how they look"
        )
    return doubts


def _round_trip(volume: HealedVolume, limit: float | None) -> dict[str, Any]:
    error = volume.round_trip
    within = None if error is None or limit is None else error <= limit
    return {"error": _rounded(error), "limit": limit, "within": within}


def _rise(volume: HealedVolume, sick: np.ndarray) -> dict[str, Any]:
    """Means over the slices that are called diseased; None where there is none."""
    count = int(sick.sum())
    if not count:
        return {"slices": 0, "before": None, "at_depth": None, "after": None, "share_rising": None, "rose": None}
    before, at_depth, after = volume.before[sick], volume.believed[sick, 0], volume.believed[sick, -1]
    return {
        "slices": count,
        "before": _rounded(before.mean()),
        "at_depth": _rounded(at_depth.mean()),
        "after": _rounded(after.mean()),
        "share_rising": _rounded((after > before).mean()),
        "rose": bool(after.mean() > before.mean() and (after > before).mean() > 0.5),
    }


def _drift(volume: HealedVolume, well: np.ndarray, healthy: float | None) -> dict[str, Any]:
    """Mean over the slices that are called healthy; None where there is none."""
    score = float(volume.drift[well].mean()) if well.any() else None
    within = None if score is None or healthy is None else score <= LARGEST_DRIFT * healthy
    return {"slices": int(well.sum()), "score": _rounded(score), "healthy": healthy, "within": within}


def _rounded(value: float | np.floating | None) -> float | None:
    return None if value is None else round(float(value), 5)
