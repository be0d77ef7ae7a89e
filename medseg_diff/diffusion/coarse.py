"""An image at a coarser resolution, and what a denoiser of the fine one is shown of it: cascaded diffusion.

Ho et al., Cascaded Diffusion Models for High Fidelity Image Generation, 2021, arXiv 2106.15282.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.schedule import NoiseSchedule

POOL: dict[int, Callable[..., Tensor]] = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
LINEAR = {2: "bilinear", 3: "trilinear"}
TOLD = 1  # numbers that a network is told of the condition's noise


def coarse(image: Tensor, factor: int) -> Tensor:
    """[B, C, *S] → [B, C, *S / factor]: the mean of each block, as larger voxels hold it."""
    return POOL[image.ndim - 2](image, factor)


def enlarged(image: Tensor, factor: int) -> Tensor:
    """[B, C, *R] → [B, C, *R factor], linearly between the middles of the voxels; beyond the outermost as these."""
    return functional.interpolate(image, scale_factor=factor, mode=LINEAR[image.ndim - 2], align_corners=False)


def shown_coarse(image: Tensor, s: Tensor, noise: Tensor, *, schedule: NoiseSchedule, factor: int) -> Condition:
    """What a denoiser is shown of a coarse image [B, C, *R]: it, noised to the times s [B] of the schedule (0: as it is) and
    enlarged, and sigma of that noise, its one covariate (conditioning augmentation, Ho et al. 2021, Sec. 4.2).

    A denoiser that learned under noise bears a coarse image that is not quite what it learned from: a drawn one.
    """
    alpha, sigma = schedule.level(s, like=image)
    noised = alpha * image + sigma * noise
    return Condition(image=enlarged(noised, factor), covariates=sigma.view(-1, TOLD))


@dataclass(frozen=True)
class Detail:
    """x_0 of a fine image: itself, or with a `gain` what it has beyond the enlarged coarse one that is shown, times the gain
    (Li et al., SRDiff, 2021, arXiv 2104.14951), so that a network need not learn to copy."""

    gain: float = 0.0

    def encode(self, image: Tensor, shown: Tensor) -> Tensor:
        return (image - shown) * self.gain if self.gain else image

    def decode(self, x: Tensor, shown: Tensor) -> Tensor:
        return shown + x / self.gain if self.gain else x


WHOLE = Detail()  # x_0 is the image
