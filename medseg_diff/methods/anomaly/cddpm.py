"""Conditioned DDPM: partial diffusion with a denoiser of healthy brains, conditioned on a short code of the one at hand.

Behrendt et al., Guided Reconstruction with Conditioned Diffusion Models for Unsupervised Anomaly Detection in Brain MRIs,
2023, arXiv 2312.04215. The code is the network's (`network: {kind: with_encoder}`), the noise the recipe's.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion import Condition
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.methods.anomaly.drawn import PartialDiffusion
from medseg_diff.methods.anomaly.engine import Conditioning


class ConditionedDDPM(PartialDiffusion):
    """x_L is drawn at `depth` L and denoised in `steps`, one in the paper, given the code of the image itself.

    So much noise may hide nearly all of the image: contrast and shape come back through the code, whose few numbers have
    learned to describe healthy brains alone.
    """

    conditioned_on: ClassVar[Conditioning] = "image"

    kind: Literal["cddpm"] = "cddpm"
    depth: int = Field(default=500, ge=1, le=LONGEST)
    steps: int = Field(default=1, ge=1, le=LONGEST)

    def condition(self, x: Tensor) -> Condition:
        return Condition(image=x)
