"""Networks of one shape f(x_t, t, condition), and the unions of them that recipes choose from."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from medseg_diff.networks.bottleneck import BottleneckSettings
from medseg_diff.networks.encoded import WithEncoderSettings
from medseg_diff.networks.generators import GeneratorSettings
from medseg_diff.networks.monai_unet import MonaiUNetSettings
from medseg_diff.networks.prior import WithPriorSettings
from medseg_diff.networks.spade_unet import SpadeUNetSettings
from medseg_diff.networks.unet import UNetSettings

SegmentationNetwork = Annotated[UNetSettings | MonaiUNetSettings | WithPriorSettings, Field(discriminator="kind")]


def _kind(value: object) -> object:
    """The kind of a network of an anomaly or synthesis recipe: a U-Net where it is not said, as once no other was."""
    return value.get("kind", "unet") if isinstance(value, dict) else getattr(value, "kind", None)


AnomalyNetwork = Annotated[
    Annotated[UNetSettings, Tag("unet")]
    | Annotated[WithEncoderSettings, Tag("with_encoder")]
    | Annotated[BottleneckSettings, Tag("bottleneck")],
    Discriminator(
        _kind, custom_error_type="network_kind", custom_error_message="kind is unet, with_encoder or bottleneck"
    ),
]
SynthesisNetwork = Annotated[
    Annotated[UNetSettings, Tag("unet")]
    | Annotated[SpadeUNetSettings, Tag("spade")]
    | Annotated[GeneratorSettings, Tag("generator")],
    Discriminator(_kind, custom_error_type="network_kind", custom_error_message="kind is unet, spade or generator"),
]
AnyNetwork = SegmentationNetwork | AnomalyNetwork | SynthesisNetwork
