"""A denoiser conditioned on no more of an image than a short code: an encoder sums it up, and a U-Net takes the sum.

Behrendt et al., Guided Reconstruction with Conditioned Diffusion Models for Unsupervised Anomaly Detection in Brain MRIs,
2023, arXiv 2312.04215. The paper's encoder is pretrained by masked autoencoding; this one learns along with the denoiser.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.encoder import EncoderSettings
from medseg_diff.networks.noisy_classifier import NoisyClassifier, NoisyClassifierSettings
from medseg_diff.networks.unet import Axes, UNet, UNetSettings


class WithEncoderSettings(EncoderSettings):
    """Size and kind of the U-Net, those of the `encoder`, and how many numbers its `code` has.

    The fewer they are, the less of a lesion can be copied through them.
    """

    kind: Literal["with_encoder"] = "with_encoder"
    code: int = Field(default=128, ge=1, le=4096)
    encoder: NoisyClassifierSettings = NoisyClassifierSettings()

    @property
    def unet(self) -> UNetSettings:
        """The U-Net as a network of its own, conditioned on the code."""
        return UNetSettings(**self.model_dump(exclude={"kind", "code", "encoder"}), covariates=self.code)

    def build(self, *, dims: int, channels: int, outputs: int, image_channels: int = 0) -> "WithEncoder":
        """A network from [B, channels, *S] and a condition image of `image_channels` to [B, outputs, *S]."""
        encoder = self.encoder.build(dims=dims, channels=image_channels, classes=self.code)
        return WithEncoder(encoder, self.unet.build(dims=dims, channels=channels, outputs=outputs))


class WithEncoder(nn.Module):
    """f(x_t, t, image) = unet(x_t, t, encoder(image)); the code [B, K] takes the place of the condition's covariates.

    `prepare` encodes the image once a walk and drops it: behind it nothing but the code is left.
    """

    def __init__(self, encoder: NoisyClassifier, unet: UNet) -> None:
        super().__init__()
        self.encoder, self.unet = encoder, unet

    def channel_axes(self, x: Sequence[str], image: Sequence[str], outputs: Sequence[str]) -> Axes:
        """As of a `UNet`, which is shown no image; the encoder is shown nothing else."""
        of_encoder = self.encoder.channel_axes(image, (), ())
        of_unet = self.unet.channel_axes(x, (), outputs)
        return {f"encoder.{name}": own for name, own in of_encoder.items()} | {
            f"unet.{name}": own for name, own in of_unet.items()
        }

    def prepare(self, condition: Condition) -> Condition:
        """The condition with the code [B, K] of its image as its covariates, and without the image."""
        if condition.image is None:
            return condition
        image = condition.image
        code = self.encoder(image, torch.ones(1, device=image.device))  # of all times the one with the least noise
        return condition._replace(image=None, covariates=code)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        known = self.prepare(condition)
        assert known.covariates is not None, "this network was built for an image to encode"
        return self.unet(x_t, t, known)
