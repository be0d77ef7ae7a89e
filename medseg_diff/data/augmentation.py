"""Random changes that leave a brain a brain: flips, affine, contrast, gamma, noise, by MONAI, one seed an image."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.settings import Settings


class Augmentation(Settings):
    """How far each change may go; 0 (or no axes) switches it off. Intensities are those of the prepared image, [-1, 1].

    `probability` is each change's own. `flips` lists axes of the view (0 is left-right in RAS).
    """

    probability: float = Field(default=0.5, ge=0, le=1)
    flips: tuple[int, ...] = (0,)
    rotation_degrees: float = Field(default=15.0, ge=0)
    scaling: float = Field(default=0.15, ge=0, lt=1)
    translation: float = Field(default=4.0, ge=0)  # voxels
    contrast: float = Field(default=0.2, ge=0)
    brightness: float = Field(default=0.2, ge=0)
    gamma: float = Field(default=0.4, ge=0)
    noise: float = Field(default=0.1, ge=0)

    def __call__(
        self, image: Tensor, labels: Tensor, brain: Tensor, *, seed: int, background: float
    ) -> dict[str, Tensor]:
        """image [C, *S], labels [R, *S], brain [1, *S] → the same under those names; equal seeds give equal bytes.

        Outside the (moved) brain every channel is `background` again, as in an image that was never changed.
        """
        whole = {"image": image, "labels": labels, "brain": brain.float()}
        # numpy's seeds have 32 bits; a fresh one for every image is what makes order and workers irrelevant.
        for random in (self._chain, self._curve):
            random.set_random_state(seed=seed % 2**32)
        with _without_geometry():
            whole = self._chain(whole)
            if self.gamma:  # each sequence has a contrast of its own
                whole["image"] = torch.cat([self._curve(channel) for channel in whole["image"].split(1)])
        inside = whole["brain"] > 0.5
        return {
            "image": torch.where(inside, whole["image"], background),
            "labels": whole["labels"],
            "brain": inside,
        }

    @cached_property
    def _chain(self) -> Any:
        """The MONAI chain of what is switched on."""
        from math import radians

        import monai.transforms as mt

        everything, chance = ("image", "labels", "brain"), self.probability
        chain: list[Any] = [mt.RandFlipd(everything, prob=chance, spatial_axis=axis) for axis in self.flips]
        if self.rotation_degrees or self.scaling or self.translation:
            chain.append(
                mt.RandAffined(
                    everything,
                    prob=chance,
                    rotate_range=radians(self.rotation_degrees),
                    scale_range=self.scaling,
                    translate_range=self.translation,
                    mode=("bilinear", "nearest", "nearest"),
                    padding_mode=("border", "zeros", "zeros"),
                )
            )
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

        return mt.RandAdjustContrast(prob=self.probability, gamma=(1 / (1 + self.gamma), 1 + self.gamma))


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
