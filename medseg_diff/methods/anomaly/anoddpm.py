"""AnoDDPM: partial diffusion with a denoiser of healthy brains alone, whose noise is smooth enough to cover a lesion.

Wyatt, Leach, Schmon and Willcocks, AnoDDPM: Anomaly Detection with Denoising Diffusion Probabilistic Models using Simplex
Noise, CVPR Workshops 2022. The noise itself is the recipe's (`noise: {kind: simplex}`), in training and here.
"""

from typing import ClassVar, Literal

from torch import Tensor

from medseg_diff.diffusion import DDPM, AnySolver
from medseg_diff.diffusion.losses import noised
from medseg_diff.diffusion.noise import NoiseSource, fresh_noise
from medseg_diff.methods.anomaly.engine import Cohort, Decoding, Networks, Reconstruction


class AnoDDPM(Reconstruction):
    """x_L is drawn at `depth` L and denoised in `steps`; the score is the squared difference, as in the paper.

    No classifier, no labels: what the denoiser has never seen, it does not put back.
    """

    learns_from: ClassVar[Cohort] = "healthy"

    kind: Literal["anoddpm"] = "anoddpm"
    map: Literal["absolute", "positive", "squared"] = "squared"
    solver: AnySolver = DDPM()

    @property
    def evaluations(self) -> dict[str, int]:
        return {"denoiser": self.steps}

    def decoding(self, x: Tensor, networks: Networks, noise: NoiseSource | None = None) -> Decoding:
        schedule, noise = networks.denoiser.schedule, noise or fresh_noise
        times = self.times(schedule)
        x_L = noised(x, noise(x, 0), schedule.level(times[-1]))
        return Decoding(networks.denoiser, self.solver, x_L, times[::-1], noise=noise)
