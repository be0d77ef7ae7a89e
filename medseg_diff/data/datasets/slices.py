"""From prepared cases to batches for training: cut, changed and shuffled by seed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from medseg_diff.data.datasets.augmentation import Augmentation
from medseg_diff.data.datasets.batch import Key
from medseg_diff.data.datasets.cache import PreparedCase
from medseg_diff.data.views import AnyView, AxialSlices, fit_to
from medseg_diff.errors import UsageError
from medseg_diff.seeds import seed_of

Regions = Mapping[str, Sequence[int]]


class PieceDataset(torch.utils.data.Dataset[dict[str, Tensor]], ABC):
    """Pieces of prepared cases as {image [C, *S], mask [R, *S]}; item `Key(epoch, index)` is a pure function.

    What a piece is, its view says: subclasses give its length and cut it.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        view: AnyView,
        augmentation: Augmentation,
        regions: Regions,
        *,
        background: float,
        seed: int,
    ) -> None:
        self.cases, self.augmentation, self.regions = cases, augmentation, regions
        self.size: tuple[int, ...] = view.size
        self.background, self.seed = background, seed

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def case_of(self, index: int) -> PreparedCase:
        """The case that piece `index` is cut from."""

    @abstractmethod
    def piece(self, index: int, opinion: int, choose: np.random.Generator) -> dict[str, Tensor]:
        """image [C N, *S], labels [R, *S] of 0 and 1 by that opinion, brain [N, *S], before augmentation, which may
        want more than `size`."""

    @abstractmethod
    def plain(self, index: int) -> dict[str, Tensor]:
        """The piece as validation sees it: never changed, by the reference; mask [R, *S] and brain [1, *S] booleans."""

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        own = seed_of(self.seed, "image", key.epoch, key.index)
        choose = np.random.default_rng(own)
        raters = self.case_of(key.index).labels.shape[1] - 1
        opinion = 1 + int(choose.integers(raters)) if raters else 0
        changed = self.augmentation(**self.piece(key.index, opinion, choose), seed=own, background=self.background)
        image, labels = (fit_to(self.size, changed[name], fill=0) for name in ("image", "labels"))
        return {"image": image, "mask": labels * 2 - 1}


class SliceDataset(PieceDataset):
    """Slices of prepared cases, each with its neighbours where the view has a context."""

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        view: AxialSlices,
        augmentation: Augmentation,
        regions: Regions,
        *,
        background: float,
        seed: int,
        keep: Callable[[int], bool] = lambda number: True,
    ) -> None:
        super().__init__(cases, view, augmentation, regions, background=background, seed=seed)
        self.view = view
        wanted = [
            (case, z)
            for case, prepared in enumerate(cases)
            for z in view.for_training(view.join(torch.from_numpy(np.array(prepared.brain)).bool()))
        ]
        self.slices = [place for number, place in enumerate(wanted) if keep(number)]
        if not self.slices:
            raise UsageError("no slice is left to train on", fix="lower view.smallest_brain or view.drop")

    def __len__(self) -> int:
        return len(self.slices)

    def case_of(self, index: int) -> PreparedCase:
        return self.cases[self.slices[index][0]]

    def piece(self, index: int, opinion: int, choose: np.random.Generator) -> dict[str, Tensor]:
        parts = self._parts(index, opinion)
        surplus = [max(n - wanted, 0) for n, wanted in zip(parts["image"].shape[1:], self.size, strict=True)]
        return self._fitted(parts, [int(choose.integers(extra + 1)) for extra in surplus])

    def plain(self, index: int) -> dict[str, Tensor]:
        parts = self._fitted(self._parts(index, 0), None)
        context = self.view.context
        brain = parts["brain"][context : context + 1] > 0
        return {"image": parts["image"], "mask": parts["labels"] > 0.5, "brain": brain}

    def _parts(self, index: int, opinion: int) -> dict[str, Tensor]:
        (case, z), context = self.slices[index], self.view.context
        prepared = self.cases[case]
        stack = _range(prepared.image, z - context, z + context + 1, fill=self.background)
        brain = _range(prepared.brain, z - context, z + context + 1, fill=0)
        labels = torch.from_numpy(np.array(prepared.labels[z, opinion : opinion + 1]))
        return {
            "image": torch.from_numpy(stack.astype(np.float32)).transpose(0, 1).flatten(0, 1),
            "labels": region_masks(labels, self.regions).float(),
            "brain": torch.from_numpy(brain[:, 0]),
        }

    def _fitted(self, parts: dict[str, Tensor], corner: Sequence[int] | None) -> dict[str, Tensor]:
        fill = {"image": self.background, "labels": 0, "brain": 0}
        return {name: fit_to(self.size, part, fill=fill[name], corner=corner) for name, part in parts.items()}


def _range(slices: np.ndarray, start: int, stop: int, *, fill: float) -> np.ndarray:
    """slices[start:stop] along the first axis, `fill` where there are none."""
    found = np.array(slices[max(start, 0) : stop])
    beyond = (max(-start, 0), max(stop - len(slices), 0))
    if not any(beyond):
        return found
    return np.pad(found, [beyond] + [(0, 0)] * (found.ndim - 1), constant_values=fill)


def region_masks(labels: Tensor, regions: Regions) -> Tensor:
    """labels [1, *S] integers → [R, *S] booleans, a channel for each region."""
    found = [torch.isin(labels, torch.tensor(list(wanted), dtype=labels.dtype)) for wanted in regions.values()]
    return torch.cat(found)
