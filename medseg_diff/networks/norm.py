"""Group normalisation whose answer for a sample does not depend on the samples beside it, fast in both directions.

Wu & He, Group Normalization, 2018, arXiv 1803.08494. On the CPU, PyTorch's channels-last kernel splits its sums by batch
size, is slow in bfloat16 below 1024 voxels, and its backward in bfloat16 is many times slower than the two reductions it
consists of. On a GPU its forward sums each sample in one order.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW_VOXELS = 1024  # up to here PyTorch's channels-last kernel takes its slow way in bfloat16
SMALL_SAMPLE = 2**17  # numbers; a batch of larger samples falls out of the cache while it is summed at once
CACHED = 2**19  # numbers of float32 that stay in the cache from one pass over them to the next
VECTOR = 64  # numbers; samples of a multiple of it begin where a vector begins


class GroupNorm(nn.Module):
    """x [B, C, *S] normalised in at most `groups` groups of channels, with a learned scale and shift for each channel.

    Adaptive (Dhariwal & Nichol 2021, Eq. 2): each sample's own `scale` and `shift` [B, C] come on top, (1 + scale) norm(x) +
    shift, in the same pass.
    """

    def __init__(self, channels: int, groups: int = 32, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.groups = math.gcd(groups, channels)
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return _GroupNorm.apply(x, *self._affine(scale, shift), self.groups, self.epsilon, self._way(x))

    def _affine(self, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight and bias [1, C], or [B, C] of each sample."""
        weight, bias = self.weight[None], self.bias[None]
        if scale is not None:
            weight, bias = weight * (1 + scale), bias * (1 + scale)
        return weight, bias if shift is None else bias + shift

    def _way(self, x: Tensor) -> "Way":
        """How to compute it. Outside training the choice hangs on the sample's size alone, and no way mixes samples."""
        if x.device.type != "cpu":
            return _normalise
        if self.training:
            return _normalise_by_sums if x.dtype == torch.bfloat16 and x[0, 0].numel() <= FEW_VOXELS else _normalise
        return _normalise_by_sums if x[0].numel() <= SMALL_SAMPLE else _normalise_alone


class GroupNormSiLU(GroupNorm):
    """SiLU of what `GroupNorm` gives: on a CPU, where nothing is learned from it, in one go a few samples at a time."""

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() or self.training or x.device.type != "cpu":
            return functional.silu(super().forward(x, scale, shift))
        return _activated(x, *self._affine(scale, shift), self.groups, self.epsilon)


def silu_of_each(x: Tensor) -> Tensor:
    """SiLU of each sample of x [B, C, *S] by itself: where no vector ends with it, its last numbers round otherwise."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return functional.silu(x)
    activated = torch.empty_like(x)
    for sample, target in zip(x.split(1), activated.split(1), strict=True):
        torch.ops.aten.silu.out(sample, out=target)
    return activated


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, normalise: "Way"
    ) -> Tensor:
        normalised, mean, inverse = normalise(x, weight, bias, groups, epsilon)
        ctx.save_for_backward(x, weight, mean, inverse)
        return normalised

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        batch, channels, groups = x.shape[0], x.shape[1], mean.shape[1]
        # Two reductions over space, float32 [B, C]; everything else is arithmetic on numbers of that size.
        total, product = _over_voxels(gradient), _over_voxels(gradient * x)
        mean_c, inverse_c = _of_channels(mean, channels), _of_channels(inverse, channels)
        centred = (product - total * mean_c) * inverse_c  # sum of gradient · normalised x

        def group_mean(values: Tensor) -> Tensor:
            count = x[0].numel() // groups
            summed = (values * weight.float()).view(batch, groups, -1).sum(2) / count
            return summed.repeat_interleave(channels // groups, dim=1)

        slope = -inverse_c * inverse_c * group_mean(centred)
        offset = -inverse_c * group_mean(total) - slope * mean_c
        scale, slope, offset = (_over_space(part, x) for part in (inverse_c * weight.float(), slope, offset))
        of_x = torch.addcmul(torch.addcmul(offset, x, slope), gradient, scale)
        of_weight, of_bias = (part.sum_to_size(weight.shape).to(weight.dtype) for part in (centred, total))
        return of_x, of_weight, of_bias, None, None, None


# (x, weight and bias [1, C] or [B, C], groups, epsilon) → (normalised x, mean [B, G], 1 / deviation [B, G])
Way = Callable[[Tensor, Tensor, Tensor, int, float], tuple[Tensor, Tensor, Tensor]]


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's kernel."""
    x = x if x.device.type == "cpu" else x.contiguous()  # the GPU kernel reads its input as if it were contiguous
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    shape = (len(x), x.shape[1], x[0, 0].numel())
    if len(weight) == 1:
        return torch.native_group_norm(x, weight[0], bias[0], *shape, groups, epsilon)
    normalised, mean, inverse = torch.native_group_norm(x, None, None, *shape, groups, epsilon)
    return torch.addcmul(_over_space(bias, x), normalised, _over_space(weight, x)), mean, inverse


