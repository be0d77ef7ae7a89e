"""Can the probability and the uncertainty be believed? ECE, reliability, risk–coverage.

Everything is exact and independent of the order of voxels: voxels of equal score are treated as one group, whose events
are spread evenly over it. That matters here, because most voxels of a brain have the same score, close to 0.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
BINS = 15


@dataclass(frozen=True)
class Tally:
    """Voxels grouped by score, ascending: `scores` [G], how many `voxels` [G] have each, and their `events` [G]."""

    scores: Floats
    voxels: Floats
    events: Floats

    @property
    def cumulative(self) -> tuple[Floats, Floats, Floats]:
        """Voxels, sum of their scores and events up to each group, each [G + 1] and starting at 0."""
        steps = (self.voxels, self.voxels * self.scores, self.events)
        voxels, scores, events = (np.concatenate([[0.0], np.cumsum(step)]) for step in steps)
        return voxels, scores, events


@dataclass(frozen=True)
class ReliabilityCurve:
    """Bins of equal mass: mean predicted `probability` and observed `frequency`, each [bins]."""

    probability: Floats
    frequency: Floats


def tally(scores: npt.ArrayLike, events: npt.ArrayLike) -> Tally:
    """Group voxels by score. `scores` real and `events` boolean, of one shape and not empty."""
    flat, marked = np.asarray(scores).ravel(), np.asarray(events).ravel()
    if marked.dtype != bool or flat.shape != marked.shape or flat.size == 0:
        raise ValueError(
            f"needs real scores and boolean events of one size, found {flat.shape} and {marked.dtype} {marked.shape}"
        )
    if not np.isfinite(flat).all():
        raise ValueError("scores must be finite")
    ordered, ordered_events = np.sort(flat), np.sort(flat[marked])
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # last place of each group
    groups = ordered[last]
    voxels = np.diff(last, prepend=-1)
    events_so_far = np.searchsorted(ordered_events, groups, side="right")
    return Tally(
        groups.astype(np.float64), voxels.astype(np.float64), np.diff(events_so_far, prepend=0).astype(np.float64)
    )


def reliability_curve(probability: npt.ArrayLike, reference: npt.ArrayLike, *, bins: int = BINS) -> ReliabilityCurve:
    """Mean probability against observed frequency in `bins` bins that hold equally many voxels.

    `probability` in [0, 1] and boolean `reference` have one shape; pass the voxels of the brain.
    """
    voxels, scores, events = tally(probability, reference).cumulative
    edges = np.linspace(0, voxels[-1], bins + 1)
    mass = voxels[-1] / bins
    return ReliabilityCurve(
        probability=np.diff(np.interp(edges, voxels, scores)) / mass,
        frequency=np.diff(np.interp(edges, voxels, events)) / mass,
    )


def ece(probability: npt.ArrayLike, reference: npt.ArrayLike, *, bins: int = BINS) -> float:
    """Expected calibration error: mean over bins of equal mass of |mean probability - frequency|.

    Naeini et al. 2015 with the equal-mass bins of Nixon et al. 2019, arXiv:1904.01685.
    """
    curve = reliability_curve(probability, reference, bins=bins)
    return float(np.abs(curve.probability - curve.frequency).mean())


def brier(probability: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Mean squared difference of probability and boolean reference (Brier 1950); 0 is best."""
    difference = np.asarray(probability, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return float(np.square(difference).mean())


@dataclass(frozen=True)
class Reliability:
    """Bins of equal width over [0, 1], each [bins]: how many `voxels`, the sum of their `probability`, and their `events`.

    Unlike bins of equal mass they add up over cases, and show the few voxels that are not close to 0.
    """

    voxels: Floats
    probability: Floats
    events: Floats

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(self.voxels + other.voxels, self.probability + other.probability, self.events + other.events)

    def as_dict(self) -> dict[str, list[float]]:
        """Mean probability and frequency of each bin that holds voxels, and how many it holds."""
        filled = self.voxels > 0
        voxels = self.voxels[filled]
        return {
            "probability": (self.probability[filled] / voxels).round(6).tolist(),
            "frequency": (self.events[filled] / voxels).round(6).tolist(),
            "voxels": voxels.astype(int).tolist(),
        }


def reliability(probability: npt.ArrayLike, reference: npt.ArrayLike, *, bins: int = BINS) -> Reliability:
    """Voxels of `probability` in [0, 1] and boolean `reference`, of one shape, counted in bins of equal width."""
    groups = tally(probability, reference)
    places = np.minimum((groups.scores * bins).astype(int), bins - 1)
    sums = (groups.voxels, groups.voxels * groups.scores, groups.events)
    voxels, total, events = (np.bincount(places, values, bins).astype(np.float64) for values in sums)
    return Reliability(voxels, total, events)


def aurc(uncertainty: npt.ArrayLike, error: npt.ArrayLike) -> float:
    """Area under the risk–coverage curve: error rate among the k most certain voxels, averaged over k = 1 … all.

    Geifman et al. 2019, arXiv:1805.08206. Lower is better; `error` (boolean) marks where the decision was wrong.
    """
    voxels, _, errors = tally(uncertainty, error).cumulative
    covered = np.arange(1.0, voxels[-1] + 1)
    return float((np.interp(covered, voxels, errors) / covered).mean())


def risk_coverage(uncertainty: npt.ArrayLike, error: npt.ArrayLike, *, coverage: npt.ArrayLike) -> Floats:
    """Error rate among the most certain share of the voxels, for each share in `coverage` (above 0, up to 1)."""
    voxels, _, errors = tally(uncertainty, error).cumulative
    covered = np.maximum(np.asarray(coverage, dtype=np.float64) * voxels[-1], 1.0)
    risk: Floats = np.interp(covered, voxels, errors) / covered
    return risk
