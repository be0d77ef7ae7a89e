"""Conditioned DDPM: partial diffusion with a denoiser of healthy brains that is told a short code of the one at hand.

Behrendt et al., Guided Reconstruction with Conditioned Diffusion Models for Unsupervised Anomaly Detection in Brain MRIs,
2023, arXiv 2312.04215. The code is the network's (`network: {kind: with_encoder}`), the noise the recipe's.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion import DDPM, AnySolver, Condition
from medseg_diff.diffusion.losses import noised
from medseg_diff.diffusion.noise import NoiseSource, fresh_noise
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.methods.anomaly.engine import Cohort, Decoding, Networks, Reconstruction, Sight


class ConditionedDDPM(Reconstruction):
    """x_L is drawn at `depth` L and denoised in `steps`, one in the paper, given the code of the image itself.

    So much noise may hide nearly all of the image: contrast and shape come back through the code, whose few numbers have
    learned to describe healthy brains alone.
    """

    learns_from: ClassVar[Cohort] = "healthy"
    sees: ClassVar[Sight] = "itself"

    kind: Literal["cddpm"] = "cddpm"
    depth: int = Field(default=500, ge=1, le=LONGEST)
    steps: int = Field(default=1, ge=1, le=LONGEST)
    solver: AnySolver = DDPM()

    @property
    def evaluations(self) -> dict[str, int]:
        return {"denoiser": self.steps}

    def decoding(self, x: Tensor, networks: Networks, noise: NoiseSource | None = None) -> Decoding:
        schedule, noise = networks.denoiser.schedule, noise or fresh_noise
        times = self.times(schedule)
        x_L = noised(x, noise(x, 0), schedule.level(times[-1]))
        return Decoding(networks.denoiser, self.solver, x_L, times[::-1], Condition(image=x), noise)
