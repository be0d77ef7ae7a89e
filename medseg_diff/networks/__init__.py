"""Networks of one shape f(x_t, t, condition), and the unions of them that recipes choose from."""

from typing import Annotated

from pydantic import Field

from medseg_diff.networks.bottleneck import BottleneckSettings
from medseg_diff.networks.encoded import WithEncoderSettings
from medseg_diff.networks.monai_unet import MonaiUNetSettings
from medseg_diff.networks.prior import WithPriorSettings
from medseg_diff.networks.unet import UNetSettings

SegmentationNetwork = Annotated[UNetSettings | MonaiUNetSettings | WithPriorSettings, Field(discriminator="kind")]
AnomalyNetwork = Annotated[UNetSettings | WithEncoderSettings | BottleneckSettings, Field(discriminator="kind")]
AnyNetwork = SegmentationNetwork | AnomalyNetwork
