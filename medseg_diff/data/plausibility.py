"""What no single file of a case shows: channels that do not look like what they are called, copies, masks that cannot be.

What fluid, tissue and contrast medium do to T1, T2 and FLAIR is looked for in the picture. Each pair of channels has a score
that is positive where the names fit and changes sign where the two are interchanged. Its margin lies beyond nearly all of
220 phantoms of as many scanners, so that it is unlikely to speak up by mistake.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_diff.data.brain import background_of
from medseg_diff.data.geometry import Volume
from medseg_diff.data.tables.case import Case
from medseg_diff.errors import ImageError

MOST_MARKED = 0.75  # share of a volume: more is no lesion, and no parcellation of a head
LARGEST_LESION = 0.5  # share of a brain
MOST_VOXELS = 400_000  # of the grid that is looked at
FEWEST_VOXELS = 2000  # of the brain in it
BRIGHT, FLUID, TAIL = 0.9, 0.85, 0.002  # ranks above which a voxel is bright, is fluid on T2; share of a tail

Ranks = npt.NDArray[np.float64]


class Brain(NamedTuple):
    """Some of a brain's voxels [N]: what each channel has there, and its ranks in (0, 1]; how deep they lie, as a rank."""

    values: Mapping[str, npt.NDArray[np.float32]]
    ranks: Mapping[str, Ranks]
    depth: Ranks


class Pair(NamedTuple):
    """Two channels, by what they are told apart, how far below zero the score means that they are interchanged, and why."""

    channels: tuple[str, str]
    score: Callable[[Brain, str, str], float | None]
    margin: float
    why: str


def implausible(channels: Sequence[str], image: npt.NDArray[np.float32], spacing_mm: npt.ArrayLike) -> list[str]:
    """A sentence for each two channels of image [C, X, Y, Z] that look interchanged. Only scans with a constant background,
    which are stripped of their skulls, are looked at: fat is bright everywhere."""
    asked = [pair for pair in PAIRS if set(pair.channels) <= set(channels)]
    brain = _brain(channels, image, spacing_mm) if asked else None
    if brain is None:
        return []
    scores = [(pair, pair.score(brain, *pair.channels)) for pair in asked]
    return [
        f"{' and '.join(pair.channels)} look interchanged: {pair.why}"
        for pair, score in scores
        if score is not None and score < -pair.margin
    ]


def unlike_backgrounds(channels: Sequence[str], image: npt.NDArray[np.float32]) -> list[str]:
    """A sentence where some channels of image [C, X, Y, Z] have a constant background and others have none."""
    bare = [name for name, channel in zip(channels, image, strict=True) if background_of(channel) is None]
    others = [name for name in channels if name not in bare]
    if not bare or not others:
        return []
    skulls = "is its skull stripped" if len(bare) == 1 else "are their skulls stripped"
    return [f"{', '.join(bare)}: no constant background, as {', '.join(others)} {_have(others)}: {skulls}?"]


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def doubtful(case: Case, volumes: dict[str, Volume]) -> list[str]:
    """What no single file shows: two channels of the same voxels, a reference that contradicts the table."""
    images = {name: volume.voxels for name, volume in volumes.items() if volume.voxels.dtype != np.int16}
    found = [
        f"{a} and {b} hold the same voxels"
        for a, b in itertools.combinations(images, 2)
        if np.array_equal(images[a][::7, ::7, ::7], images[b][::7, ::7, ::7]) and np.array_equal(images[a], images[b])
    ]
    masks = {name: volume.voxels for name, volume in volumes.items() if volume.voxels.dtype == np.int16}
    marked = {name: bool(voxels.any()) for name, voxels in masks.items()}
    found += [
        f"{name} marks {share:.0%} of the volume: is the background marked instead of the lesion?"
        for name, voxels in masks.items()
        if voxels.size > 1 and (share := np.count_nonzero(voxels) / voxels.size) > MOST_MARKED
    ]
    if case.label == "healthy":
        found += [
            f"{name} marks a lesion, but the table calls the case healthy" for name, any_ in marked.items() if any_
        ]
    else:
        found += [f"{name} is empty: no voxel is marked" for name, any_ in marked.items() if not any_]
    return found


