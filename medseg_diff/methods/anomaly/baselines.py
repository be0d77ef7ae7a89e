"""Free anomaly maps that a method has to beat: how bright a channel is, and how much it differs from its own blur.

Smoothed FLAIR alone ranks the voxels of most gliomas well; a map that is not shown beside it proves nothing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BRIGHT = ("flair", "t2")  # where oedema and tumour are bright
BLUR_MM = 8.0


def bright_channels(channels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name of a baseline → the channels that it adds up: FLAIR, FLAIR + T2, or the first channel where neither is there."""
    there = tuple(name for name in BRIGHT if name in channels) or (channels[0],)
    return {"_".join(there[:n]): there[:n] for n in range(1, len(there) + 1)}


def brightness(image: Tensor, brain: Tensor, places: Sequence[int]) -> Tensor:
    """Sum of some channels above the darkest voxel of the brain: image [C, *S], brain [1, *S] → [1, *S], 0 outside."""
    total = image[list(places)].sum(dim=0, keepdim=True)
    darkest = total[brain].min() if brain.any() else total.min()
    return torch.where(brain, total - darkest, 0.0)


def unlike_its_blur(image: Tensor, brain: Tensor, *, spacing_mm: Sequence[float], blur_mm: float = BLUR_MM) -> Tensor:
    """Sum over channels of |x - blur x| inside the brain: image [C, *S], brain [1, *S] → [1, *S], 0 outside."""
    blurred = smoothed(image, brain, spacing_mm=spacing_mm, deviation_mm=blur_mm)
    return torch.where(brain, (image - blurred).abs().sum(dim=0, keepdim=True), 0.0)


def smoothed(maps: Tensor, brain: Tensor, *, spacing_mm: Sequence[float], deviation_mm: float) -> Tensor:
    """Gaussian mean (`deviation_mm`) over the voxels of the brain alone: maps [M, *S], brain [1, *S] → [M, *S].

    What lies outside the brain neither counts nor is filled, so that the edge is not darkened. 0 mm changes nothing inside.
    """
    from scipy import ndimage

    inside = brain[0].numpy().astype(np.float32)
    widths = [deviation_mm / step for step in spacing_mm]
    if deviation_mm == 0:
        return maps * brain
    weight = np.maximum(ndimage.gaussian_filter(inside, widths, mode="constant"), 1e-6)
    sums = [ndimage.gaussian_filter(one.numpy() * inside, widths, mode="constant") for one in maps.float()]
    return torch.from_numpy(np.stack(sums) / weight * inside)


def plain_baselines(
    image: Tensor, brain: Tensor, channels: Sequence[str], spacing_mm: Sequence[float]
) -> dict[str, Tensor]:
    """The raw maps [1, *S] that need no network, by name: image [C, *S] of these channels, brain [1, *S]."""
    sums = {
        name: brightness(image, brain, [list(channels).index(channel) for channel in bright])
        for name, bright in bright_channels(channels).items()
    }
    return sums | {"blur": unlike_its_blur(image, brain, spacing_mm=spacing_mm)}
