"""Autoencoders of images, 2D and 3D: what latent diffusion is done in. MONAI's networks, with the norms of the house.

KL: Kingma & Welling, Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114, as in Rombach et al., High-Resolution Image
Synthesis with Latent Diffusion Models, 2021, arXiv 2112.10752. VQ: van den Oord et al., Neural Discrete Representation
Learning, 2017, arXiv 1711.00937.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medseg_diff.networks.blocks import cropped, in_float32
from medseg_diff.networks.encoder import Width, check_levels, padded, pixel_shuffle, pixel_unshuffle
from medseg_diff.networks.monai_unet import own_norms
from medseg_diff.settings import Settings

LEAST_DEVIATION = 1e-6  # of a latent channel that says nothing


class Coded(NamedTuple):
    """What an autoencoder makes of images while it learns: `image` [B, C, *S] again, and the price [] of its code, which
    is the KL divergence in nats for each value of the image, or the commitment to the code book."""

    image: Tensor
    price: Tensor


class AutoencoderSettings(Settings):
    """Size of an autoencoder. `stem` 2 folds 2×2(×2) voxels into channels before the first level, `widths` are the levels'
    channels from the finest grid on, each half as fine as the one before, with `blocks` blocks; `latent` channels remain.
    `checkpointing` computes the levels a second time on the way back, instead of keeping what they saw.
    """

    widths: tuple[Width, ...] = Field(default=(32, 64, 128), min_length=1, max_length=8)
    blocks: int = Field(default=1, ge=1, le=16)
    latent: int = Field(default=3, ge=1, le=1024)
    stem: Literal[1, 2, 4] = 1
    checkpointing: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "AutoencoderSettings":
        check_levels(self.widths, [self.blocks] * len(self.widths), attend=(), part=1)
        return self

    @property
    def step(self) -> int:
        """How many voxels of the image one place of the latent grid stands for, along each axis."""
        return self.stem * 2 ** (len(self.widths) - 1)

    @property
    def width(self) -> int:
        """Channels of the finest level."""
        return self.widths[0]

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """The latent grid of an image of that size, whose far edges are repeated up to a multiple of `step`."""
        return tuple(-(-n // self.step) for n in size)


class KLSettings(AutoencoderSettings):
    """A latent is drawn from a Gaussian of each image; `attention` where it is coarsest."""

    kind: Literal["kl"] = "kl"
    groups: int = Field(default=32, ge=1, le=2048)
    attention: bool = False

    @model_validator(mode="after")
    def _divides(self) -> "KLSettings":
        if odd := [width for width in self.widths if width % self.groups]:
            raise ValueError(f"{odd[0]} channels do not divide by {self.groups} groups")
        return self

    def build(self, *, dims: int, channels: int) -> "KLAutoencoder":
        """An autoencoder of images [B, channels, *S]."""
        return KLAutoencoder(self, dims=dims, channels=channels)


class VQSettings(AutoencoderSettings):
    """Each place of the latent grid is one of `codes` vectors, which follow what they stand for by a moving average of
    `decay`."""

    kind: Literal["vq"] = "vq"
    codes: int = Field(default=256, ge=2, le=65_536)
    decay: float = Field(default=0.9, gt=0, lt=1)

    @property
    def step(self) -> int:
        return self.stem * 2 ** len(self.widths)

    def build(self, *, dims: int, channels: int) -> "VQAutoencoder":
        """An autoencoder of images [B, channels, *S]."""
        return VQAutoencoder(self, dims=dims, channels=channels)


AnyAutoencoder = Annotated[KLSettings | VQSettings, Field(discriminator="kind")]


class Autoencoder(nn.Module, ABC):
    """Images [B, C, *S] to latents [B, D, *R] of mean 0 and deviation 1 a channel, and back.

    `mean` and `deviation` [1, D, 1, …] are those of the raw latents that `standardise` is given when the training is over,
    and are kept with the weights.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: AutoencoderSettings, *, dims: int) -> None:
        super().__init__()
        self.settings = settings
        shape = (1, settings.latent, *(1,) * dims)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))

    @abstractmethod
    def raw(self, image: Tensor) -> Tensor:
        """The latent as the network says it, without anything drawn."""

    @abstractmethod
    def image_of(self, raw: Tensor) -> Tensor:
        """The image [B, C, *S] of a raw latent, S a multiple of the step."""

    @abstractmethod
    def forward(self, image: Tensor) -> Coded:
        """What is learned from: the image coded and decoded."""

    def encode(self, image: Tensor) -> Tensor:
        """The latent [B, D, *R] of image [B, C, *S]; any S, whose far edges are repeated up to a multiple of the step."""
        return (self.raw(image).float() - self.mean) / self.deviation

    def decode(self, latent: Tensor) -> Tensor:
        """The image [B, C, *S] of a latent [B, D, *R]; S is R times the step."""
        return self.image_of(latent * self.deviation + self.mean)

    def standardise(self, raw: Tensor) -> None:
        """From here on latents have the mean 0 and deviation 1 that those of `raw` [N, D, *R] are given."""
        dims = [0, *range(2, raw.ndim)]
        self.mean.copy_(raw.mean(dim=dims, keepdim=True))
        self.deviation.copy_(raw.std(dim=dims, keepdim=True).clamp(min=LEAST_DEVIATION))

    def folded(self, image: Tensor) -> Tensor:
        """The image as MONAI's network is given it."""
        return pixel_unshuffle(padded(image, self.settings.step), self.settings.stem)


