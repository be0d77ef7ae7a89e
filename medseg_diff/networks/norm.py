"""Group normalisation whose answer for a sample does not depend on the samples beside it, with a fast backward.

Wu & He, Group Normalization, 2018, arXiv 1803.08494. On the CPU, PyTorch's channels-last kernel splits its sums by batch
size: outside training each sample is normalised alone (on a GPU the kernel already works so). Its backward in bfloat16 is
many times slower than the two reductions it consists of.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


class GroupNorm(nn.Module):
    """x [B, C, *S] normalised in at most `groups` groups of channels, with a learned scale and shift for each channel."""

    def __init__(self, channels: int, groups: int = 32, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.groups = math.gcd(groups, channels)
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        alone = x.device.type == "cpu" and not self.training
        return _GroupNorm.apply(x, self.weight, self.bias, self.groups, self.epsilon, alone)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float, alone: bool) -> Tensor:
        normalise = _normalise_alone if alone else _normalise
        normalised, mean, inverse = normalise(x, weight.to(x.dtype), bias.to(x.dtype), groups, epsilon)
        ctx.save_for_backward(x, weight, mean, inverse)
        return normalised

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        batch, channels, groups = x.shape[0], x.shape[1], mean.shape[1]
        # Two reductions over space, [B, C]; everything else is arithmetic on numbers of that size.
        total, product = _sums(gradient, x)
        mean_c, inverse_c = (part.float().repeat_interleave(channels // groups, dim=1) for part in (mean, inverse))
        centred = (product - total * mean_c) * inverse_c  # sum of gradient · normalised x

        def group_mean(values: Tensor) -> Tensor:
            count = x[0].numel() // groups
            summed = (values * weight.float()).view(batch, groups, -1).sum(2) / count
            return summed.repeat_interleave(channels // groups, dim=1)

        slope = -inverse_c * inverse_c * group_mean(centred)
        offset = -inverse_c * group_mean(total) - slope * mean_c
        shape = (batch, channels) + (1,) * (x.ndim - 2)
        scale, slope, offset = ((part.view(shape)).to(x.dtype) for part in (inverse_c * weight.float(), slope, offset))
        wanted = torch.addcmul(torch.addcmul(offset, x, slope), gradient, scale)
        return wanted, centred.sum(0).to(weight.dtype), total.sum(0).to(weight.dtype), None, None, None


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(normalised x, mean [B, G], 1 / deviation [B, G])."""
    x = x if x.device.type == "cpu" else x.contiguous()  # the GPU kernel reads its input as if it were contiguous
    return torch.native_group_norm(x, weight, bias, x.shape[0], x.shape[1], x[0, 0].numel(), groups, epsilon)


def _normalise_alone(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, one sample after the other, so that each one's sums have an order of their own."""
    normalised = torch.empty_like(x)
    moments = []
    for sample, target in zip(x.split(1), normalised.split(1), strict=True):
        result, *rest = _normalise(sample, weight, bias, groups, epsilon)
        target.copy_(result)
        moments.append(rest)
    means, inverses = zip(*moments, strict=True)
    return normalised, torch.cat(means), torch.cat(inverses)


def _sums(gradient: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over space of the gradient and of gradient · x, float32 [B, C]."""
    axes = tuple(range(2, x.ndim))
    return gradient.sum(axes, dtype=torch.float32), (gradient * x).sum(axes, dtype=torch.float32)
