"""The U-Net of the diffusion papers, in 2D and 3D from one class.

Ho et al., 2020, arXiv 2006.11239 (additive time embedding, plain resampling); Dhariwal & Nichol, Diffusion Models Beat
GANs on Image Synthesis, 2021, arXiv 2105.05233 (adaptive group norm, residual resampling, attention at several levels).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.blocks import (
    CONVOLUTION,
    Conditioning,
    cropped,
    head,
    known_or_null,
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


class ChannelNames(NamedTuple):
    """What the channels of x_t, of the condition image and of the output are called."""

    x: tuple[str, ...]
    image: tuple[str, ...]
    outputs: tuple[str, ...]


# Of tensors that have places for each channel: along which axis, and the names of the channels in their order there.
Axes = dict[str, tuple[int, tuple[str, ...]]]


class UNetSettings(EncoderSettings):
    """Size and kind of a U-Net; `classes` labels and `covariates` numbers may condition it beside the time."""

    kind: Literal["unet"] = "unet"
    classes: int = Field(default=0, ge=0, le=1000)
    covariates: int = Field(default=0, ge=0, le=1000)

    def build(self, *, dims: int, channels: int, outputs: int, image_channels: int = 0) -> "UNet":
        """A network from [B, channels, *S] and a condition image of `image_channels` to [B, outputs, *S]."""
        return UNet(self, dims=dims, channels=channels, outputs=outputs, image_channels=image_channels)


class UNet(nn.Module):
    """f(x_t, t, condition): x_t [B, C, *S] with *S of any size, t [B] or [1] (one time for all) → [B, outputs, *S]."""

    def __init__(
        self, settings: UNetSettings, *, dims: int, channels: int, outputs: int, image_channels: int = 0
    ) -> None:
        super().__init__()
        self.settings, self.dims = settings, dims
        width, fold = settings.width, settings.stem**dims
        embedded = 4 * width
        self.embed_time = nn.Sequential(nn.Linear(width, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.embed_known = KnownFacts(settings.classes, settings.covariates, embedded)
        self.null_image = null_image(image_channels, dims)

        block = BlockMaker(settings, dims, embedded)
        self.stem = CONVOLUTION[dims]((channels + image_channels) * fold, width, 3, padding=1)
        self.down, skips = block.way_down()
        self.middle = block.middle(skips[-1])
        self.up, here = block.way_up(skips[-1], skips)
        self.head = head(here, outputs * fold, dims=dims, groups=settings.groups)

    def channel_axes(self, x: Sequence[str], image: Sequence[str], outputs: Sequence[str]) -> Axes:
        """Where channels of these names have their places: equally many for each, side by side."""
        head = {f"head.2.{name}": (0, tuple(outputs)) for name in ("weight", "bias")}
        null = {"null_image": (1, tuple(image))} if image else {}
        return {"stem.weight": (1, (*x, *image)), **head, **null}

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x = with_image(x_t, condition, self.null_image)
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
        return Conditioning(
            self.embed_known(self.embed_time(sinusoids(t, self.settings.width).to(x_t.dtype)), condition)
        )


class KnownFacts(nn.Module):
    """Label and covariates added to the time embedding; learned null embeddings where they are not known."""

    def __init__(self, classes: int, covariates: int, embedded: int) -> None:
        super().__init__()
        self.label = nn.Embedding(classes + 1, embedded) if classes else None  # the last row is the null embedding
        self.covariates = nn.Linear(covariates, embedded) if covariates else None
        self.null_covariates = nn.Parameter(torch.zeros(embedded)) if covariates else None

    def forward(self, embedding: Tensor, condition: Condition) -> Tensor:
        """[B, D] → [B, D]."""
        if self.label is not None:
            null = self.label.num_embeddings - 1
            label = condition.label
            if label is None:
                label = torch.full((len(embedding),), null, device=embedding.device)
            elif condition.keep is not None:
                label = torch.where(condition.keep, label, null)
            embedding = embedding + self.label(label)
        if self.covariates is not None and self.null_covariates is not None:
            if condition.covariates is None:
                return embedding + self.null_covariates
            known = self.covariates(condition.covariates.to(embedding.dtype))
            embedding = embedding + known_or_null(known, condition.keep, self.null_covariates)
        return embedding
