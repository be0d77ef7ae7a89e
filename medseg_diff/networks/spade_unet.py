"""A U-Net that paints what a mask says: the norms of its decoder are modulated by the mask, voxel by voxel.

Park et al., Semantic Image Synthesis with Spatially-Adaptive Normalization, 2019, arXiv 1903.07291; in the decoder of a
diffusion model: Shrivastava & Fletcher, NASDM, 2023, arXiv 2303.11477. Of a mask that is shown beside x_t the norms wash
out what is the same everywhere; here it comes behind each of them.
"""

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.blocks import CONVOLUTION, Conditioning, Residual, known_or_null, zeroed
from medseg_diff.networks.encoder import BlockMaker, EncoderSettings, as_multiplied, padded, pixel_unshuffle
from medseg_diff.networks.norm import GroupNorm, silu_of_each
from medseg_diff.networks.unet import UNet, UNetSettings


class SpadeUNetSettings(EncoderSettings):
    """Size and kind of the U-Net, the channels of the mask, one for each class, and the `hidden` channels between the mask
    and what each norm makes of it."""

    kind: Literal["spade"] = "spade"
    map_channels: int = Field(default=1, ge=1, le=256)
    hidden: int = Field(default=32, ge=1, le=2048)

    @property
    def unet(self) -> UNetSettings:
        """The U-Net as one that is shown no mask."""
        return UNetSettings(**self.model_dump(exclude={"kind", "map_channels", "hidden"}))

    def build(self, *, dims: int, channels: int, outputs: int, image_channels: int = 0) -> "SpadeUNet":
        """A network from [B, channels, *S], a mask [B, map_channels, *S] and a condition image of `image_channels` to
        [B, outputs, *S]."""
        return SpadeUNet(self, dims=dims, channels=channels, outputs=outputs, image_channels=image_channels)


class SpadeUNet(UNet):
    """f(x_t, t, mask): a `UNet` whose decoder is shown the condition's mask [B, K, *S], one-hot classes, and its edges.

    A mask on another grid is brought to that of x_t. Where it is not known, a learned null map stands in its place.
    """

    def __init__(
        self, settings: SpadeUNetSettings, *, dims: int, channels: int, outputs: int, image_channels: int = 0
    ) -> None:
        seen = settings.map_channels + 1
        block = partial(SpadeResidual, map_channels=seen * settings.stem**dims, hidden=settings.hidden)
        decoder = BlockMaker(settings, dims, settings.embedded, block=block)
        shape = {"dims": dims, "channels": channels, "outputs": outputs, "image_channels": image_channels}
        super().__init__(settings.unet, **shape, decoder=decoder)
        self.null_map = nn.Parameter(torch.zeros(1, seen, *(1,) * dims))

    def prepare(self, condition: Condition) -> Condition:
        """The condition with the edges of its mask behind it: [B, K, *S] → [B, K + 1, *S]."""
        if condition.mask is None or condition.mask.shape[1] == self.null_map.shape[1]:
            return condition
        return condition._replace(mask=with_edges(condition.mask))

    def conditioning(self, x_t: Tensor, t: Tensor, condition: Condition) -> Conditioning:
        """The time, and the mask with its edges on the grid of x_t."""
        seen = self.null_map.to(x_t.dtype)
        if (mask := self.prepare(condition).mask) is not None:
            assert mask.shape[1] == seen.shape[1], f"this network was built for masks of {seen.shape[1] - 1} channels"
            seen = known_or_null(on_grid_of(x_t, mask.to(x_t.dtype)), condition.keep, seen)
        seen = seen.expand(len(x_t), -1, *x_t.shape[2:])
        shown = super().conditioning(x_t, t, condition)
        seen = pixel_unshuffle(padded(as_multiplied(seen), self.settings.step), self.settings.stem)
        return shown._replace(
            map=seen.contiguous()
        )  # in one layout, whoever made the mask: another one rounds otherwise


class SpadeResidual(Residual):
    """A residual block whose norms are modulated by the map that it is shown."""

    def __init__(
        self, channels: int, out: int, embedded: int, *, map_channels: int, hidden: int, **others: Any
    ) -> None:
        super().__init__(channels, out, embedded, **others)
        dims, groups = others["dims"], others["groups"]
        self.norm_in = SpadeNormSiLU(channels, map_channels, hidden, dims=dims, groups=groups)
        self.norm_out = SpadeNormSiLU(out, map_channels, hidden, dims=dims, groups=groups)

    def normed(self, norm: nn.Module, x: Tensor, shown: Conditioning, *affine: Tensor) -> Tensor:
        return norm(x, shown.map, *affine)


class SpadeNormSiLU(nn.Module):
    """SiLU of norm(x) (1 + gamma) + beta for x [B, C, *S]; gamma and beta [B, C, *S] come from a mask [B, K, *R].

    They are zero at first, so that the norm begins as it is without a mask. A sample's own `scale` and `shift` [B, C] come
    on top.
    """

    def __init__(self, channels: int, map_channels: int, hidden: int, *, dims: int, groups: int) -> None:
        super().__init__()
        convolution = CONVOLUTION[dims]
        self.norm = GroupNorm(channels, groups)
        self.look = convolution(map_channels, hidden, 3, padding=1)
        self.modulate = zeroed(convolution(hidden, 2 * channels, 3, padding=1))

    def forward(self, x: Tensor, mask: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        h = self.norm(x)
        seen = functional.relu(self.look(on_grid_of(x, mask)))
        gamma, beta = self.modulate(seen).to(h.dtype).chunk(2, dim=1)
        h = torch.addcmul(beta, h, 1 + gamma)  # SPADE Eq. 1
        if scale is not None and shift is not None:
            of_time = torch.stack([1 + scale, shift]).to(h.dtype)
            factor, offset = of_time.view(*of_time.shape, *(1,) * (h.ndim - 2))
            h = torch.addcmul(offset, h, factor)  # ADM Eq. 2: y_s h + y_b, then SiLU
        return silu_of_each(h)


def on_grid_of(x: Tensor, mask: Tensor) -> Tensor:
    """A mask [B, K, *R] on the grid of x [B, C, *S]: in each voxel the nearest one, so that classes stay classes."""
    return mask if mask.shape[2:] == x.shape[2:] else functional.interpolate(mask, x.shape[2:], mode="nearest")


def with_edges(mask: Tensor) -> Tensor:
    """A mask [B, K, *S] and behind it where its classes meet: 1 in each voxel that differs from one of its neighbours."""
    edges = torch.zeros_like(mask[:, :1], dtype=torch.bool)
    for axis in range(2, mask.ndim):
        before, after = (mask.narrow(axis, start, mask.shape[axis] - 1) for start in (0, 1))
        differs = (before != after).any(dim=1, keepdim=True)
        for start in (0, 1):
            edges.narrow(axis, start, differs.shape[axis]).logical_or_(differs)
    return torch.cat([mask, edges.to(mask.dtype)], dim=1)
