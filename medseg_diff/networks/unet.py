"""The U-Net of the diffusion papers, in 2D and 3D from one class.

Ho et al., 2020, arXiv 2006.11239 (additive time embedding, plain resampling); Dhariwal & Nichol, Diffusion Models Beat
GANs on Image Synthesis, 2021, arXiv 2105.05233 (adaptive group norm, residual resampling, attention at several levels).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.blocks import (
    CONVOLUTION,
    Conditioning,
    cropped,
    head,
    null_image,
    sinusoids,
    with_image,
)
from medseg_diff.networks.encoder import (
    BlockMaker,
    EncoderSettings,
    as_multiplied,
    padded,
    pixel_shuffle,
    pixel_unshuffle,
)
from medseg_diff.networks.facts import CovariateChannels, CovariateTokens, KnownFacts


class ChannelNames(NamedTuple):
    """What the channels of x_t, of the condition image and of the output are called."""

    x: tuple[str, ...]
    image: tuple[str, ...]
    outputs: tuple[str, ...]


# Of tensors that have places for each channel: along which axis, and the names of the channels in their order there.
Axes = dict[str, tuple[int, tuple[str, ...]]]


CovariateWay = Literal["embedding", "channels", "attention"]


class UNetSettings(EncoderSettings):
    """Size and kind of a U-Net; `classes` labels and `covariates` numbers may condition it beside the time.

    `covariates_by`: the ways they reach it, one or several. `embedding` adds them to that of the time, `channels` shows each
    as a channel beside x_t, with `attention` whatever attends looks at a token of each.
    """

    kind: Literal["unet"] = "unet"
    classes: int = Field(default=0, ge=0, le=1000)
    covariates: int = Field(default=0, ge=0, le=1000)
    covariates_by: tuple[CovariateWay, ...] = Field(default=("embedding",), min_length=1)

    @model_validator(mode="after")
    def _covariates_reach_it(self) -> "UNetSettings":
        if len(set(self.covariates_by)) < len(self.covariates_by):
            raise ValueError(f"covariates_by names a way twice: {', '.join(self.covariates_by)}")
        if self.covariates_through("attention") and not self.attention:
            raise ValueError("covariates_by attention needs levels with attention: set attention")
        return self

    def covariates_through(self, way: CovariateWay) -> int:
        """How many covariates reach it this way."""
        return self.covariates if way in self.covariates_by else 0

    def build(self, *, dims: int, channels: int, outputs: int, image_channels: int = 0) -> "UNet":
        """A network from [B, channels, *S] and a condition image of `image_channels` to [B, outputs, *S]."""
        return UNet(self, dims=dims, channels=channels, outputs=outputs, image_channels=image_channels)


class UNet(nn.Module):
    """f(x_t, t, condition): x_t [B, C, *S] with *S of any size, t [B] or [1] (one time for all) → [B, outputs, *S].

    `decoder` makes the blocks of the way up, where they are other ones than on the way down.
    """

    def __init__(
        self,
        settings: UNetSettings,
        *,
        dims: int,
        channels: int,
        outputs: int,
        image_channels: int = 0,
        decoder: BlockMaker | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.dims = settings, dims
        width, embedded, fold = settings.width, settings.embedded, settings.stem**dims
        self.embed_time = nn.Sequential(nn.Linear(width, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.embed_known = KnownFacts(settings.classes, settings.covariates_through("embedding"), embedded)
        self.null_image = null_image(image_channels, dims)
        as_channels, as_tokens = (settings.covariates_through(way) for way in ("channels", "attention"))
        self.covariate_channels = CovariateChannels(as_channels) if as_channels else None
        self.covariate_tokens = CovariateTokens(as_tokens, embedded) if as_tokens else None

        block = BlockMaker(settings, dims, embedded, tokens=embedded if as_tokens else 0)
        self.stem = CONVOLUTION[dims]((channels + image_channels + as_channels) * fold, width, 3, padding=1)
        self.down, skips = block.way_down()
        self.middle = block.middle(skips[-1])
        self.up, here = (decoder or block).way_up(skips[-1], skips)
        self.head = head(here, outputs * fold, dims=dims, groups=settings.groups)

    def channel_axes(self, x: Sequence[str], image: Sequence[str], outputs: Sequence[str]) -> Axes:
        """Where channels of these names have their places: equally many for each, side by side."""
        head = {f"head.2.{name}": (0, tuple(outputs)) for name in ("weight", "bias")}
        null = {"null_image": (1, tuple(image))} if image else {}
        covariates = [f"covariate {i}" for i in range(self.settings.covariates_through("channels"))]
        return {"stem.weight": (1, (*x, *image, *covariates)), **head, **null}

    def prepare(self, condition: Condition) -> Condition:
        """The condition with the tokens [B, K, D] of its covariates as its context, where this network attends to such."""
        if self.covariate_tokens is None or condition.covariates is None or condition.context is not None:
            return condition
        return condition._replace(context=self.covariate_tokens.known(condition.covariates))

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x = with_image(x_t, condition, self.null_image)
        if self.covariate_channels is not None:
            x = self.covariate_channels(x, condition)
        x = pixel_unshuffle(padded(as_multiplied(x), self.settings.step), self.settings.stem)
        shown = self.conditioning(x_t, t, condition)
        h = self.stem(x)
        skips = [h]
        for block in self.down:
            h = block(h, shown)
            skips.append(h)
        h = self.middle(h, shown)
        for block in self.up:
            h = block(torch.cat([h, skips.pop()], dim=1), shown)
        return cropped(pixel_shuffle(self.head(h), self.settings.stem), x_t.shape[2:])

    def conditioning(self, x_t: Tensor, t: Tensor, condition: Condition) -> Conditioning:
        """What the blocks are shown beside the image."""
        embedding = self.embed_known(self.embed_time(sinusoids(t, self.settings.width).to(x_t.dtype)), condition)
        if self.covariate_tokens is None:
            return Conditioning(embedding)
        return Conditioning(embedding, self.covariate_tokens(len(x_t), self.prepare(condition)))
