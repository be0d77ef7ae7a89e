"""How a volume is cut for a network, and joined again."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.settings import Settings

Edge = Annotated[int, Field(ge=1, le=1024)]
Count = Annotated[int, Field(ge=0, le=1024)]


class AxialSlices(Settings):
    """A volume [C, X, Y, Z] as a stack of axial slices [Z, C, X, Y].

    Training crops or pads every slice to `size` and leaves out slices whose brain covers less than `smallest_brain` of
    its largest slice, as well as the first and last `drop` slices of the prepared volume. Sampling takes every slice
    with brain, at its own size; without those in `drop` where `sample_dropped` is off: they stay empty. The network is
    shown `context` neighbours on each side of a slice (2.5D), and predicts the slice alone.
    """

    dims: ClassVar[int] = 2
    piece: ClassVar[str] = "slices"
    kind: Literal["axial_slices"] = "axial_slices"
    size: tuple[Edge, Edge] = (224, 224)
    context: int = Field(default=0, ge=0, le=8)
    smallest_brain: float = Field(default=0.05, ge=0, lt=1)
    drop: tuple[Count, Count] = (0, 0)
    sample_dropped: bool = True

    def shown(self, channels: int) -> int:
        """Channels of the condition image for a case of `channels`."""
        return channels * (1 + 2 * self.context)

    def cut(self, volume: Tensor) -> Tensor:
        """[C, X, Y, Z] → [Z, C, X, Y]."""
        return volume.permute(3, 0, 1, 2)

    def join(self, slices: Tensor) -> Tensor:
        """[Z, C, X, Y] → [C, X, Y, Z], the inverse of `cut`."""
        return slices.permute(1, 2, 3, 0)

    def conditions(self, volume: Tensor, *, background: float) -> Tensor:
        """Every slice of an image [C, X, Y, Z] among its neighbours, as the network is shown it: [Z, C N, X, Y].

        N = 1 + 2 context. Those of a channel stand beside each other, from below to above; beyond the volume there is
        `background`.
        """
        around = torch.nn.functional.pad(volume, (self.context, self.context), value=background)
        return around.unfold(3, 1 + 2 * self.context, 1).permute(3, 0, 4, 1, 2).flatten(1, 2)

    def for_training(self, brain: Tensor) -> list[int]:
        """Indices of the slices worth learning from; brain [1, X, Y, Z] booleans."""
        areas = brain[0].sum((0, 1))
        low, high = self.drop
        enough = max(1.0, self.smallest_brain * float(areas.max()))
        return [z for z in range(low, len(areas) - high) if areas[z] >= enough]

    def for_sampling(self, brain: Tensor) -> list[int]:
        """Indices of the slices that hold any brain; brain [1, X, Y, Z] booleans. The others are empty for certain."""
        low, high = (0, 0) if self.sample_dropped else self.drop
        held = brain[0].any(0).any(0).nonzero().flatten().tolist()
        return [z for z in held if low <= z < brain.shape[3] - high]

    def owner(self, number: int) -> tuple[str | int, ...]:
        """Whose noise it is, beside case and member: that slice's."""
        return (number,)


class Patches(Settings):
    """A volume [C, X, Y, Z] as one piece [1, C, X, Y, Z], too large for a network at once.

    Training draws `per_case` patches of `size` from every case in an epoch; a share `lesion_share` of them, where the
    case has a lesion, is laid around a random voxel of it, the others lie anywhere. Augmentation turns a patch with
    `margin` voxels more on every side, so that what turns into it is brain. Sampling covers the volume with tiles of
    `size` whose neighbours share at least `overlap` of it.
    """

    dims: ClassVar[int] = 3
    piece: ClassVar[str] = "patches"
    kind: Literal["patches"] = "patches"
    size: tuple[Edge, Edge, Edge] = (96, 96, 96)
    per_case: int = Field(default=8, ge=1, le=10_000)
    lesion_share: float = Field(default=0.5, ge=0, le=1)
    margin: int = Field(default=0, ge=0, le=64)
    overlap: float = Field(default=0.25, ge=0, lt=1)

    def shown(self, channels: int) -> int:
        """Channels of the condition image for a case of `channels`."""
        return channels

    def cut(self, volume: Tensor) -> Tensor:
        """[C, X, Y, Z] → [1, C, X, Y, Z]."""
        return volume[None]

    def join(self, volumes: Tensor) -> Tensor:
        """[1, C, X, Y, Z] → [C, X, Y, Z], the inverse of `cut`."""
        return volumes.squeeze(0)

    def conditions(self, volume: Tensor, *, background: float) -> Tensor:
        """The image as the network is shown it, here `cut`."""
        return self.cut(volume)

    def for_sampling(self, brain: Tensor) -> list[int]:
        """[0], or nothing where there is no brain [1, X, Y, Z]."""
        return [0] if bool(brain.any()) else []

    def owner(self, number: int) -> tuple[str | int, ...]:
        """Whose noise it is, beside case and member: the volume's."""
        return ("volume",)


class WholeVolume(Settings):
    """A volume [C, X, Y, Z] as one piece [1, C, *size]: its brain in the middle, background around it.

    What of a brain is larger than `size` is cut off, which training says.
    """

    dims: ClassVar[int] = 3
    piece: ClassVar[str] = "volumes"
    kind: Literal["volume"] = "volume"
    size: tuple[Edge, Edge, Edge] = (160, 224, 160)

    def cut(self, volume: Tensor) -> Tensor:
        """[C, X, Y, Z] → [1, C, X, Y, Z]."""
        return volume[None]

    def join(self, volumes: Tensor) -> Tensor:
        """[1, C, X, Y, Z] → [C, X, Y, Z], the inverse of `cut`."""
        return volumes.squeeze(0)

    def for_sampling(self, brain: Tensor) -> list[int]:
        """[0], or nothing where there is no brain [1, X, Y, Z]."""
        return [0] if bool(brain.any()) else []

    def owner(self, number: int) -> tuple[str | int, ...]:
        """Whose noise it is, beside case and number: the volume's."""
        return ("volume",)


AnyView = Annotated[AxialSlices | Patches, Field(discriminator="kind")]
SynthesisView = Annotated[AxialSlices | WholeVolume, Field(discriminator="kind")]
EnhancementView = Annotated[Patches | WholeVolume, Field(discriminator="kind")]


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
