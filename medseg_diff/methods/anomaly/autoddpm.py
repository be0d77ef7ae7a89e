"""AutoDDPM: mask what a first reconstruction changes, stitch it into the scan, and sample the seam again.

Bercea, Neumayr, Rueckert and Schnabel, Mask, Stitch, and Re-Sample: Enhancing Robustness and Generalizability in Anomaly
Detection through Automatic Diffusion Models, ICML Workshops 2023, arXiv 2305.19643. Sampling back and forth: Lugmayr et al.,
RePaint: Inpainting Using Denoising Diffusion Probabilistic Models, CVPR 2022, arXiv 2201.09865.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion import DDPM, NoiseSchedule, Pinned, walk
from medseg_diff.diffusion.hiding import blurred_inside, grown
from medseg_diff.diffusion.losses import noised
from medseg_diff.diffusion.noise import NoiseSource, fresh_noise
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.methods.anomaly.drawn import Later, PartialDiffusion
from medseg_diff.methods.anomaly.engine import Networks

MOST_CHANGED = 0.05  # of a brain: what it changed by is 1


class AutoDDPM(PartialDiffusion):
    """First a reconstruction x' from `depth`. Where |x - x'|, mean over the channels and blurred over `blur` voxels, is
    above a share `suspicious` of what the most changed twentieth of the brain exceeds, x' is put into the scan, with a rim;
    that is noised up to `seam_depth` and denoised in `seam_steps`, each of them gone down and up again `resamplings` times.
    Everything else stays the scan, and scores 0.

    The paper multiplies the share, and its map, by a perceptual distance, for which a network of natural images would have
    to be fetched.
    """

    kind: Literal["autoddpm"] = "autoddpm"
    solver: DDPM = DDPM()  # on the way up it adds noise; others would encode
    depth: int = Field(default=200, ge=1, le=LONGEST)
    map: Literal["absolute", "positive", "squared"] = "absolute"
    suspicious: float = Field(default=0.5, ge=0, le=10)
    blur: float = Field(default=1.3, gt=0, le=100)
    seam_depth: int = Field(default=50, ge=1, le=LONGEST)
    seam_steps: int = Field(default=5, ge=1, le=100)
    resamplings: int = Field(default=5, ge=1, le=100)

    @property
    def evaluations(self) -> dict[str, int]:
        seam = (2 * self.resamplings - 1) * self.seam_steps  # on the way up the denoiser is asked, too, and not heard
        return {"denoiser": (self.steps + seam) * self.draws}

    def deepest(self, schedule: NoiseSchedule) -> int:
        return max(super().deepest(schedule), schedule.times(self.seam_steps, start=self.seam_depth)[0])

    def reconstruct(self, x: Tensor, networks: Networks, noise: NoiseSource | None = None) -> Tensor:
        noise, schedule = noise or fresh_noise, networks.denoiser.schedule
        first = super().reconstruct(x, networks, noise)
        masked = self.masked(x, first, networks)
        times = back_and_forth(schedule.times(self.seam_steps, start=self.seam_depth), self.resamplings)
        again = Later(noise, self.steps + 1)
        x_t = noised(torch.where(masked, first, x), again(x, 0), schedule.level(times[0]))
        return walk(Pinned(networks.denoiser, x, masked), self.solver, x_t, times, noise=again)

    def masked(self, x: Tensor, first: Tensor, networks: Networks) -> Tensor:
        """What the first reconstruction has changed, [B, 1, *S]."""
        image, healthy = networks.space.decode(x), networks.space.decode(first)
        brain = networks.brain(image)
        change = blurred_inside((image - healthy).abs().mean(dim=1, keepdim=True), brain, self.blur)
        most = change.masked_fill(~brain, math.nan).flatten(1).float().nanquantile(1 - MOST_CHANGED, dim=1)
        limit = self.suspicious * most.nan_to_num().view(-1, *(1,) * (change.ndim - 1))
        return grown(~(change <= limit) & brain) & brain  # what ran out of all numbers is above, and will be said


def back_and_forth(times: Sequence[int], rounds: int) -> list[int]:
    """Descending times, each step of them gone `rounds` times: down, and up again before the next time."""
    walked = list(times[:1])
    for before, after in itertools.pairwise(times):
        walked += [after, before] * (rounds - 1) + [after]
    return walked
