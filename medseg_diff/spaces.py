"""Where diffusion happens: what becomes of an image before the networks see it, and how it comes back."""

from typing import Literal, Protocol

from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion import Condition
from medseg_diff.settings import Settings


class Space(Protocol):
    """Where x_0 lives. Diffusion itself is the same in every space."""

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

    def encode(self, image: Tensor) -> Tensor:
        return image if self == PLAIN else image * self.scale + self.offset

    def decode(self, x: Tensor) -> Tensor:
        return x if self == PLAIN else (x - self.offset) / self.scale

    def condition(self, condition: Condition) -> Condition:
        return condition if condition.image is None else condition._replace(image=self.encode(condition.image))


AnySpace = ImageSpace  # a union by `kind`, as soon as there is a second
PLAIN = ImageSpace()  # x_0 is the image
