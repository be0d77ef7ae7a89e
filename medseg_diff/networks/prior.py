"""A network in two parts: a prior that looks at the image alone, once, and a light one that corrects it at every step.

Han et al., CARD: Classification and Regression Diffusion Models, 2022, arXiv 2206.07275: a denoiser that is shown what an
ordinary network predicts need only learn what that leaves open.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.encoder import EncoderSettings
from medseg_diff.networks.unet import Axes, UNet, UNetSettings


class WithPriorSettings(EncoderSettings):
    """Size and kind of the prior, and those of the `correction`. For masks alone (target `logits`): a prior cannot know the
    noise."""

    kind: Literal["with_prior"] = "with_prior"
    correction: UNetSettings

    @model_validator(mode="after")
    def _knows_images_alone(self) -> "WithPriorSettings":
        if self.correction.classes or self.correction.covariates:
            raise ValueError("a prior and its correction are conditioned on an image: classes and covariates must be 0")
        return self

    @property
    def prior(self) -> UNetSettings:
        """The prior as a network of its own."""
        return UNetSettings(**self.model_dump(exclude={"kind", "correction"}))

    def build(self, *, dims: int, channels: int, outputs: int, image_channels: int = 0) -> "WithPrior":
        """A network from [B, channels, *S] and a condition image of `image_channels` to [B, 2 outputs, *S]."""
        prior = self.prior.build(dims=dims, channels=image_channels, outputs=outputs)
        seen = image_channels + outputs
        return WithPrior(
            prior, self.correction.build(dims=dims, channels=channels, outputs=outputs, image_channels=seen)
        )


class WithPrior(nn.Module):
    """f(x_t, t, image) = prior(image) + correction(x_t, t, image, prior(image)), and behind it prior(image) itself.

    `prepare` looks at the image once a walk: what the prior said is the condition's `mask`, and stands once more behind
    the image as probability, as the correction is shown it. The correction does not teach the prior, which learns from a
    loss of its own.
    """

    says_prior = True

    def __init__(self, prior: UNet, correction: UNet) -> None:
        super().__init__()
        self.prior, self.correction = prior, correction

    def channel_axes(self, x: Sequence[str], image: Sequence[str], outputs: Sequence[str]) -> Axes:
        """As of a `UNet`; the correction is shown what the prior says of each output, too."""
        said = [f"{name} of the prior" for name in outputs]
        of_prior = self.prior.channel_axes(image, (), outputs)
        of_correction = self.correction.channel_axes(x, (*image, *said), outputs)
        return {f"prior.{name}": own for name, own in of_prior.items()} | {
            f"correction.{name}": own for name, own in of_correction.items()
        }

    def prepare(self, condition: Condition) -> Condition:
        """The condition with the prior's logits [B, outputs, *S] as its mask, and as tanh(logits / 2) behind its image."""
        if condition.mask is not None:
            return condition
        assert condition.image is not None, "a prior is conditioned on an image"
        image = condition.image
        said = self.prior(image, torch.ones(1, device=image.device), Condition())
        said = said.contiguous()  # in one layout, however many there are: another one rounds otherwise
        shown = torch.cat([image, torch.tanh(said.detach().to(image.dtype) / 2)], dim=1)
        return condition._replace(image=shown, mask=said)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        known = self.prepare(condition)
        assert known.image is not None and known.mask is not None
        prior = known.mask.to(x_t.dtype)
        correction = self.correction(x_t, t, Condition(image=known.image))
        return torch.cat([prior.detach() + correction, prior], dim=1)
