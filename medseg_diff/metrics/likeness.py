"""How alike two images are: structural similarity over several scales, and the signal-to-noise ratio of a reconstruction.

Wang et al., Multiscale Structural Similarity for Image Quality Assessment, 2003.
"""

import numpy as np
import torch
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first, as in the paper
KERNEL = 11  # voxels of the window; a smaller image takes a smaller one
SMALLEST_KERNEL = 5


def ms_ssim(image: Tensor, other: Tensor, *, span: float = 2.0) -> Tensor:
    """[B] of images [B, C, *S] whose values span `span`; 1 where they are equal.

    By MONAI, with as many of the paper's five scales as fit an image: its smallest side at the coarsest scale must hold the
    window, whose side is 11 voxels, or 5 where 11 leave less than two scales. The scales' weights are brought to a sum of 1.
    """
    from monai.metrics.regression import MultiScaleSSIMMetric

    smallest = min(image.shape[2:])
    kernel = KERNEL if _scales(smallest, KERNEL) > 1 else SMALLEST_KERNEL
    count = max(_scales(smallest, kernel), 1)
    weights = np.array(WEIGHTS[:count]) / sum(WEIGHTS[:count])
    metric = MultiScaleSSIMMetric(
        spatial_dims=image.ndim - 2,
        data_range=span,
        kernel_size=kernel,
        kernel_sigma=1.5 * kernel / KERNEL,
        weights=tuple(float(weight) for weight in weights),
        reduction="none",
    )
    values: Tensor = metric(image.float(), other.float())
    return values.flatten()


def _scales(side: int, kernel: int) -> int:
    """How many scales of an image whose smallest side has so many voxels hold the window, as MONAI counts them: it asks for
    (scales - 1)² windows' sides where 2^(scales - 1) would do, so that four scales need a side of 99."""
    fits = (side // max(2 ** (count - 1), (count - 1) ** 2) >= kernel for count in range(1, len(WEIGHTS) + 1))
    return sum(fits)


def psnr(image: Tensor, other: Tensor, *, span: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, [B] of images [B, C, *S] whose values span `span`; 120 where they are equal."""
    error = (image.double() - other.double()).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(span**2 / error.clamp(min=span**2 * 1e-12))).float()


def diversity(images: Tensor, *, pairs: int = 100, seed: int = 0, span: float = 2.0) -> float:
    """Mean MS-SSIM of so many random pairs of images [N, C, *S], or of all pairs: the lower, the more they differ; read it
    beside real pairs'. NaN of a single image."""
    first, second = np.triu_indices(len(images), k=1)
    if len(first) > pairs:
        chosen = np.random.default_rng(seed).choice(len(first), size=pairs, replace=False)
        first, second = first[chosen], second[chosen]
    values = [ms_ssim(images[[a]], images[[b]], span=span) for a, b in zip(first, second, strict=True)]
    return float(torch.cat(values).mean()) if values else float("nan")
