"""How a volume is cut for a network, and joined again."""

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.settings import Settings


class AxialSlices(Settings):
    """A volume [C, X, Y, Z] as a stack of axial slices [Z, C, X, Y].

    Training crops or pads every slice to `size` and leaves out slices whose brain covers less than `smallest_brain` of
    its largest slice, as well as the first and last `drop` slices of the prepared volume. Sampling takes every slice
    with brain, at its own size.
    """

    kind: Literal["axial_slices"] = "axial_slices"
    size: tuple[int, int] = (224, 224)
    smallest_brain: float = Field(default=0.05, ge=0, lt=1)
    drop: tuple[int, int] = (0, 0)

    @property
    def dims(self) -> int:
        return 2

    def cut(self, volume: Tensor) -> Tensor:
        """[C, X, Y, Z] → [Z, C, X, Y]."""
        return volume.permute(3, 0, 1, 2)

    def join(self, slices: Tensor) -> Tensor:
        """[Z, C, X, Y] → [C, X, Y, Z], the inverse of `cut`."""
        return slices.permute(1, 2, 3, 0)

    def for_training(self, brain: Tensor) -> list[int]:
        """Indices of the slices worth learning from; brain [1, X, Y, Z] booleans."""
        areas = brain[0].sum((0, 1))
        low, high = self.drop
        enough = max(1.0, self.smallest_brain * float(areas.max()))
        return [z for z in range(low, len(areas) - high) if areas[z] >= enough]

    def for_sampling(self, brain: Tensor) -> list[int]:
        """Indices of the slices that hold any brain; brain [1, X, Y, Z] booleans. The others are empty for certain."""
        return brain[0].any(0).any(0).nonzero().flatten().tolist()


AnyView = Annotated[AxialSlices, Field()]


def fit_to(size: Iterable[int], image: Tensor, *, fill: float, corner: Iterable[int] | None = None) -> Tensor:
    """Crop (at `corner`, default: the middle) and pad (evenly) the spatial axes of [C, *S] to `size`."""
    size = tuple(size)
    surplus = [n - wanted for n, wanted in zip(image.shape[1:], size, strict=True)]
    starts = [max(extra, 0) // 2 for extra in surplus] if corner is None else list(corner)
    crop = tuple(slice(start, start + wanted) for start, wanted in zip(starts, size, strict=True))
    image = image[(slice(None), *crop)]
    missing = [(max(-extra, 0) // 2, max(-extra, 0) - max(-extra, 0) // 2) for extra in surplus]
    if not any(map(any, missing)):
        return image
    return torch.nn.functional.pad(image, [side for pair in reversed(missing) for side in pair], value=fill)
