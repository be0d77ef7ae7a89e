"""Slices with a label, healthy or diseased, for classifiers and for denoisers that are conditioned on it."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medseg_diff.data.datasets.batch import Key
from medseg_diff.data.datasets.cache import PreparedCase
from medseg_diff.data.datasets.slices import SliceDataset
from medseg_diff.data.tables.case import Case
from medseg_diff.errors import UsageError
from medseg_diff.evenly import evenly_spaced
from medseg_diff.seeds import seed_of

UNKNOWN = -1
KINDS = ("healthy", "diseased")  # by label
ALIKE = 0.05  # of a brain's height: slices no farther apart than this lie at the same height
FEWEST_ALIKE = 8  # so many healthy slices may stand beside each diseased one, however far away
ANYWHERE = 0.125  # share of the healthy slices that are taken from any height


def is_labelled(case: Case) -> bool:
    """Whether the slices of a case have labels: it has a reference, or the table calls the whole of it healthy."""
    return bool(case.seg or case.raters or case.label == "healthy")


def present_labels(cases: Sequence[PreparedCase]) -> tuple[int, ...]:
    """Every label above 0 in the references of these cases."""
    return tuple(sorted({int(label) for case in cases for label in np.unique(case.labels) if label > 0}))


class LabelledSlices(Dataset[dict[str, Tensor]]):
    """Those of a SliceDataset of one region with {label []} beside image and mask: 1 diseased, 0 healthy, or UNKNOWN.

    By its reference a slice is diseased where at least `fewest` voxels are, healthy where none is, and unknown between, as
    are the slices of a case that is not `labelled`. `classes` [N] holds 1, 0 and UNKNOWN, `heights` [N] the places of the
    slices from the bottom of their brain, 0, to its top, 1; `labelled` [N] says whether a slice's lesions are known.
    """

    def __init__(self, slices: SliceDataset, labelled: Sequence[bool], *, fewest: int = 1) -> None:
        self.slices = slices
        (wanted,) = slices.regions.values()
        self.classes = np.array(
            [
                _class_of(slices.cases[case].labels[z, 0], wanted, fewest) if labelled[case] else UNKNOWN
                for case, z in slices.slices
            ]
        )
        self.labelled = np.array([labelled[case] for case, _ in slices.slices], bool)
        ends = [_ends_of(case) for case in slices.cases]
        self.heights = np.array([(z - ends[case][0]) / max(np.ptp(ends[case]), 1) for case, z in slices.slices])

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {**self.slices[key], "label": torch.tensor(self.classes[key.index])}

    def plain(self, index: int) -> Tensor:
        """A slice's image [C, *S] as validation sees it: never changed by augmentation."""
        return self.slices.plain(index)["image"]


def _class_of(labels: np.ndarray, wanted: Sequence[int], fewest: int) -> int:
    diseased = int(np.isin(labels, list(wanted)).sum())
    return int(diseased > 0) if diseased == 0 or diseased >= fewest else UNKNOWN


def _ends_of(case: PreparedCase) -> tuple[int, int]:
    """The lowest and the highest slice with brain."""
    filled = np.flatnonzero(case.brain.reshape(len(case.brain), -1).any(axis=1))
    return (int(filled[0]), int(filled[-1])) if len(filled) else (0, 0)


class Some(Dataset[dict[str, Tensor]]):
    """Some of the slices, as LabelledSlices gives them: those at the numbers `places`."""

    def __init__(self, slices: LabelledSlices, places: np.ndarray) -> None:
        self.slices, self.places = slices, places

    @classmethod
    def of_label(cls, slices: LabelledSlices, label: int) -> "Some":
        """Raises: UsageError where no slice has it."""
        return cls(slices, _places_of(slices, label))

    @classmethod
    def of_known_lesions(cls, slices: LabelledSlices) -> "Some":
        """Those whose healthy voxels are known, as there always are where one slice is healthy and one diseased."""
        return cls(slices, np.flatnonzero(slices.labelled))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return self.slices[Key(key.epoch, int(self.places[key.index]))]

    def plain(self, index: int) -> Tensor:
        """As of LabelledSlices."""
        return self.slices.plain(int(self.places[index]))


