"""Anomaly engines, and the union of them that a recipe chooses from."""

from typing import Annotated

from pydantic import Field

from medseg_diff.methods.anomaly.anoddpm import AnoDDPM
from medseg_diff.methods.anomaly.autoencoder import Autoencoder
from medseg_diff.methods.anomaly.cddpm import ConditionedDDPM
from medseg_diff.methods.anomaly.conditional_difference import ConditionalDifference
from medseg_diff.methods.anomaly.inpainting import Inpainting
from medseg_diff.methods.anomaly.inversion import ClassifierFreeInversion, Inversion

AnyEngine = Annotated[
    Inversion | ClassifierFreeInversion | AnoDDPM | ConditionalDifference | Inpainting | ConditionedDDPM | Autoencoder,
    Field(discriminator="kind"),
]
