"""Can the probability and the uncertainty be believed? ECE, Brier score, risk–coverage, AUROC of uncertainty for error.

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


def aurc(uncertainty: npt.ArrayLike, error: npt.ArrayLike) -> float:
    """Area under the risk–coverage curve: error rate among the k most certain voxels, averaged over k = 1 … all.

    Geifman et al. 2019, arXiv:1805.08206. Lower is better; `error` (boolean) marks where the decision was wrong.
    """
    voxels, _, errors = tally(uncertainty, error).cumulative
    covered = np.arange(1.0, voxels[-1] + 1)
    return float((np.interp(covered, voxels, errors) / covered).mean())


def auroc_error(uncertainty: npt.ArrayLike, error: npt.ArrayLike) -> float | None:
    """P(a wrong voxel is more uncertain than a right one), ties half: the AUROC of uncertainty as a detector of error.

    None where all voxels are right, or all wrong.
    """
    groups = tally(uncertainty, error)
    wrong, right = groups.events, groups.voxels - groups.events
    if not (wrong.any() and right.any()):
        return None
    right_below = np.cumsum(right) - right
    return float((wrong * (right_below + right / 2)).sum() / (wrong.sum() * right.sum()))
