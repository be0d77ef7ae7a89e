"""Random changes that leave a brain a brain: flips, affine, contrast, gamma, noise, by MONAI, one seed an image.

A slice with its neighbours is one image: all turn alike, and a channel's contrast is that of all its neighbours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.seeds import seed_of
from medseg_diff.settings import Settings

Axis = Annotated[int, Field(ge=0, le=2)]


class Augmentation(Settings):
    """How far each change may go; 0 (or no axes) switches it off. Intensities are those of the prepared image, [-1, 1].

    `probability` is each change's own. `flips` lists axes of the view (0 is left-right in RAS). `gamma` bends a channel's
    curve over the range of its brain, whose mean and deviation stay: `contrast` and `brightness` are for these.
    `channel_dropout` is the probability that a channel is taken away whole, background in its place, never all of them:
    what makes a model accept cases that lack some.
    """

    probability: float = Field(default=0.5, ge=0, le=1)
    flips: tuple[Axis, ...] = (0,)
    rotation_degrees: float = Field(default=15.0, ge=0)
    scaling: float = Field(default=0.15, ge=0, lt=1)
    translation: float = Field(default=4.0, ge=0)  # voxels
    contrast: float = Field(default=0.2, ge=0)
    brightness: float = Field(default=0.2, ge=0)
    gamma: float = Field(default=0.4, ge=0)
    noise: float = Field(default=0.1, ge=0)
    channel_dropout: float = Field(default=0.0, ge=0, lt=1)

    def __call__(
        self, image: Tensor, labels: Tensor, brain: Tensor, *, seed: int, background: float
    ) -> dict[str, Tensor]:
        """image [C N, *S], labels [R, *S], brain [N, *S] → the same under those names; equal seeds give equal bytes.

        N > 1 where a slice stands among its neighbours, those of a channel beside each other. Outside the (moved) brain
        every channel is `background` again, as in an image that was never changed.
        """
        whole = {"image": image, "labels": labels, "brain": brain.float()}
        chain = self._chains[image.ndim - 1]
        # numpy's seeds have 32 bits; a fresh one for every image is what makes order and workers irrelevant.
        for random in (chain, self._curve):
            random.set_random_state(seed=seed % 2**32)
        with _without_geometry():
            whole = chain(whole)
            inside, deep = whole["brain"] > 0.5, whole["image"]
            if self.gamma and inside.any():
                deep = deep.clone()
                for channel in deep:  # each sequence has a contrast of its own
                    channel[inside] = self._curve(channel[inside])
        if self.channel_dropout:
            deep = torch.where(self._dropped(len(deep), seed).view(-1, *(1,) * inside.ndim), background, deep)
        return {
            "image": torch.where(inside, deep, background).flatten(0, 1),
            "labels": whole["labels"],
            "brain": inside,
        }

    def _dropped(self, channels: int, seed: int) -> Tensor:
        """Which channels are taken away, [C] booleans; one at least stays."""
        choose = np.random.default_rng(seed_of(seed, "channels"))  # its own, so that the other changes stay as they are
        dropped = choose.random(channels) < self.channel_dropout
        if dropped.all():
            dropped[choose.integers(channels)] = False
        return torch.from_numpy(dropped)

    @cached_property
    def _chains(self) -> dict[int, Any]:
        """The chain for two spatial axes and for three."""
        return {dims: self._chain(dims) for dims in (2, 3)}

    def _chain(self, dims: int) -> Any:
        """The MONAI chain of what is switched on: first what moves voxels, then what changes a whole channel [C, N, *S]."""
        from math import radians

        import monai.transforms as mt

        everything, chance = ("image", "labels", "brain"), self.probability
        chain: list[Any] = [mt.RandFlipd(everything, prob=chance, spatial_axis=axis) for axis in self.flips]
        if self.rotation_degrees or self.scaling or self.translation:
            # MONAI's ranges are for each axis (a lone number is the first one's); a slice has one axis of rotation.
            chain.append(
                mt.RandAffined(
                    everything,
                    prob=chance,
                    rotate_range=(radians(self.rotation_degrees),) * (1 if dims == 2 else 3),
                    scale_range=(self.scaling,) * dims,
                    translate_range=(self.translation,) * dims,
                    mode=("bilinear", "nearest", "nearest"),
                    padding_mode=("border", "zeros", "zeros"),
                )
            )
        chain.append(_with_neighbours)
        if self.contrast:
            chain.append(mt.RandScaleIntensityd("image", factors=self.contrast, prob=chance, channel_wise=True))
        if self.brightness:
            chain.append(mt.RandShiftIntensityd("image", offsets=self.brightness, prob=chance, channel_wise=True))
        if self.noise:
            chain.append(mt.RandGaussianNoised("image", prob=chance, std=self.noise))
        return mt.Compose(chain)

    @cached_property
    def _curve(self) -> Any:
        """MONAI's gamma, for one channel."""
        import monai.transforms as mt

        reach = 1 + self.gamma
        return mt.RandAdjustContrast(prob=self.probability, gamma=(1 / reach, reach), retain_stats=True)


def _with_neighbours(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image as [C, N, *S], so that what is drawn for a channel is drawn for its N neighbours together."""
    return parts | {"image": parts["image"].unflatten(0, (-1, len(parts["brain"])))}


@contextmanager
def _without_geometry() -> Iterator[None]:
    """MONAI's record of affines switched off for a while: a cut slice has none, and keeping it costs time."""
    from monai.data import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
