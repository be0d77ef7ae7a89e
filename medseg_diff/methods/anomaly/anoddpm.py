"""AnoDDPM: partial diffusion with a denoiser of healthy brains alone, whose noise is smooth enough to cover a lesion.

Wyatt, Leach, Schmon and Willcocks, AnoDDPM: Anomaly Detection with Denoising Diffusion Probabilistic Models using Simplex
Noise, CVPR Workshops 2022. The noise itself is the recipe's (`noise: {kind: simplex}`), in training and here.
"""

from typing import Literal

from medseg_diff.methods.anomaly.drawn import PartialDiffusion


class AnoDDPM(PartialDiffusion):
    """x_L is drawn at `depth` L and denoised in `steps`; the score is the squared difference, as in the paper.

    No classifier, no labels: what the denoiser has never seen, it does not put back.
    """

    kind: Literal["anoddpm"] = "anoddpm"
    map: Literal["absolute", "positive", "squared"] = "squared"
