"""The noisy classifier p(y | x_t): the encoder half of the U-Net with one pooled answer, at any noise level.

Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv 2105.05233; its attention pooling is that of
Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, arXiv 2103.00020.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.blocks import CONVOLUTION, Conditioning, attended, each_row, sinusoids
from medseg_diff.networks.encoder import BlockMaker, EncoderSettings, GridLevel, padded, pixel_unshuffle
from medseg_diff.networks.norm import GroupNormSiLU
from medseg_diff.networks.unet import Axes

HEALTHY, DISEASED = 0, 1  # the order of the logits


class NoisyClassifierSettings(EncoderSettings):
    """Size and kind of the classifier.

    pooling: `attention` (one question, asked by the mean of all places) or `max_mean` (the largest and the mean of each
    feature, so that a small lesion is not averaged away).
    """

    kind: Literal["noisy_classifier"] = "noisy_classifier"
    width: int = Field(default=32, ge=8, le=2048)
    blocks: int = Field(default=4, ge=1, le=32)
    attention: tuple[GridLevel, ...] = (3, 4, 5)
    head_width: int | None = Field(default=64, ge=8, le=2048)
    time_embedding: Literal["adaptive", "additive"] = "adaptive"
    resampling: Literal["residual", "plain"] = "residual"
    pooling: Literal["attention", "max_mean"] = "attention"

    @property
    def attends(self) -> tuple[int, ...]:
        """The pooling attends to the deepest level, too."""
        deepest = (len(self.multipliers) - 1,) if self.pooling == "attention" else ()
        return tuple(dict.fromkeys([*super().attends, *deepest]))

    def build(self, *, dims: int, channels: int, classes: int = 2) -> "NoisyClassifier":
        """A classifier of x_t [B, channels, *S]."""
        return NoisyClassifier(self, dims=dims, channels=channels, classes=classes)


class NoisyClassifier(nn.Module):
    """logits of p(y | x_t): x_t [B, C, *S] with *S of any size, t [B] or [1] (one time for all) → [B, classes].

    The condition is not looked at: it is there because every network is called alike.
    """

    def __init__(self, settings: NoisyClassifierSettings, *, dims: int, channels: int, classes: int) -> None:
        super().__init__()
        self.settings, self.dims = settings, dims
        width, embedded = settings.width, settings.embedded
        self.embed_time = nn.Sequential(nn.Linear(width, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        block = BlockMaker(settings, dims, embedded)
        self.stem = CONVOLUTION[dims](channels * settings.stem**dims, width, 3, padding=1)
        self.down, widths = block.way_down()
        deepest = widths[-1]
        self.middle = block.middle(deepest)
        self.norm = GroupNormSiLU(deepest, settings.groups)
        pool = AttentionPooling if settings.pooling == "attention" else MaxMeanPooling
        self.pool = pool(deepest, classes, heads=block.heads(deepest))

    def channel_axes(self, x: Sequence[str], image: Sequence[str], outputs: Sequence[str]) -> Axes:
        """As of a `UNet`; it looks at x_t alone."""
        return {"stem.weight": (1, tuple(x))}

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        shown = Conditioning(self.embed_time(sinusoids(t, self.settings.width).to(x_t.dtype)))
        h = self.stem(pixel_unshuffle(padded(x_t, self.settings.step), self.settings.stem))
        for block in self.down:
            h = block(h, shown)
        return self.pool(self.norm(self.middle(h, shown)))


class AttentionPooling(nn.Module):
    """[B, C, *S] → [B, classes]: the mean of all places asks, and each place (and the mean) answers.

    Without the paper's learned positions, which would tie the weights to one image size.
    """

    def __init__(self, channels: int, classes: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        places = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1)
        parts = self.qkv(tokens).view(batch, -1, 3, self.heads, channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attention = attended(query[:, :, :1], key, value)
        return each_row(self.projection, attention.transpose(1, 2).reshape(batch, channels))


class MaxMeanPooling(nn.Module):
    """[B, C, *S] → [B, classes] from each feature's largest value and its mean."""

    def __init__(self, channels: int, classes: int, *, heads: int = 1) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2)
        return each_row(self.projection, torch.cat([places.amax(dim=2), places.mean(dim=2)], dim=1))
