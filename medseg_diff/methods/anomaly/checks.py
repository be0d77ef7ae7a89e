"""Quality checks of engines with a classifier: what it says of a scan before and after, and of healthy brains."""

from collections.abc import Mapping

import torch
from torch import Tensor

from medseg_diff.diffusion import Condition
from medseg_diff.diffusion.denoiser import Network
from medseg_diff.methods.anomaly.engine import Check, Facts
from medseg_diff.networks.noisy_classifier import HEALTHY

P_HEALTHY = {"before": "p_healthy_before", "at_depth": "p_healthy_noisy", "after": "p_healthy_after"}  # names of facts
CALLED_HEALTHY = 0.5  # p(healthy) of a slice above which the classifier calls it so
LARGEST_DRIFT = 2.0  # times what healthy slices scored in the calibration, where every voxel scores something
MOST_FALSE_ALARMS = 0.3  # share of healthy slices that a classifier may call diseased


def probability(classifier: Network, x_t: Tensor, t: int, label: int = HEALTHY) -> Tensor:
    """p(label | x_t), float32 [B]; at t = 0 the classifier is asked at t = 1, the first that it has learned."""
    with torch.no_grad():
        logits = classifier(x_t, torch.full((1,), max(t, 1), device=x_t.device), Condition())
    return logits.float().softmax(dim=1)[:, label]


def reference_of(facts: Facts) -> dict[str, float]:
    """What `checks_of` has to know of healthy slices."""
    before = facts["p_healthy_before"]
    return {
        "p_healthy": round(float(before.mean()), 4),
        "called_diseased": round(float((before < CALLED_HEALTHY).float().mean()), 4),
        "drift": round(float(facts["mean_score"].mean()), 5),
    }


def checks_of(facts: Facts, reference: Mapping[str, float], *, largest_drift: float = LARGEST_DRIFT) -> list[Check]:
    """Did p(healthy) rise in the slices that the classifier calls diseased, and did the others stay as they are?"""
    diseased = facts["p_healthy_before"] < CALLED_HEALTHY
    drift = _drift(facts, ~diseased, reference.get("drift"), largest_drift)
    return [_rise(facts, diseased), drift, _alarms(reference)]


def _rise(facts: Facts, diseased: Tensor) -> Check:
    """Means over the slices that are called diseased; None where there is none."""
    names = {name: fact for name, fact in P_HEALTHY.items() if fact in facts}
    if not diseased.any():
        return Check("p_healthy", {"slices": 0} | dict.fromkeys((*names, "share_rising", "rose", "still_diseased")))
    values = {name: facts[fact][diseased] for name, fact in names.items()}
    means = {name: round(float(value.mean()), 5) for name, value in values.items()}
    share = float((values["after"] > values["before"]).float().mean())
    rose = bool(values["after"].mean() > values["before"].mean() and share > 0.5)
    left, called = int((values["after"] < CALLED_HEALTHY).sum()), int(diseased.sum())
    measured = {"slices": called, **means, "share_rising": round(share, 5), "rose": rose, "still_diseased": left}
    warning = None
    if not rose:
        warning = f"p(healthy) did not rise: {means['before']:.2f} before, {means['after']:.2f} after"
    elif left > called / 2:
        warning = f"{left} of {called} slices that are called diseased are still called so after it: it had no effect"
    return Check("p_healthy", measured, warning)


def _drift(facts: Facts, healthy: Tensor, usual: float | None, largest: float) -> Check:
    """Mean score over the slices that are called healthy; None where there is none."""
    score = float(facts["mean_score"][healthy].mean()) if healthy.any() else None
    within = None if score is None or usual is None else score <= largest * usual
    measured = {"slices": int(healthy.sum()), "score": score and round(score, 5), "healthy": usual, "within": within}
    if within is not False:
        return Check("drift", measured)
    warning = f"slices that look healthy changed by {score:.3f} on average, healthy brains by {usual:.3f}"
    return Check("drift", measured, f"{warning}: the map shows more than anomalies")


def _alarms(reference: Mapping[str, float]) -> Check:
    alarms = reference.get("called_diseased")
    warning = None
    if alarms is not None and alarms > MOST_FALSE_ALARMS:
        doubt = "it may know where lesions are, not what they look like"
        warning = f"the classifier calls {alarms:.0%} of healthy slices diseased: {doubt}"
    return Check("classifier", {"healthy_called_diseased": alarms}, warning)
