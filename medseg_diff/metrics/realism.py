"""How like the real ones are synthetic images, and how unlike each other? Measures of two sets of features.

Fréchet distance: Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017, arXiv 1706.08500. Precision and recall:
Kynkäänniemi et al., Improved Precision and Recall Metric, 2019, arXiv 1904.06991. MMD: Bińkowski et al., Demystifying MMD
GANs, 2018, arXiv 1801.01401. Places: Nash et al., Generating Images with Sparse Representations, 2021, arXiv 2103.03841.
Score: Salimans et al., Improved Techniques for Training GANs, 2016, arXiv 1606.03498. Features are whoever's: figures of
different networks cannot be compared.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating]  # [N, F], an image a row
NEIGHBOURS = 3  # of precision and recall, as in the paper
GROUPS = 20  # that a jackknife leaves out in turn
SIGMAS = 1.96  # to either side of 95 %
ROUNDING = 1e-12  # of the variances: less is none
SPLITS = 20  # random halves that a floor is the mean of


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def frechet_distance(ours: Features, theirs: Features) -> float:
    """|m - m'|² + Tr(C + C' - 2 (C C')^½) of mean and covariance of features [N, F] and [M, F], in float64.

    It falls with the number of images, also between two real sets: read it beside `frechet_floor`.
    """
    a, b = (np.asarray(each, dtype=np.float64) for each in (ours, theirs))
    away, beside = a - a.mean(axis=0), b - b.mean(axis=0)
    ours_by, theirs_by = max(len(a) - 1, 1), max(len(b) - 1, 1)
    # The eigenvalues of C C' are the squared singular values of away · besideᵀ: exact for fewer images than features, too.
    # Triangular factors have the same ones, and no more rows than there are features.
    one, other = (np.asarray(np.linalg.qr(each, mode="r")) for each in (away, beside))
    cross = np.linalg.svd(one @ other.T, compute_uv=False).sum() / np.sqrt(ours_by * theirs_by)
    traces = (away**2).sum() / ours_by + (beside**2).sum() / theirs_by
    spread = traces - 2 * cross
    if spread < ROUNDING * traces:  # never below 0, and exactly 0 of equal sets
        spread = 0.0
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + spread)


def frechet_floor(real: Features, *, count: int | None = None, seed: int = 0) -> float:
    """The distance between two sets of `count` (default: half) real images each, drawn without repetition; mean of 20."""
    half = len(real) // 2 if count is None else min(count, len(real) // 2)
    draw, found = np.random.default_rng(seed), []
    for _ in range(SPLITS):
        order = draw.permutation(len(real))
        found.append(frechet_distance(real[order[:half]], real[order[half : 2 * half]]))
    return float(np.mean(found))


class Beside(NamedTuple):
    """`distance` of synthetic to real images and `floor` between real ones, of sets of `images` each: means over random
    draws. Of synthetic images that could be real, the two are alike."""

    distance: float
    floor: float
    images: int


def frechet_beside_floor(synthetic: Features, real: Features, *, seed: int = 0) -> Beside:
    """The Fréchet distance and its floor at the same number of images, which is the only one at which they compare: half of
    the real ones, or as many as the synthetic ones where those are fewer."""
    count, draw = min(len(synthetic), len(real) // 2), np.random.default_rng(seed)
    found = []
    for _ in range(SPLITS):
        chosen = (draw.permutation(len(each))[:count] for each in (synthetic, real))
        found.append(frechet_distance(*(each[some] for each, some in zip((synthetic, real), chosen, strict=True))))
    return Beside(float(np.mean(found)), frechet_floor(real, count=count, seed=seed), count)


def by_place(maps: npt.NDArray[np.floating], cells: int = 2) -> Features:
    """Features that know where they are: the mean of maps [N, F, *R] in `cells` parts of every axis, [N, F cells^d]."""
    for axis in range(2, maps.ndim):
        parts = np.array_split(np.asarray(maps, dtype=np.float64), min(cells, maps.shape[axis]), axis=axis)
        maps = np.stack([part.mean(axis=axis) for part in parts], axis=axis)
    return maps.reshape(len(maps), -1)


def jackknife(
    measure: Callable[[Features, Features], float], ours: Features, theirs: Features, *, corrected: bool = False
) -> Estimate:
    """The measure of both sets, its interval from leaving out one of 20 parts of each in turn.

    A bootstrap would draw images twice, which a distance takes for likeness. The interval is of what so many images give on
    average. `corrected`: of what endlessly many would give, by Quenouille's correction of the bias that falls with 1 / N
    (Notes on Bias in Estimation, 1956); it may then be below 0. The Fréchet distance of 100 images and 32 features is mostly
    bias: without the correction its interval never holds the true distance.
    """
    value, bias, variance = measure(ours, theirs), 0.0, 0.0
    for number, whole in enumerate((ours, theirs)):
        groups = np.array_split(np.arange(len(whole)), min(GROUPS, len(whole)))
        left = []
        for group in groups:
            rest = np.delete(whole, group, axis=0)
            left.append(measure(rest, theirs) if number == 0 else measure(ours, rest))
        bias += (len(groups) - 1) * (float(np.mean(left)) - value)
        variance += (len(groups) - 1) * float(np.var(left))
    centre, reach = value - bias if corrected else value, SIGMAS * variance**0.5
    return Estimate(centre, centre - reach, centre + reach)


class Coverage(NamedTuple):
    """`precision`: the share of synthetic images that could be real; `recall`: of real ones that could be synthetic."""

    precision: float
    recall: float


def precision_recall(synthetic: Features, real: Features, *, neighbours: int = NEIGHBOURS) -> Coverage:
    """An image could be of a set where it lies no farther from one of it than that one's k-th nearest neighbour there."""
    return Coverage(_covered(synthetic, real, neighbours), _covered(real, synthetic, neighbours))


def _covered(images: Features, by: Features, neighbours: int) -> float:
    among = np.sort(distances(by, by), axis=1)  # each is its own nearest
    radius = among[:, min(neighbours, len(by) - 1)]
    return float((distances(images, by) <= radius).any(axis=1).mean())


def mmd(ours: Features, theirs: Features) -> float:
    """Maximum mean discrepancy, squared and unbiased, with the kernel (x·y / F + 1)³: about 0 for two sets of one kind."""
    a, b = (np.asarray(each, dtype=np.float64) for each in (ours, theirs))

    def kernel(x: Features, y: Features) -> Features:
        return (x @ y.T / x.shape[1] + 1) ** 3

    own, other = kernel(a, a), kernel(b, b)
    within = [(each.sum() - np.trace(each)) / (len(each) * (len(each) - 1)) for each in (own, other)]
    return float(sum(within) - 2 * kernel(a, b).mean())


def score(probabilities: npt.NDArray[np.floating]) -> float:
    """exp of the mean divergence of p(y | x) [N, K] from its mean, by any stated classifier: 1 … K, high where each image is
    sure and all differ. By Inception's classes it would be the Inception score; it is not."""
    p = np.asarray(probabilities, dtype=np.float64).clip(1e-12)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean()))


