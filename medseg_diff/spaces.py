"""Where diffusion happens: what becomes of an image before the networks see it, and how it comes back.

Latent diffusion: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2021, arXiv 2112.10752.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion import Condition
from medseg_diff.diffusion.coarse import coarse
from medseg_diff.networks.autoencoders import Autoencoder
from medseg_diff.networks.encoder import padded
from medseg_diff.settings import Settings


class Space(Protocol):
    """Where x_0 lives, and how many voxels of an image, along each axis, a place of it stands for. Diffusion itself is the
    same in every space."""

    @property
    def step(self) -> int: ...

    def encode(self, image: Tensor) -> Tensor:
        """x_0 [B, D, *R] of image [B, C, *S]."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """image [B, C, *S] of x [B, D, *R]."""
        ...

    def condition(self, condition: Condition) -> Condition:
        """The condition with its image and mask on the grid of x_0."""
        ...


class ImageSpace(Settings):
    """x_0 is the image × `scale` + `offset`, on its own grid: 0.5 and 0.5 bring [-1, 1] to [0, 1].

    What a condition shows lies in the same units.
    """

    kind: Literal["image"] = "image"
    scale: float = Field(default=1.0, gt=0)
    offset: float = 0.0

    @property
    def step(self) -> int:
        return 1

    def encode(self, image: Tensor) -> Tensor:
        return image if self == PLAIN else image * self.scale + self.offset

    def decode(self, x: Tensor) -> Tensor:
        return x if self == PLAIN else (x - self.offset) / self.scale

    def condition(self, condition: Condition) -> Condition:
        return condition if condition.image is None else condition._replace(image=self.encode(condition.image))


PLAIN = ImageSpace()  # x_0 is the image


@dataclass(frozen=True)
class LatentSpace:
    """x_0 [B, D, *R] is an autoencoder's latent of the image, of mean 0 and deviation 1. Nothing is learned here."""

    autoencoder: Autoencoder

    @property
    def step(self) -> int:
        return self.autoencoder.settings.step

    def encode(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return self.autoencoder.encode(image)

    def decode(self, x: Tensor) -> Tensor:
        """image [B, C, *S], S a multiple of the autoencoder's step."""
        with torch.no_grad():
            return self.autoencoder.decode(x).float()

    def condition(self, condition: Condition) -> Condition:
        """Image and mask as means over the voxels that each place stands for."""

        def on_grid(part: Tensor | None) -> Tensor | None:
            return None if part is None else coarse(padded(part, self.step), self.step)

        return condition._replace(image=on_grid(condition.image), mask=on_grid(condition.mask))