def _normalise_alone(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, one sample after the other, so that each one's sums have an order of their own."""
    normalised = torch.empty_like(x)
    moments = []
    affine = zip(weight.expand(len(x), -1).split(1), bias.expand(len(x), -1).split(1), strict=True)
    for sample, target, (own_weight, own_bias) in zip(x.split(1), normalised.split(1), affine, strict=True):
        result, *rest = _normalise(sample, own_weight, own_bias, groups, epsilon)
        target.copy_(result)
        moments.append(rest)
    means, inverses = zip(*moments, strict=True)
    return normalised, torch.cat(means), torch.cat(inverses)


def _activated(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
    """SiLU of the normalised x: what lies between never leaves the cache, and no sample's bytes hang on its place."""
    activated, size = torch.empty_like(x), x[0].numel()
    normalise, at_once = (_normalise_by_sums, CACHED // size) if size <= SMALL_SAMPLE else (_normalise, 1)
    parts = [x, activated, weight.expand(len(x), -1), bias.expand(len(x), -1)]
    at_once = 1 if size % VECTOR else at_once
    for samples, target, own_weight, own_bias in zip(*(part.split(at_once) for part in parts), strict=True):
        normalised = normalise(samples, own_weight, own_bias, groups, epsilon)[0]
        torch.ops.aten.silu.out(normalised, out=target)
    return activated


def _normalise_by_sums(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same from two sums for each channel in float32, each in the order of the sample's voxels."""
    batch, channels = x.shape[:2]
    values = x.movedim(1, -1).reshape(batch, -1, channels).to(_exact(x))
    count = values.shape[1] * channels // groups
    mean, square = (part.sum(1).view(batch, groups, -1).sum(2) / count for part in (values, values * values))
    inverse = torch.rsqrt((square - mean * mean).clamp(min=0) + epsilon)
    scale = _of_channels(inverse, channels) * weight.to(values.dtype)
    shift = bias.to(values.dtype) - _of_channels(mean, channels) * scale
    normalised = torch.addcmul(shift[:, None], values, scale[:, None]).to(x.dtype)
    return normalised.view(batch, *x.shape[2:], channels).movedim(-1, 1), mean, inverse


def _over_voxels(values: Tensor) -> Tensor:
    """The sum over space, [B, C, *S] → float32 [B, C].

    Rows first, rounded as their voxels are: on a CPU a sum of bfloat16 that is float32 from the start copies them all.
    """
    rows = values.movedim(1, -1)
    if values.device.type == "cpu" and values.ndim > 3:
        rows = rows.sum(1)
    return rows.flatten(1, -2).sum(1, dtype=torch.float32)


def _exact(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _of_channels(values: Tensor, channels: int) -> Tensor:
    """Numbers of groups [B, G] as numbers of channels [B, C], float32 at least."""
    return values.to(_exact(values)).repeat_interleave(channels // values.shape[1], dim=1)


def _over_space(values: Tensor, x: Tensor) -> Tensor:
    """[B, C] → [B, C, 1 …], to be used with x [B, C, *S]."""
    return values.view(*values.shape, *(1,) * (x.ndim - 2)).to(x.dtype)
