"""What the nearest neighbours of synthetic images say: how densely real images lie around them, and whether they are copies.

Density and coverage: Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models, 2020, arXiv 2002.09797.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_diff.metrics.realism import NEIGHBOURS, Apart, Features, distances

PERCENT = 5.0  # of other real images are as near to one trained on as a synthetic one that counts as too near
RESAMPLES = 2000
LEVEL = 0.95


class DensityCoverage(NamedTuple):
    """`density`: how many balls around real images a synthetic one lies in, of the number expected: about 1 for sets of one
    kind, more where synthetic images crowd where real ones do. `coverage`: the share of real images with a synthetic one in
    their ball."""

    density: float
    coverage: float


class Nearness(NamedTuple):
    """`share` of synthetic images nearer to one trained on than `threshold`, with its 95 % interval; PERCENT of other real
    ones are. `nearest` [N]: of each synthetic image its nearest one trained on, `distance` [N]: how far that is."""

    share: float
    low: float
    high: float
    threshold: float
    nearest: npt.NDArray[np.intp]
    distance: npt.NDArray[np.float64]


def density_coverage(synthetic: Features, real: Features, *, neighbours: int = NEIGHBOURS) -> DensityCoverage:
    """A ball around a real image reaches to its k-th nearest real neighbour (Naeem et al., equations 4 and 5).

    A synthetic outlier widens no ball, as it does in `recall`; coverage of sets of one kind and size is 1 - 2^-k on average.
    Raises: ValueError for no more real images than neighbours.
    """
    if len(real) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more real images than that, found {len(real)}")
    among = distances(real, real)
    np.fill_diagonal(among, np.inf)
    radius = np.sort(among, axis=1)[:, neighbours - 1]
    apart = distances(real, synthetic)
    inside = apart <= radius[:, None]
    return DensityCoverage(float(inside.sum() / (neighbours * len(synthetic))), float(inside.any(axis=1).mean()))


def nearness(apart: Apart, *, percent: float = PERCENT, seed: int = 0) -> Nearness:
    """Whether synthetic images lie nearer to those trained on than other real images do: copies do, and so do blurred or
    average ones, which are near to everything; look at the pairs before calling them copies.

    The interval is a bootstrap over synthetic and held-out images, which moves the threshold too. It is wide where few real
    images are held out: of twenty, one lies below the 5th percentile.
    """
    nearest, distance, usual = apart.trained.argmin(axis=1), apart.trained.min(axis=1), apart.usual.min(axis=1)
    draw = np.random.default_rng(seed)
    shares = []
    for _ in range(RESAMPLES):
        theirs = usual[draw.integers(len(usual), size=len(usual))]
        ours = distance[draw.integers(len(distance), size=len(distance))]
        shares.append((ours < np.percentile(theirs, percent)).mean())
    threshold = float(np.percentile(usual, percent))
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Nearness(float((distance < threshold).mean()), float(low), float(high), threshold, nearest, distance)
