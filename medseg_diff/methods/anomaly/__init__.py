"""Anomaly engines, and the union of them that a recipe chooses from."""

from typing import Annotated

from pydantic import Field

from medseg_diff.methods.anomaly.anoddpm import AnoDDPM
from medseg_diff.methods.anomaly.autoddpm import AutoDDPM
from medseg_diff.methods.anomaly.autoencoder import Autoencoder
from medseg_diff.methods.anomaly.cddpm import ConditionedDDPM
from medseg_diff.methods.anomaly.conditional_difference import ConditionalDifference
from medseg_diff.methods.anomaly.inpainting import Inpainting
from medseg_diff.methods.anomaly.inversion import ClassifierFreeInversion, Inversion
from medseg_diff.methods.anomaly.latent import LatentAnomaly
from medseg_diff.methods.anomaly.patched import Patched
from medseg_diff.methods.anomaly.salient import SalientInversion

AnyEngine = Annotated[
    Inversion
    | ClassifierFreeInversion
    | SalientInversion
    | AnoDDPM
    | AutoDDPM
    | Patched
    | ConditionedDDPM
    | ConditionalDifference
    | Autoencoder
    | Inpainting
    | LatentAnomaly,
    Field(discriminator="kind"),
]
