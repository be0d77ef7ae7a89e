"""The noisy classifier p(y | x_t): the encoder half of the U-Net with one pooled answer, at any noise level.

Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv 2105.05233; its attention pooling is that of
Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, arXiv 2103.00020.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.blocks import CONVOLUTION, Conditioning, attended, each_row, in_float32, sinusoids
from medseg_diff.networks.encoder import BlockMaker, EncoderSettings, GridLevel, padded, pixel_unshuffle
from medseg_diff.networks.norm import GroupNormSiLU
from medseg_diff.networks.unet import Axes

HEALTHY, DISEASED = 0, 1  # the order of the logits


class NoisyClassifierSettings(EncoderSettings):
    """Size and kind of the classifier.

    pooling: `attention` (one question, asked by the mean of all places), `max_mean` (the largest and the mean of each
    feature, so that a small lesion is not averaged away) or `levels` (the mean of each feature of every level, for what is
    an amount: volumes, ages).
    """

    kind: Literal["noisy_classifier"] = "noisy_classifier"
    width: int = Field(default=32, ge=8, le=2048)
    blocks: int = Field(default=4, ge=1, le=32)
    attention: tuple[GridLevel, ...] = (3, 4, 5)
    head_width: int | None = Field(default=64, ge=8, le=2048)
    time_embedding: Literal["adaptive", "additive"] = "adaptive"
    resampling: Literal["residual", "plain"] = "residual"
    pooling: Literal["attention", "max_mean", "levels"] = "attention"

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
        self.pool: AttentionPooling | MaxMeanPooling | LevelsPooling
        if settings.pooling == "attention":
            self.pool = AttentionPooling(deepest, classes, heads=block.heads(deepest))
        elif settings.pooling == "max_mean":
            self.pool = MaxMeanPooling(deepest, classes)
        else:
            self.pool = LevelsPooling(sum(settings.widths), classes)

    def channel_axes(self, x: Sequence[str], image: Sequence[str], outputs: Sequence[str]) -> Axes:
        """As of a `UNet`; it looks at x_t alone."""
        return {"stem.weight": (1, tuple(x))}

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        return self.pool(self._maps(x_t, t))

    def maps(self, image: Tensor) -> list[Tensor]:
        """What it sees in a clean image [B, C, *S]: the maps [B, F, *R] of every level, finest first."""
        return self._maps(image, torch.ones(1, device=image.device))  # of all times the one with the least noise

    def read(self, image: Tensor) -> "Reading":
        """All that it says of a clean image [B, C, *S], where `pooling` is `levels`."""
        assert isinstance(self.pool, LevelsPooling)
        maps = self.maps(image)
        features = self.pool.features(maps)
        return Reading(maps, features, self.pool.answer(features))

    def _maps(self, x_t: Tensor, t: Tensor) -> list[Tensor]:
        shown = Conditioning(self.embed_time(sinusoids(t, self.settings.width).to(x_t.dtype)))
        h = self.stem(pixel_unshuffle(padded(x_t, self.settings.step), self.settings.stem))
        maps = [h]
        for block in self.down:
            h = block(h, shown)
            maps = [*maps[:-1], h] if h.shape[2:] == maps[-1].shape[2:] else [*maps, h]
        return [*maps[:-1], self.norm(self.middle(h, shown))]


class Reading(NamedTuple):
    """What a network sees in an image: the maps [B, C, *R] of every level, their standardised means [B, F], and its answer
    [B, K]."""

    maps: list[Tensor]
    features: Tensor
    answer: Tensor


class AttentionPooling(nn.Module):
    """[B, C, *S] of the deepest level → [B, classes]: the mean of all places asks, each place (and the mean) answers.

    Without the paper's learned positions, which would tie the weights to one image size.
    """

    def __init__(self, channels: int, classes: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[-1]
        batch, channels = x.shape[:2]
        places = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1)
        parts = self.qkv(tokens).view(batch, -1, 3, self.heads, channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attention = attended(query[:, :, :1], key, value)
        return each_row(self.projection, attention.transpose(1, 2).reshape(batch, channels))


class MaxMeanPooling(nn.Module):
    """[B, C, *S] of the deepest level → [B, classes] from each feature's largest value and its mean."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * channels, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        places = maps[-1].flatten(2)
        return each_row(self.projection, torch.cat([places.amax(dim=2), places.mean(dim=2)], dim=1))


class LevelsPooling(nn.Module):
    """[B, C, *S] of every level → [B, classes] from each feature's mean, brought to deviation 1 over the images trained on.

    Means of whole images differ by little: without that, it takes thousands of steps until they are told apart. In float32,
    for the same reason.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = Standardise(channels)
        self.projection = nn.Linear(channels, classes)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """[B, F]: what is told apart."""
        means = [functional.silu(each.float()).flatten(2).mean(dim=2) for each in maps]
        features: Tensor = self.norm(torch.cat(means, dim=1))
        return features

    def answer(self, features: Tensor) -> Tensor:
        """[B, F] → [B, classes]."""
        with in_float32(features.device.type):
            return each_row(self.projection, features)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.answer(self.features(maps))


class Standardise(nn.Module):
    """Features [B, F] of mean 0 and deviation 1: over the batch while it is learned from, then by the moving averages of
    what was measured there (Ioffe & Szegedy, Batch Normalization, 2015, arXiv 1502.03167, without scale and shift)."""

    mean: Tensor
    variance: Tensor

    def __init__(self, features: int, *, momentum: float = 0.05, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.mean, self.variance
        if self.training:
            variance, mean = torch.var_mean(x, dim=0)
            with torch.no_grad():  # what is not finite is left out, as is the update that it would lead to
                for kept, now in ((self.mean, mean), (self.variance, variance)):
                    kept.lerp_(torch.where(now.isfinite(), now, kept), self.momentum)
        return (x - mean) / (variance + self.epsilon).sqrt()
