"""Slices with a label, healthy or diseased, for classifiers and for denoisers that are told it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medseg_diff.data.cache import PreparedCase
from medseg_diff.data.loaders import Key, SliceDataset
from medseg_diff.data.manifest import Case
from medseg_diff.errors import UsageError

UNKNOWN = -1


def is_labelled(case: Case) -> bool:
    """Whether the slices of a case have labels: it has a reference, or the table calls the whole of it healthy."""
    return bool(case.seg or case.raters or case.label == "healthy")


def present_labels(cases: Sequence[PreparedCase]) -> tuple[int, ...]:
    """Every label above 0 in the references of these cases."""
    return tuple(sorted({int(label) for case in cases for label in np.unique(case.labels) if label > 0}))


def slice_labels(mask: Tensor) -> Tensor:
    """The labels in such masks [B, 1, *S]: 0 healthy, 1 diseased, UNKNOWN, integers [B]."""
    sign = mask[:, 0].flatten(1)[:, 0]
    return torch.where(sign == 0, UNKNOWN, (sign > 0).long())


class LabelledSlices(Dataset[dict[str, Tensor]]):
    """The items of a SliceDataset of one region, with the slice's label as their mask: 1, -1 or 0 (unknown) everywhere.

    By its reference a slice is diseased where at least `fewest` voxels are, healthy where none is, and unknown between, as
    are the slices of a case that is not `labelled`. `classes` [N] holds 1, 0 and UNKNOWN.
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

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        item = self.slices[key]
        sign = {0: -1.0, 1: 1.0, UNKNOWN: 0.0}[int(self.classes[key.index])]
        return {**item, "mask": torch.full_like(item["mask"], sign)}


def _class_of(labels: np.ndarray, wanted: Sequence[int], fewest: int) -> int:
    diseased = int(np.isin(labels, list(wanted)).sum())
    return int(diseased > 0) if diseased == 0 or diseased >= fewest else UNKNOWN


class HalfAndHalf(Dataset[dict[str, Tensor]]):
    """The slices with a label, healthy and diseased in turn: the rarer ones come more than once in a pass, each time with
    another augmentation.

    Raises: UsageError where one of the two is missing.
    """

    def __init__(self, slices: LabelledSlices) -> None:
        self.slices = slices
        self.places = [np.flatnonzero(slices.classes == label) for label in (0, 1)]
        for name, places in zip(("healthy", "diseased"), self.places, strict=True):
            if not len(places):
                raise UsageError(
                    f"no training slice is {name}, so a classifier has nothing to learn",
                    fix="add cases, fill the columns seg and label, or set diseased=[…] to the labels that count",
                )

    def __len__(self) -> int:
        return 2 * max(map(len, self.places))

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        places = self.places[key.index % 2]
        again, number = divmod(key.index // 2, len(places))
        passes = -(-len(self) // (2 * len(places)))
        return self.slices[Key(key.epoch * passes + again, int(places[number]))]
