"""From prepared cases to batches for training: cut, changed and shuffled by seed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from medseg_diff.data.datasets.augmentation import Augmentation
from medseg_diff.data.datasets.batch import Key
from medseg_diff.data.datasets.cache import PreparedCase
from medseg_diff.data.views import AnyView, AxialSlices, WholeVolume, fit_to
from medseg_diff.errors import UsageError
from medseg_diff.seeds import seed_of

Regions = Mapping[str, Sequence[int]]


def every(number: int) -> bool:
    """No slice is left out."""
    return True


@dataclass(eq=False, repr=False)
class PieceDataset(torch.utils.data.Dataset[dict[str, Tensor]], ABC):
    """Pieces of prepared cases as {image [C, *S], mask [R, *S]}; item `Key(epoch, index)` is a pure function.

    What a piece is, its view says: subclasses give its length and cut it.
    """

    cases: Sequence[PreparedCase]
    view: AnyView | WholeVolume
    augmentation: Augmentation
    regions: Regions
    _: KW_ONLY
    background: float
    seed: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def case_of(self, index: int) -> PreparedCase:
        """The case that piece `index` is cut from."""

    @abstractmethod
    def piece(self, index: int, opinion: int, choose: np.random.Generator) -> dict[str, Tensor]:
        """image [C N, *S], labels [R, *S] of 0 and 1 by that opinion, brain [N, *S], before augmentation, which may
        want more than the view's size."""

    @abstractmethod
    def donor(self, choose: np.random.Generator) -> dict[str, Tensor] | None:
        """A piece with a lesion, the same parts; None where there is none."""

    @abstractmethod
    def plain(self, index: int) -> dict[str, Tensor]:
        """The piece as validation sees it: never changed, by the reference; mask [R, *S] and brain [1, *S] booleans."""

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        own = seed_of(self.seed, "image", key.epoch, key.index)
        choose = np.random.default_rng(own)
        parts = self.piece(key.index, self.opinion(key.index, choose), choose)
        pasted = np.random.default_rng(seed_of(own, "paste"))  # its own, so that the other changes stay as they are
        donor = self.donor(pasted) if pasted.random() < self.augmentation.lesion_paste else None
        changed = self.augmentation(**parts, seed=own, background=self.background, donor=donor)
        image, labels = (fit_to(self.view.size, changed[name], fill=0) for name in ("image", "labels"))
        return {"image": image, "mask": labels * 2 - 1}

    def opinion(self, index: int, choose: np.random.Generator) -> int:
        """One of the raters of piece `index`, 1 … R, or the reference, 0, where there are none."""
        raters = self.case_of(index).labels.shape[1] - 1
        return 1 + int(choose.integers(raters)) if raters else 0


@dataclass(eq=False, repr=False)
class SliceDataset(PieceDataset):
    """Slices of prepared cases, each with its neighbours where the view has a context; those whose numbers `keep` takes."""

    view: AxialSlices
    keep: Callable[[int], bool] = every

    def __post_init__(self) -> None:
        wanted = [
            (case, z)
            for case, prepared in enumerate(self.cases)
            for z in self.view.for_training(self.view.join(torch.from_numpy(np.array(prepared.brain)).bool()))
        ]
        self.slices = [place for number, place in enumerate(wanted) if self.keep(number)]
        if not self.slices:
            raise UsageError("no slice is left to train on", fix="lower view.smallest_brain or view.drop")

    def __len__(self) -> int:
        return len(self.slices)

    def case_of(self, index: int) -> PreparedCase:
        return self.cases[self.slices[index][0]]

    def donor(self, choose: np.random.Generator) -> dict[str, Tensor] | None:
        if not self._with_lesion:
            return None
        index = self._with_lesion[int(choose.integers(len(self._with_lesion)))]
        return self.piece(index, self.opinion(index, choose), choose)

    def piece(self, index: int, opinion: int, choose: np.random.Generator) -> dict[str, Tensor]:
        parts = self._parts(index, opinion)
        surplus = [max(n - wanted, 0) for n, wanted in zip(parts["image"].shape[1:], self.view.size, strict=True)]
        return self._fitted(parts, [int(choose.integers(extra + 1)) for extra in surplus])

    def plain(self, index: int) -> dict[str, Tensor]:
        parts, context = self._fitted(self._parts(index, 0), None), self.view.context
        brain = parts["brain"][context : context + 1] > 0
        return {"image": parts["image"], "mask": parts["labels"] > 0.5, "brain": brain}

    @cached_property
    def _with_lesion(self) -> list[int]:
        """Which slices have a label of any region, by the reference."""
        wanted = [label for labels in self.regions.values() for label in labels]
        return [
            index for index, (case, z) in enumerate(self.slices) if np.isin(self.cases[case].labels[z, 0], wanted).any()
        ]

    def _parts(self, index: int, opinion: int) -> dict[str, Tensor]:
        (case, z), context = self.slices[index], self.view.context
        prepared, around = self.cases[case], [(z - context, z + context + 1)]
        stack = window(prepared.image, around, fill=self.background)
        brain = window(prepared.brain, around, fill=0)
        labels = torch.from_numpy(np.array(prepared.labels[z, opinion : opinion + 1]))
        return {
            "image": torch.from_numpy(stack.astype(np.float32)).transpose(0, 1).flatten(0, 1),
            "labels": region_masks(labels, self.regions).float(),
            "brain": torch.from_numpy(brain[:, 0]),
        }

    def _fitted(self, parts: dict[str, Tensor], corner: Sequence[int] | None) -> dict[str, Tensor]:
        fill = {"image": self.background, "labels": 0, "brain": 0}
        return {name: fit_to(self.view.size, part, fill=fill[name], corner=corner) for name, part in parts.items()}


def window(slices: np.ndarray, ranges: Sequence[tuple[int, int]], *, fill: float) -> np.ndarray:
    """A copy of slices[start:stop] along the first axes, one for each of `ranges`, `fill` beyond the array."""
    inside = tuple(slice(max(start, 0), stop) for start, stop in ranges)
    beyond = [(max(-start, 0), max(stop - n, 0)) for (start, stop), n in zip(ranges, slices.shape, strict=False)]
    return np.pad(slices[inside], beyond + [(0, 0)] * (slices.ndim - len(ranges)), constant_values=fill)


def region_masks(labels: Tensor, regions: Regions) -> Tensor:
    """labels [1, *S] integers → [R, *S] booleans, a channel for each region."""
    if not regions:
        return torch.zeros(0, *labels.shape[1:], dtype=torch.bool)
    found = [torch.isin(labels, torch.tensor(list(wanted), dtype=labels.dtype)) for wanted in regions.values()]
    return torch.cat(found)
