"""Networks of one shape f(x_t, t, condition), and the union of them that a recipe chooses from."""

from typing import Annotated

from pydantic import Field

from medseg_diff.networks.monai_unet import MonaiUNetSettings
from medseg_diff.networks.prior import WithPriorSettings
from medseg_diff.networks.unet import UNetSettings

AnyNetwork = Annotated[UNetSettings | MonaiUNetSettings | WithPriorSettings, Field(discriminator="kind")]