class KLAutoencoder(Autoencoder):
    """MONAI's AutoencoderKL."""

    def __init__(self, settings: KLSettings, *, dims: int, channels: int) -> None:
        super().__init__(settings, dims=dims)
        from monai.networks.nets.autoencoderkl import AutoencoderKL

        levels = len(settings.widths)
        self.network = AutoencoderKL(
            spatial_dims=dims,
            in_channels=channels * settings.stem**dims,
            out_channels=channels * settings.stem**dims,
            num_res_blocks=[settings.blocks] * levels,
            channels=settings.widths,
            attention_levels=[False] * levels,
            latent_channels=settings.latent,
            norm_num_groups=settings.groups,
            with_encoder_nonlocal_attn=settings.attention,
            with_decoder_nonlocal_attn=settings.attention,
            use_checkpoint=settings.checkpointing,
            use_flash_attention=True,
        )
        own_norms(self.network)

    def raw(self, image: Tensor) -> Tensor:
        return self.network.encode(self.folded(image))[0]

    def image_of(self, raw: Tensor) -> Tensor:
        return pixel_shuffle(self.network.decode(raw), self.settings.stem)

    def forward(self, image: Tensor) -> Coded:
        mean, deviation = (part.float() for part in self.network.encode(self.folded(image)))
        variance = deviation.square()
        divergence = 0.5 * (mean.square() + variance - variance.log() - 1).sum()
        drawn = mean + deviation * torch.randn_like(mean)
        back = cropped(self.image_of(drawn), image.shape[2:])
        return Coded(back, divergence / image.numel())


class VQAutoencoder(Autoencoder):
    """MONAI's VQVAE. Its latents are vectors of the code book; a latent that is none of them is decoded as the nearest."""

    def __init__(self, settings: VQSettings, *, dims: int, channels: int) -> None:
        super().__init__(settings, dims=dims)
        from monai.networks.nets.vqvae import VQVAE

        levels = len(settings.widths)
        self.network = VQVAE(
            spatial_dims=dims,
            in_channels=channels * settings.stem**dims,
            out_channels=channels * settings.stem**dims,
            channels=settings.widths,
            num_res_layers=settings.blocks,
            num_res_channels=settings.widths,
            downsample_parameters=[(2, 4, 1, 1)] * levels,
            upsample_parameters=[(2, 4, 1, 1, 0)] * levels,
            num_embeddings=settings.codes,
            embedding_dim=settings.latent,
            decay=settings.decay,
            commitment_cost=1.0,  # its weight is the training's to say
            use_checkpointing=settings.checkpointing,
        )

    def raw(self, image: Tensor) -> Tensor:
        return self._quantised(self.network.encode(self.folded(image)))[0]

    def image_of(self, raw: Tensor) -> Tensor:
        return pixel_shuffle(self.network.decode(self._quantised(raw)[0]), self.settings.stem)

    def forward(self, image: Tensor) -> Coded:
        quantised, commitment = self._quantised(self.network.encode(self.folded(image)))
        back = pixel_shuffle(self.network.decode(quantised), self.settings.stem)
        return Coded(cropped(back, image.shape[2:]), commitment)

    def _quantised(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest vectors of the code book, and the mean squared distance from them; in float32, where near is near."""
        with in_float32(raw.device.type):
            return self.network.quantize(raw.float())