class Memory(NamedTuple):
    """Distances to the nearest image trained on: medians of `synthetic` and of other `real` images. `favoured`: the share of
    synthetic images that are nearer to one trained on than to any of equally many others; `copies`: the share whose nearest
    one trained on is nearer than half of the way to the nearest of the others."""

    synthetic: float
    real: float
    favoured: float
    copies: float


class Apart(NamedTuple):
    """Distances of N synthetic and K other real images from M trained on, and from each other: [N, M], [K, M], [N, K]."""

    trained: Features
    usual: Features
    held_out: Features

    @classmethod
    def of(cls, synthetic: Features, trained: Features, held_out: Features) -> "Apart":
        """Of images [N, F], [M, F] and [K, F]."""
        return cls(distances(synthetic, trained), distances(held_out, trained), distances(synthetic, held_out))


def memorised(apart: Apart, *, seed: int = 0) -> Memory:
    """Whether synthetic images are copies: of a model that learned none by heart half are `favoured`, none `copies`.

    Smooth images are near to everything, so that a distance by itself says little.
    """
    count = min(apart.usual.shape[1], len(apart.usual))
    some = np.random.default_rng(seed).permutation(apart.usual.shape[1])[:count]
    near, other = apart.trained[:, some].min(axis=1), apart.held_out[:, :count].min(axis=1)
    nearest, usual = (each.min(axis=1) for each in (apart.trained, apart.usual))
    favoured, copies = (near < other).mean(), (nearest < 0.5 * apart.held_out.min(axis=1)).mean()
    return Memory(float(np.median(nearest)), float(np.median(usual)), float(favoured), float(copies))


def distances(ours: Features, theirs: Features) -> Features:
    """Euclidean, [N, M]; from differences, not from squared lengths: that of a copy is exactly 0."""
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)))


def correlation(asked: npt.NDArray[np.floating], measured: npt.NDArray[np.floating]) -> Estimate:
    """Pearson's r of pairs [N], its interval by Fisher's z; NaN where one of them never varies or there are too few."""
    x, y = (np.asarray(each, dtype=np.float64) for each in (asked, measured))
    if len(x) < 4 or x.std() == 0 or y.std() == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    r = float(np.corrcoef(x, y)[0, 1].clip(-1, 1))
    z, reach = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), SIGMAS / np.sqrt(len(x) - 3)
    return Estimate(r, float(np.tanh(z - reach)), float(np.tanh(z + reach)))
