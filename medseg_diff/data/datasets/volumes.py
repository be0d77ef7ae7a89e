"""Whole volumes to learn from, and the covariates that stand beside an image in a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg_diff.data.datasets.batch import Key
from medseg_diff.data.datasets.cache import PreparedCase
from medseg_diff.data.datasets.slices import PieceDataset, region_masks
from medseg_diff.data.views import WholeVolume, fit_to


@dataclass(eq=False, repr=False)
class VolumeDataset(PieceDataset):
    """Every case as one piece, its brain in the middle of `view.size`."""

    view: WholeVolume

    def __len__(self) -> int:
        return len(self.cases)

    def case_of(self, index: int) -> PreparedCase:
        return self.cases[index]

    def piece(self, index: int, opinion: int, choose: np.random.Generator) -> dict[str, Tensor]:
        return self._parts(index, opinion)

    def donor(self, choose: np.random.Generator) -> dict[str, Tensor] | None:
        return None  # whole volumes are for synthesis, which pastes nothing

    def plain(self, index: int) -> dict[str, Tensor]:
        parts = self._parts(index, 0)
        return {"image": parts["image"], "mask": parts["labels"] > 0.5, "brain": parts["brain"] > 0}

    def _parts(self, index: int, opinion: int) -> dict[str, Tensor]:
        case = self.cases[index]
        labels = region_masks(volume_of(case.labels[:, opinion : opinion + 1]), self.regions)
        parts = {"image": volume_of(case.image).float(), "labels": labels.float(), "brain": volume_of(case.brain)}
        fill = {"image": self.background, "labels": 0, "brain": 0}
        return {name: fit_to(self.view.size, part, fill=fill[name]) for name, part in parts.items()}


def volume_of(slices: np.ndarray) -> Tensor:
    """[Z, C, X, Y] as it lies in the cache → [C, X, Y, Z]."""
    return torch.from_numpy(np.ascontiguousarray(slices.transpose(1, 2, 3, 0)))


@dataclass(frozen=True)
class WithCovariates:
    """Pieces, each with the covariates [K] of its case, by the case's name; of a data set without any: none. With `masks`
    the mask stays beside the image, and with `outline` the brain is its last channel: what is above the background, whose
    value that is."""

    pieces: PieceDataset
    covariates: Mapping[str, Sequence[float]]
    masks: bool = False
    outline: float | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return self._kept(self.pieces[key]) | self.of(key.index)

    def plain(self, index: int) -> dict[str, Tensor]:
        """The piece as validation sees it: never changed by augmentation."""
        parts = self.pieces.plain(index)
        return self._kept(parts | {"mask": parts["mask"].float() * 2 - 1}) | self.of(index)

    def _kept(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        image, mask = parts["image"], parts["mask"]
        if not self.masks:
            return {"image": image}
        if self.outline is not None:
            brain = (image > self.outline).any(dim=0, keepdim=True)
            mask = torch.cat([mask, brain.float() * 2 - 1])
        return {"image": image, "mask": mask}

    def of(self, index: int) -> dict[str, Tensor]:
        """The covariates of piece `index` as a part of a batch."""
        known = self.covariates.get(self.pieces.case_of(index).name)
        return {} if known is None else {"covariates": torch.tensor(known, dtype=torch.float32)}
