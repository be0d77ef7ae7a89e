"""Inversion that changes only what the classifier looks at: guided inside a saliency mask, plain outside, at every step.

After Fontanella, Mair, Wardlaw, Trucco and Storkey, Diffusion Models for Counterfactual Generation and Anomaly Detection in
Brain Images, IEEE Transactions on Medical Imaging 2024, arXiv 2308.02062. There the mask comes from attacks on a classifier
(ACAT) and a denoiser of healthy slices draws what lies in it; here the classifier that guides gives both.
"""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion.hiding import blurred_inside, highest
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.methods.anomaly.inversion import ClassifierInversion


class SalientInversion(ClassifierInversion):
    """The mask is the `share` of each brain where the classifier's saliency, blurred over `blur` voxels, is highest."""

    kind: Literal["salient_inversion"] = "salient_inversion"
    share: float = Field(default=0.2, gt=0, le=1)
    blur: float = Field(default=2.0, gt=0, le=100)

    @property
    def evaluations(self) -> dict[str, int]:
        known = super().evaluations
        return known | {"classifier": known["classifier"] + bool(self.scale)}

    def guided_where(self, x: Tensor, networks: Networks) -> Tensor:
        """Where the classifier looks halfway to the noise level."""
        assert networks.classifier is not None
        pull = self.saliency(x, networks.classifier, networks.denoiser.schedule)
        brain = networks.brain(networks.space.decode(x))
        smooth = blurred_inside(pull, brain, self.blur).masked_fill(~brain, -math.inf)
        return highest(smooth, (brain.flatten(1).sum(dim=1) * self.share).ceil().long()) & brain