def _places_of(slices: LabelledSlices, label: int) -> np.ndarray:
    places = np.flatnonzero(slices.classes == label)
    if not len(places):
        raise UsageError(
            f"no training slice is {KINDS[label]}, so there is nothing to learn that class from",
            fix="add cases, fill the columns seg and label, or set diseased=[…] to the labels that count",
        )
    return places


class HalfAndHalf(Dataset[dict[str, Tensor]]):
    """The slices with a label, healthy and diseased in turn: the rarer ones come more than once in a pass, each time with
    another augmentation.

    Lesions lie in the middle of a brain more often than at its ends, and a classifier learns that before it learns what a
    lesion looks like. With `same_height` a healthy slice is drawn, for each diseased one, from about its height (a few
    from anywhere), so height tells nothing; a pass then holds every diseased slice, and the healthy ones as they come.
    Raises: UsageError where one of the two is missing.
    """

    def __init__(self, slices: LabelledSlices, *, same_height: bool = False) -> None:
        self.slices, self.same_height = slices, same_height
        self.places = [_places_of(slices, label) for label in range(len(KINDS))]

    def __len__(self) -> int:
        return 2 * max(map(len, self.places))

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        label = key.index % 2
        if self.same_height and not label:
            again = key.epoch * len(self) + key.index  # a slice that is drawn twice is changed otherwise
            return self.slices[Key(again, self._beside(key))]
        return self.slices[self._in_turn(key, label)]

    def _in_turn(self, key: Key, label: int) -> Key:
        """All slices of a kind one after another, as often as a pass has room for them."""
        places = self.places[label]
        again, number = divmod(key.index // 2, len(places))
        passes = -(-len(self) // (2 * len(places)))
        return Key(key.epoch * passes + again, int(places[number]))

    def _beside(self, key: Key) -> int:
        """A healthy slice at about the height of the diseased one that comes next to it, drawn by the key alone."""
        healthy, diseased = self.places[0], self._in_turn(key, 1).index
        draw = np.random.default_rng(seed_of(self.slices.slices.seed, "healthy", key.epoch, key.index))
        if draw.random() < ANYWHERE:
            return int(draw.choice(healthy))
        return int(draw.choice(healthy[near(self.slices.heights[healthy], self.slices.heights[diseased])]))


def balanced(classes: np.ndarray, heights: np.ndarray, count: int) -> list[int]:
    """Numbers of at most `count` slices, half of them healthy, half diseased, where there are as many.

    The diseased ones are evenly spaced, the healthy ones chosen at their heights: knowing heights alone is no skill.
    """
    healthy, diseased = (np.flatnonzero(classes == label).tolist() for label in (0, 1))
    chosen = evenly_spaced(diseased, count // 2)
    return _at_the_heights_of(chosen, healthy, heights, count // 2) + chosen


def _at_the_heights_of(diseased: Sequence[int], healthy: Sequence[int], heights: np.ndarray, count: int) -> list[int]:
    """At most `count` healthy slices, each the nearest in height to one of the diseased, which take turns."""
    if not diseased:
        return evenly_spaced(healthy, count)
    left, found = list(healthy), []
    for beside in itertools.islice(itertools.cycle(diseased), min(count, len(left))):
        found.append(left.pop(int(np.argmin(abs(heights[left] - heights[beside])))))
    return found


def near(heights: np.ndarray, height: float) -> np.ndarray:
    """Which of `heights` [N] lie at about `height`, the nearest first; the FEWEST_ALIKE nearest where these are fewer."""
    distances = abs(heights - height)
    alike = np.flatnonzero(distances <= ALIKE)
    if len(alike) < FEWEST_ALIKE:
        return np.argsort(distances, kind="stable")[:FEWEST_ALIKE]
    return alike[np.argsort(distances[alike], kind="stable")]
