"""The parts of the diffusion papers' U-Nets: residual block, attention, resampling, time embedding."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.norm import GroupNorm, GroupNormSiLU

POOLING: dict[int, type[nn.AvgPool2d] | type[nn.AvgPool3d]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
LONGEST_PERIOD = 10_000
SHORTEST = 2  # voxels; see `Convolution3d`
QUERIES = 16  # floats of a cache line
ROWS = 4  # rows that a CPU multiplies at once


def in_float32(kind: str) -> AbstractContextManager[object]:
    """Outside of an autocast, on a kind of device that has one."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


class Convolution3d(nn.Conv3d):
    """A convolution of volumes that also learns where one of their sides is next to nothing.

    On a CPU the gradient of its weights in bfloat16 is multiplied with memory that nobody has written to, where an axis is
    one or two voxels long (torch 2.13 with oneDNN), and is not finite where that happens to hold no number. Such grids are
    small: while something is learned they are computed in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or min(x.shape[2:]) > SHORTEST or not torch.is_grad_enabled():
            return super().forward(x)
        with in_float32("cpu"):
            return super().forward(x.float())


CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: Convolution3d}


class Conditioning(NamedTuple):
    """What every block is shown beside x: an embedding [B, D] or [1, D], and where a network has them tokens [B, N, D] to
    attend to, and a map [B, K, *S]."""

    embedding: Tensor
    tokens: Tensor | None = None
    map: Tensor | None = None


class Residual(nn.Module):
    """Norm, SiLU, convolution, twice, with the time embedding between; optionally changing the resolution on the way."""

    def __init__(
        self,
        channels: int,
        out: int,
        embedded: int,
        *,
        dims: int,
        groups: int,
        adaptive: bool,
        dropout: float = 0.0,
        resize: nn.Module | None = None,
    ) -> None:
        super().__init__()
        convolution = CONVOLUTION[dims]
        self.adaptive = adaptive
        self.norm_in: nn.Module = GroupNormSiLU(channels, groups)
        self.resize = resize
        self.conv_in = convolution(channels, out, 3, padding=1)
        self.project = nn.Sequential(nn.SiLU(), nn.Linear(embedded, 2 * out if self.adaptive else out))
        self.norm_out: nn.Module = GroupNormSiLU(out, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(convolution(out, out, 3, padding=1))
        self.shortcut = convolution(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, shown: Conditioning) -> Tensor:
        h = self.normed(self.norm_in, x, shown)
        if self.resize is not None:
            h, x = self.resize(h), self.resize(x)
        h = self.conv_in(h)
        projected = each_row(self.project, shown.embedding)
        if self.adaptive:
            h = self.normed(
                self.norm_out, h, shown, *projected.chunk(2, dim=1)
            )  # ADM Eq. 2: y_s norm(h) + y_b, then SiLU
        else:
            h = self.normed(
                self.norm_out, h + projected.to(h.dtype).view(*projected.shape, *(1,) * (h.ndim - 2)), shown
            )
        return self.shortcut(x) + self.conv_out(self.dropout(h))

    def normed(self, norm: nn.Module, x: Tensor, shown: Conditioning, *affine: Tensor) -> Tensor:
        """SiLU of the norm of x, with each sample's own scale and shift [B, C] on top where there are such."""
        return norm(x, *affine)


