"""Patches of prepared volumes to train a 3D network on: any number from each case, a stated share around a lesion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg_diff.data.datasets.cache import PreparedCase
from medseg_diff.data.datasets.slices import PieceDataset, region_masks, window
from medseg_diff.data.views import Patches
from medseg_diff.seeds import seed_of


@dataclass(eq=False, repr=False)
class PatchDataset(PieceDataset):
    """`view.per_case` patches of every case in an epoch; where each lies is drawn anew from (seed, epoch, index).

    An image smaller than a patch stands in its middle, background around it. What validation sees (`plain`) lies
    anywhere, so that lesions are as rare in it as in the volumes.
    """

    view: Patches

    def __post_init__(self) -> None:
        self._lesion = [self._lesion_voxels(prepared) for prepared in self.cases]

    def __len__(self) -> int:
        return len(self.cases) * self.view.per_case

    def case_of(self, index: int) -> PreparedCase:
        return self.cases[index // self.view.per_case]

    def piece(self, index: int, opinion: int, choose: np.random.Generator) -> dict[str, Tensor]:
        corner = self._corner(index, opinion, choose, share=self.view.lesion_share)
        return self._cut(index, opinion, corner, self.view.margin)

    def donor(self, choose: np.random.Generator) -> dict[str, Tensor] | None:
        cases = [number for number, counts in enumerate(self._lesion) if counts[0].any()]
        if not cases:
            return None
        index = cases[int(choose.integers(len(cases)))] * self.view.per_case
        opinion = self.opinion(index, choose)
        return self._cut(index, opinion, self._corner(index, opinion, choose, share=1.0), self.view.margin)

    def plain(self, index: int) -> dict[str, Tensor]:
        choose = np.random.default_rng(seed_of(self.seed, "validation", index))
        parts = self._cut(index, 0, self._corner(index, 0, choose, share=0.0), 0)
        return {"image": parts["image"], "mask": parts["labels"] > 0.5, "brain": parts["brain"] > 0}

    def _lesion_voxels(self, prepared: PreparedCase) -> np.ndarray:
        """How many voxels of any region each opinion marks in each slice, [1 + R, Z]: enough to draw one of them."""
        counts = [
            [int(self._marked(prepared, z, opinion).sum()) for z in range(len(prepared.labels))]
            for opinion in range(prepared.labels.shape[1])
        ]
        return np.array(counts, dtype=np.int64)

    def _marked(self, prepared: PreparedCase, z: int, opinion: int) -> np.ndarray:
        labels = torch.from_numpy(np.array(prepared.labels[z, opinion : opinion + 1]))
        return region_masks(labels, self.regions).any(0).numpy()

    def _corner(self, index: int, opinion: int, choose: np.random.Generator, *, share: float) -> list[int]:
        """The first voxel (x, y, z) of the patch; negative where the image is smaller than it."""
        prepared = self.case_of(index)
        depth, _, *plane = prepared.image.shape
        around = self._lesion[index // self.view.per_case][opinion]
        wanted = choose.random() < share and around.any()
        voxel = self._lesion_voxel(prepared, opinion, around, choose) if wanted else None
        corner = []
        for axis, (n, edge) in enumerate(zip((*plane, depth), self.view.size, strict=True)):
            if n <= edge:
                corner.append(-((edge - n) // 2))
                continue
            low, high = (0, n - edge) if voxel is None else (max(0, voxel[axis] - edge + 1), min(n - edge, voxel[axis]))
            corner.append(int(choose.integers(low, high + 1)))
        return corner

    def _lesion_voxel(
        self, prepared: PreparedCase, opinion: int, counts: np.ndarray, choose: np.random.Generator
    ) -> tuple[int, int, int]:
        """A voxel (x, y, z) of the lesion, each as likely as the other."""
        ends = counts.cumsum()
        number = int(choose.integers(ends[-1]))
        z = int(np.searchsorted(ends, number, side="right"))
        places = np.argwhere(self._marked(prepared, z, opinion))
        x, y = places[number - int(ends[z] - counts[z])]
        return int(x), int(y), z

    def _cut(self, index: int, opinion: int, corner: Sequence[int], margin: int) -> dict[str, Tensor]:
        prepared = self.case_of(index)
        corner = [start - margin for start in corner]
        size = [edge + 2 * margin for edge in self.view.size]
        labels = _window(prepared.labels[:, opinion : opinion + 1], corner, size, fill=0)
        return {
            "image": _window(prepared.image, corner, size, fill=self.background).float(),
            "labels": region_masks(labels, self.regions).float(),
            "brain": _window(prepared.brain, corner, size, fill=0),
        }


def _window(slices: np.ndarray, corner: Sequence[int], size: Sequence[int], *, fill: float) -> Tensor:
    """[Z, C, X, Y] → [C, *size] from `corner` (x, y, z) on, `fill` beyond the volume."""
    x, y, z = ((start, start + edge) for start, edge in zip(corner, size, strict=True))
    found = window(slices, [z, (0, slices.shape[1]), x, y], fill=fill)
    return torch.from_numpy(np.ascontiguousarray(found.transpose(1, 2, 3, 0)))
