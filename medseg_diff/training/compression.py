"""Learning to compress: an autoencoder whose images are near the scan, look like it, and cost little.

The sum of losses is that of Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2021, arXiv
2112.10752; perceptual distance: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018,
arXiv 1801.03924, here of features that were learned on the same scans.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.metrics.likeness import ms_ssim, psnr
from medseg_diff.networks.autoencoders import Autoencoder
from medseg_diff.networks.blocks import cropped
from medseg_diff.settings import Settings
from medseg_diff.training.objective import Turn

Features = Callable[[Tensor], Sequence[Tensor]]  # of images [B, C, *S]: maps [B, F, *R] of several levels
TINY = 1e-6


class CompressionSettings(Settings):
    """Weights of what is added to the mean absolute error: `price` of the code (for each value of the image), `perceptual`
    distance, and `adversarial`, the verdict of a discriminator of patches, from update `adversarial_from` on.

    The discriminator starts `discriminator_width` channels wide and halves the grid `discriminator_levels` times.
    """

    price: float = Field(default=1e-3, ge=0)
    perceptual: float = Field(default=0.0, ge=0)
    adversarial: float = Field(default=0.0, ge=0)
    adversarial_from: int = Field(default=0, ge=0, le=10**8)
    discriminator_width: int = Field(default=32, ge=4, le=1024)
    discriminator_levels: int = Field(default=3, ge=1, le=6)

    def discriminator(self, *, dims: int, channels: int) -> nn.Module | None:
        """MONAI's discriminator of patches of images [B, channels, *S]; None where nothing asks for it."""
        if not self.adversarial:
            return None
        from monai.networks.nets.patchgan_discriminator import PatchDiscriminator

        return PatchDiscriminator(
            spatial_dims=dims,
            channels=self.discriminator_width,
            in_channels=channels,
            num_layers_d=self.discriminator_levels,
            norm="INSTANCE",  # a patch is judged by its own image
        )


@dataclass(eq=False)
class Compression:
    """The autoencoder's turn and, where there is a discriminator, its turn on the same images."""

    autoencoder: Autoencoder
    settings: CompressionSettings
    _: KW_ONLY
    features: Features | None = None
    discriminator: nn.Module | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        assert self.features is not None or not self.settings.perceptual, "nothing to look by"
        self.models: dict[str, nn.Module] = {"autoencoder": self.autoencoder}
        if self.discriminator is not None:
            self.models["discriminator"] = self.discriminator
        self.adopted = dict(self.models)

    def adopt(self, name: str, model: nn.Module) -> None:
        self.adopted[name] = model

    def turns(self, batch: Batch, step: int) -> Iterator[Turn]:
        image, weights = batch.image, self.settings
        coded = self.adopted["autoencoder"](image)
        error = (coded.image - image).abs().mean()
        loss, numbers = error + weights.price * coded.price, {"l1": error.detach(), "price": coded.price.detach()}
        if self.features is not None and weights.perceptual:
            distance = perceptual_distance(self.features, coded.image, image)
            loss, numbers["perceptual"] = loss + weights.perceptual * distance, distance.detach()
        judged = self.discriminator is not None and step // self.accumulate >= weights.adversarial_from
        if judged:
            deceived = (self._verdict(coded.image) - 1).square().mean()  # least squares: 1 is a scan, 0 is none
            loss, numbers["adversarial"] = loss + weights.adversarial * deceived, deceived.detach()
        yield Turn("autoencoder", loss, numbers)
        if judged:
            real, false = self._verdict(image), self._verdict(coded.image.detach())
            told_apart = 0.5 * ((real - 1).square().mean() + false.square().mean())
            yield Turn("discriminator", told_apart, {"discriminator": told_apart.detach()})

    def _verdict(self, image: Tensor) -> Tensor:
        """What the discriminator says of every patch."""
        verdict = self.adopted["discriminator"](image)[-1]
        assert isinstance(verdict, Tensor)
        return verdict.float()


def perceptual_distance(features: Features, image: Tensor, other: Tensor) -> Tensor:
    """[]: mean squared distance of the features' directions at every place, averaged over levels."""
    pairs = zip(features(image), features(other), strict=True)
    distances = [(_directions(ours) - _directions(theirs)).square().sum(dim=1).mean() for ours, theirs in pairs]
    return torch.stack(distances).mean()


def _directions(maps: Tensor) -> Tensor:
    maps = maps.float()
    return maps / maps.norm(dim=1, keepdim=True).clamp(min=TINY)


def decoded(autoencoder: Autoencoder, image: Tensor) -> Tensor:
    """Image [N, C, *S] as it comes back by its raw latent, one after the other, in float32."""
    with torch.no_grad():
        parts = [cropped(autoencoder.image_of(autoencoder.raw(part)), part.shape[2:]) for part in image.split(1)]
    return torch.cat(parts).float()


def compression_error(back: Tensor, image: Tensor) -> dict[str, float]:
    """How near images [N, C, *S] in [-1, 1] came back: mean absolute error, PSNR in dB, structural similarity."""
    return {
        "val_l1": float((back - image).abs().mean()),
        "val_psnr": float(psnr(back, image).mean()),
        "val_ms_ssim": float(ms_ssim(back, image).mean()),
    }


def latents_of(autoencoder: Autoencoder, images: Iterator[Tensor]) -> Tensor:
    """The raw latents [N, D, *R] of images [1, C, *S], one after the other."""
    with torch.no_grad():
        return torch.cat([autoencoder.raw(image).float() for image in images])