def each_row(linear: nn.Module, rows: Tensor) -> Tensor:
    """linear(rows) [B, D] → [B, E], with the same bytes for a row wherever it stands.

    On a CPU threads share the rows, and multiply fewer than ROWS of them in another order. They are therefore given
    multiples of it, or one row, which has no neighbours.
    """
    surplus = -len(rows) % ROWS if len(rows) > 1 else 0
    return linear(functional.pad(rows, (0, 0, 0, surplus)))[: len(rows)] if surplus else linear(rows)


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, query [B, heads, Q, D], key and value [B, heads, K, D] → [B, heads, Q, D].

    On a CPU the threads share one buffer, each beginning where the one before it ends, and multiply in another order
    where that is not at a whole cache line: then a sample's last bits would depend on its place in the batch. Questions
    are therefore asked in multiples of QUERIES.
    """
    asked = query.shape[2]
    surplus = -asked % QUERIES
    if not surplus:
        return functional.scaled_dot_product_attention(query, key, value)
    query = functional.pad(query, (0, 0, 0, surplus))
    attention = functional.scaled_dot_product_attention(query, key, value)[:, :, :asked]
    return attention.transpose(1, 2).contiguous().transpose(1, 2)  # as it lies without: products depend on that, too


class Attention(nn.Module):
    """Every voxel looks at every other: [B, C, *S] → [B, C, *S]."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)  # query, key and value
        self.projection = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, shown: Conditioning | None = None) -> Tensor:
        batch, channels, *size = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        parts = self.qkv(tokens).view(batch, -1, 3, self.heads, channels // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attention = attended(query, key, value)
        change = self.projection(attention.transpose(1, 2).reshape(batch, -1, channels))
        return x + change.transpose(1, 2).reshape(batch, channels, *size)


class CrossAttention(nn.Module):
    """Every voxel looks at the tokens [B, N, D] that are shown: [B, C, *S] → [B, C, *S]."""

    def __init__(self, channels: int, heads: int, groups: int, *, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(channels, groups)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(tokens, 2 * channels)
        self.projection = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, shown: Conditioning) -> Tensor:
        assert shown.tokens is not None, "this block was built for tokens"
        batch, channels, *size = x.shape
        voxels = self.norm(x).flatten(2).transpose(1, 2)
        query = self.query(voxels).view(batch, -1, self.heads, channels // self.heads).transpose(1, 2)
        parts = each_row(self.key_value, shown.tokens.flatten(0, 1))
        key, value = parts.view(batch, -1, 2, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        change = self.projection(attended(query, key, value).transpose(1, 2).reshape(batch, -1, channels))
        return x + change.transpose(1, 2).reshape(batch, channels, *size)


class Resample(nn.Module):
    """Plain resampling with a convolution: stride 2 downwards, nearest neighbour then 3×3 upwards."""

    def __init__(self, channels: int, dims: int, way: Literal["down", "up"]) -> None:
        super().__init__()
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest") if way == "up" else nn.Identity()
        self.conv = CONVOLUTION[dims](channels, channels, 3, padding=1, stride=2 if way == "down" else 1)

    def forward(self, x: Tensor, shown: Conditioning) -> Tensor:
        return self.conv(self.enlarge(x))


class Chain(nn.ModuleList):
    """Modules one after the other, each shown the same."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)

    def forward(self, x: Tensor, shown: Conditioning) -> Tensor:
        for module in self:
            x = module(x, shown)
        return x


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Cosines and sines of t [B] at periods 2π … 2π · 10,000: float32 [B, width]."""
    half = width // 2
    rates = torch.exp(-math.log(LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * rates[None]
    return functional.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


def known_or_null(known: Tensor, keep: Tensor | None, null: Tensor) -> Tensor:
    """A part of the condition [B, …] where `keep` [B] says so, else the learned `null` [1, …] in its dtype."""
    if keep is None:
        return known
    return torch.where(keep.view(-1, *(1,) * (known.ndim - 1)), known, null.to(known.dtype))


def with_image(x_t: Tensor, condition: Condition, null: Tensor | None) -> Tensor:
    """x_t with the condition image behind it, the learned null image where it is not known; x_t alone without such."""
    if null is None:
        return x_t
    assert condition.image is not None, "this network was built for a condition image"
    return torch.cat([x_t, known_or_null(condition.image.to(x_t.dtype), condition.keep, null)], dim=1)


def null_image(channels: int, dims: int) -> nn.Parameter | None:
    """What `with_image` takes for an image that is not known; None for a network without condition image."""
    return nn.Parameter(torch.zeros(1, channels, *(1,) * dims)) if channels else None


def cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` voxels along each axis of [B, C, *S]: what padding added is gone."""
    return x[(slice(None), slice(None), *(slice(n) for n in size))]


def head(channels: int, outputs: int, *, dims: int, groups: int) -> nn.Sequential:
    """Norm, SiLU and a convolution from [B, channels, *S] to the [B, outputs, *S] that a network says, zero at first."""
    convolution = zeroed(CONVOLUTION[dims](channels, outputs, 3, padding=1))
    return nn.Sequential(OrderedDict([("0", GroupNormSiLU(channels, groups)), ("2", convolution)]))  # names of weights


def zeroed(module: nn.Module) -> nn.Module:
    """Start a branch as zero, so that the network begins as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