def check_lesion(
    lesion: npt.NDArray[np.bool_], brain: npt.NDArray[np.bool_], labels: npt.NDArray[np.int16], case: Case, name: str
) -> None:
    """Raises: ImageError where what counts as a lesion in reference `name` takes more than half of the brain: labels of
    tissue, or of everything. All arrays are of one shape."""
    share = int((lesion & brain).sum()) / max(int(brain.sum()), 1)
    if share > LARGEST_LESION:
        named = ", ".join(map(str, np.unique(labels[lesion])[:8]))
        raise ImageError(
            f"marks {share:.0%} of the brain as lesion, with label {named}: no lesion is that large",
            fix="train with the labels of the lesion alone, diseased=[…], or correct the reference",
            case=case.name,
            channel=name,
            file=case.references[name].name,
        )


def _brain(channels: Sequence[str], image: npt.NDArray[np.float32], spacing_mm: npt.ArrayLike) -> Brain | None:
    """What is in every channel's foreground, on a coarse grid; None where that cannot be told or is too little."""
    from scipy import ndimage

    backgrounds = [background_of(channel) for channel in image]
    step = max(1, round((image[0].size / MOST_VOXELS) ** (1 / 3)))
    coarse = image[:, ::step, ::step, ::step]
    inside = np.logical_and.reduce([own != value for own, value in zip(coarse, backgrounds, strict=True)])
    if None in backgrounds or np.count_nonzero(inside) < FEWEST_VOXELS:
        return None
    values = {name: own[inside] for name, own in zip(channels, coarse, strict=True)}
    depth = ndimage.distance_transform_edt(inside, sampling=step * np.asarray(spacing_mm))[inside]
    return Brain(values, {name: _ranks(own) for name, own in values.items()}, _ranks(depth))


def _ranks(values: npt.NDArray[np.floating]) -> Ranks:
    """The share of voxels up to each one, of equal ones the mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(((np.cumsum(counts) - (counts - 1) / 2) / len(values))[place])


def _fluid(brain: Brain, t2: str, flair: str) -> float:
    """How much brighter T2 is where FLAIR is brightest than FLAIR where T2 is."""
    ours, other = brain.ranks[t2], brain.ranks[flair]
    lit, wet = other > BRIGHT, ours > BRIGHT
    return float(ours[lit].mean() - other[wet].mean()) if lit.any() and wet.any() else 0.0


def _inwards(brain: Brain, t1: str, t2: str) -> float:
    """How much more T1 brightens towards the middle of the brain than T2 does."""
    return _together(brain.ranks[t1], brain.depth) - _together(brain.ranks[t2], brain.depth)


def _tissue(brain: Brain, t1: str, flair: str) -> float | None:
    """How much more FLAIR goes with T2 than T1 does, outside fluid; None without a T2."""
    if "t2" not in brain.ranks:
        return None
    t2 = brain.ranks["t2"]
    dry = t2 < FLUID
    return _together(brain.ranks[flair][dry], t2[dry]) - _together(brain.ranks[t1][dry], t2[dry])


def _enhancement(brain: Brain, t1: str, t1ce: str) -> float:
    """How much further the tail of T1 with contrast medium minus T1 reaches up than down; each by its own quartiles."""
    gained = _scaled(brain.values[t1ce]) - _scaled(brain.values[t1])
    low, middle, high = np.quantile(gained, [TAIL, 0.5, 1 - TAIL])
    return float((high + low - 2 * middle) / (high - low)) if high > low else 0.0


def _scaled(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    low, middle, high = np.quantile(values.astype(np.float64), [0.25, 0.5, 0.75])
    return (values - middle) / (high - low) if high > low else np.zeros(len(values))


def _together(one: Ranks, other: Ranks) -> float:
    """Their correlation, 0 where one does not vary."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0


WHITE, TISSUE = (
    "on T1 white matter is brighter than grey, on T2 darker",
    "grey-white contrast is the same on FLAIR as on T2",
)
PAIRS = (
    Pair(("t2", "flair"), _fluid, 0.05, "fluid is bright on T2 and dark on FLAIR"),
    Pair(("t1", "t2"), _inwards, 0.2, WHITE),
    Pair(("t1ce", "t2"), _inwards, 0.35, WHITE),
    Pair(("t1", "flair"), _tissue, 0.15, TISSUE),
    Pair(("t1ce", "flair"), _tissue, 0.3, TISSUE),
    Pair(("t1", "t1ce"), _enhancement, 0.25, "contrast medium brightens vessels and lesions, and darkens nothing"),
)
