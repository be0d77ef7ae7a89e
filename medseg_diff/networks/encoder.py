"""What networks of several levels have in common: the blocks of one network, made alike, the way down and the way up."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.networks.blocks import POOLING, Attention, Chain, CrossAttention, Resample, Residual
from medseg_diff.settings import Settings

LARGEST_NETWORK = 1e9  # parameters, roughly counted: a recipe with a digit too many must not fill the memory
Width = Annotated[int, Field(ge=1, le=2048)]
Multiplier = Annotated[int, Field(ge=1, le=64)]
Blocks = Annotated[int, Field(ge=1, le=32)]
GridLevel = Annotated[int, Field(ge=0, le=9)]


def check_levels(widths: Sequence[int], blocks: Sequence[int], *, attend: Sequence[int], part: int) -> None:
    """Raises: ValueError where levels of these widths, with so many blocks each, make a network beyond any memory, or where
    one of `attend` is no level, or has channels that do not divide by `part`."""
    numbers = sum(20 * count * width * width for width, count in zip(widths, blocks, strict=True))
    if numbers > LARGEST_NETWORK:
        raise ValueError(f"a network of about {numbers:.1e} parameters is too large; lower its widths or blocks")
    for level in attend:
        if level >= len(widths):
            raise ValueError(f"attention at level {level}, but the levels are 0 … {len(widths) - 1}")
        if widths[level] % part:
            raise ValueError(f"{widths[level]} channels at level {level} do not divide by {part}")


class EncoderSettings(Settings):
    """Size and kind of a network's levels. GridLevel 0 is the finest grid; each level halves it.

    `attention` lists the levels that attend (the middle always does where the list is not empty), with `heads` heads or,
    where `head_width` is given, as many as fit. `stem` 2 folds 2×2(×2) voxels into channels before the first level.
    `groups` of the norms: 32 in the papers; 8 is several times faster on a CPU at widths below 128.
    """

    width: int = Field(default=128, ge=8, le=2048)
    multipliers: tuple[Multiplier, ...] = Field(default=(1, 1, 2, 2, 4, 4), min_length=1, max_length=10)
    blocks: int = Field(default=2, ge=1, le=32)
    attention: tuple[GridLevel, ...] = (4,)
    heads: int = Field(default=1, ge=1, le=2048)
    head_width: int | None = Field(default=None, ge=8, le=2048)
    time_embedding: Literal["adaptive", "additive"] = "additive"
    resampling: Literal["residual", "plain"] = "plain"
    stem: int = Field(default=1, ge=1, le=4)
    groups: int = Field(default=32, ge=1, le=2048)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> "EncoderSettings":
        blocks = [self.blocks] * len(self.widths)
        check_levels(self.widths, blocks, attend=self.attends, part=self.head_width or self.heads)
        return self

    @property
    def attends(self) -> tuple[int, ...]:
        """Levels whose channels are split into heads: those of `attention` and, where there are any, the deepest."""
        deepest = len(self.multipliers) - 1
        return tuple(dict.fromkeys([*self.attention, deepest])) if self.attention else ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def embedded(self) -> int:
        """Length of the embedding of the time."""
        return 4 * self.width

    @property
    def step(self) -> int:
        """Every side must be a multiple of this, so that every level halves evenly."""
        return self.stem * 2 ** (len(self.multipliers) - 1)


class BlockMaker:
    """The blocks of one network, made alike; `embedded` is the length of the embedding that they are shown, and `tokens`
    that of a token, where what attends looks at tokens, too. `block` makes the residual ones."""

    def __init__(
        self,
        settings: EncoderSettings,
        dims: int,
        embedded: int,
        *,
        tokens: int = 0,
        block: Callable[..., Residual] = Residual,
    ) -> None:
        self.settings, self.dims, self.embedded, self.tokens, self.block = settings, dims, embedded, tokens, block

    def residual(self, channels: int, out: int, resize: nn.Module | None = None) -> Residual:
        return self.block(
            channels,
            out,
            self.embedded,
            dims=self.dims,
            groups=self.settings.groups,
            adaptive=self.settings.time_embedding == "adaptive",
            dropout=self.settings.dropout,
            resize=resize,
        )

    def attention(self, channels: int) -> list[nn.Module]:
        """Self-attention and, where there are tokens, cross-attention behind it."""
        heads, groups = self.heads(channels), self.settings.groups
        to_tokens = [CrossAttention(channels, heads, groups, tokens=self.tokens)] if self.tokens else []
        return [Attention(channels, heads, groups), *to_tokens]

    def heads(self, channels: int) -> int:
        width = self.settings.head_width
        return channels // width if width else self.settings.heads

    def with_attention(self, channels: int, out: int, level: int) -> Chain:
        attend = self.attention(out) if level in self.settings.attention else []
        return Chain([self.residual(channels, out), *attend])

    def resample(self, channels: int, way: Literal["down", "up"]) -> nn.Module:
        if self.settings.resampling == "plain":
            return Resample(channels, self.dims, way)
        pool = POOLING[self.dims](2) if way == "down" else nn.Upsample(scale_factor=2, mode="nearest")
        return self.residual(channels, channels, pool)

    def way_down(self) -> tuple[nn.ModuleList, list[int]]:
        """The chains from level 0 to the deepest, and the channels before the first and after each of them."""
        down, widths = nn.ModuleList(), [self.settings.width]
        for level, out in enumerate(self.settings.widths):
            for _ in range(self.settings.blocks):
                down.append(self.with_attention(widths[-1], out, level))
                widths.append(out)
            if level < len(self.settings.widths) - 1:
                down.append(Chain([self.resample(out, "down")]))
                widths.append(out)
        return down, widths

    def way_up(self, channels: int, skips: Sequence[int]) -> tuple[nn.ModuleList, int]:
        """The chains from the deepest level, `channels` wide, to level 0, one more a level than on the way down, and the
        channels behind the last. Beside what comes from below, the first is shown the last number of `skips`, and so on."""
        up, beside = nn.ModuleList(), list(skips)
        for level, out in reversed(list(enumerate(self.settings.widths))):
            for i in range(self.settings.blocks + 1):
                chain = self.with_attention(channels + beside.pop(), out, level)
                channels = out
                if level > 0 and i == self.settings.blocks:
                    chain.append(self.resample(channels, "up"))
                up.append(chain)
        return up, channels

    def middle(self, channels: int) -> Chain:
        attend = self.attention(channels) if self.settings.attention else []
        return Chain([self.residual(channels, channels), *attend, self.residual(channels, channels)])


def as_multiplied(x: Tensor) -> Tensor:
    """x in the dtype that a convolution multiplies it in: rounded before it is rearranged, there is half of it to move."""
    kind = x.device.type
    rounded = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if rounded else x


def padded(x: Tensor, step: int) -> Tensor:
    """Repeat the far edge of [B, C, *S] until every side is a multiple of `step`."""
    missing = [-n % step for n in reversed(x.shape[2:])]
    if not any(missing):
        return x
    return functional.pad(x, [side for n in missing for side in (0, n)], mode="replicate")


def pixel_unshuffle(x: Tensor, stem: int) -> Tensor:
    """Space to depth: [B, C, *S] → [B, C stem^dims, *S / stem]."""
    if stem == 1:
        return x
    batch, channels, *size = x.shape
    dims = len(size)
    parts = [n for side in size for n in (side // stem, stem)]
    inner = [3 + 2 * axis for axis in range(dims)]
    outer = [2 + 2 * axis for axis in range(dims)]
    mixed = x.reshape(batch, channels, *parts).permute(0, 1, *inner, *outer)
    return mixed.reshape(batch, channels * stem**dims, *(side // stem for side in size))


def pixel_shuffle(x: Tensor, stem: int) -> Tensor:
    """Depth to space, the inverse of `pixel_unshuffle`."""
    if stem == 1:
        return x
    batch, channels, *size = x.shape
    dims = len(size)
    parts = x.reshape(batch, channels // stem**dims, *(stem,) * dims, *size)
    mixed = [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
    return parts.permute(0, 1, *mixed).reshape(batch, channels // stem**dims, *(side * stem for side in size))
