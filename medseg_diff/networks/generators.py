"""Generators of images from a latent in one pass, 2D and 3D, with the discriminators and encoders they are trained beside.

Goodfellow et al., Generative Adversarial Networks, 2014, arXiv 1406.2661. MONAI's networks, with the norms of the house. To
a walk a generator is the network of a diffusion of one step, asked for the clean image where there is nothing but noise
(Xiao et al., Tackling the Generative Learning Trilemma with Denoising Diffusion GANs, 2021, arXiv 2112.07804: with a single
step that is a GAN).
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.blocks import SHORTEST, each_row
from medseg_diff.networks.encoder import Width, check_levels, pixel_shuffle, pixel_unshuffle
from medseg_diff.networks.monai_unet import own_norms
from medseg_diff.settings import Settings

Side = Annotated[int, Field(ge=1, le=4096)]
CONVOLUTIONS = 4  # of a level, in the generator and what reads its images
ACTIVATION = ("leakyrelu", {"negative_slope": 0.2})


class GeneratorSettings(Settings):
    """Size of a generator, and of what it is trained beside: `widths` are the levels' channels from the finest grid on, each
    half as fine as the one before, and `latent` normal numbers become the coarsest. `stem` 2 folds 2×2(×2) voxels into
    channels before the first level; `groups` of the norms; `size` [*S] of the images, which a recipe's view says.
    """

    kind: Literal["generator"] = "generator"
    latent: int = Field(default=128, ge=1, le=4096)
    widths: tuple[Width, ...] = Field(default=(64, 128, 256), min_length=2, max_length=8)
    stem: Literal[1, 2, 4] = 1
    groups: int = Field(default=8, ge=1, le=2048)
    size: tuple[Side, ...] = Field(default=(), max_length=3)

    @model_validator(mode="after")
    def _fits(self) -> "GeneratorSettings":
        check_levels(self.widths, [CONVOLUTIONS] * len(self.widths), attend=(), part=1)
        if odd := [width for width in self.widths if width % self.groups]:
            raise ValueError(f"{odd[0]} channels do not divide by {self.groups} groups")
        self.check_size(self.size)
        return self

    def check_size(self, size: Sequence[int]) -> None:
        """Raises: ValueError where the levels do not fit images [*size]."""
        if any(n % self.step or n // self.step <= SHORTEST for n in size):
            said, least = "×".join(map(str, size)), (SHORTEST + 1) * self.step
            raise ValueError(f"network.widths: sides must be multiples of {self.step}, at least {least}, not {said}")

    @property
    def step(self) -> int:
        """How many voxels of the image a place of the coarsest grid stands for, along each axis."""
        return self.stem * 2 ** (len(self.widths) - 1)

    @property
    def width(self) -> int:
        """Channels of the finest level."""
        return self.widths[0]

    def build(self, *, dims: int, channels: int, outputs: int) -> "Generator":
        """The generator of images [B, channels, *S]."""
        assert dims == len(self.size) and outputs == channels, "a generator makes images of one size"
        return Generator(self, channels=channels)

    def discriminator(self, *, channels: int) -> "Discriminator":
        """What tells scans [B, channels, *S] from what is generated."""
        return Discriminator(self, channels=channels)

    def encoder(self, *, channels: int) -> "LatentEncoder":
        """What says the latents that scans [B, channels, *S] may be generated from."""
        return LatentEncoder(self, channels=channels)


class Generator(nn.Module):
    """f(x_T, t, condition) → image [B, C, *S] in (-1, 1). The latent is the first numbers of the noise x_T [B, C, *S].

    Time and condition are not looked at: they are there because every network is called alike.
    """

    def __init__(self, settings: GeneratorSettings, *, channels: int) -> None:
        super().__init__()
        from monai.networks.nets.generator import Generator as Network

        self.settings = settings
        dims, coarsest = len(settings.size), [n // settings.step for n in settings.size]
        *finer, widest = settings.widths
        self.network = Network(
            latent_shape=(settings.latent,),
            start_shape=(widest, *coarsest),
            channels=(*reversed(finer), channels * settings.stem**dims),
            strides=(*[2] * len(finer), 1),
            num_res_units=1,
            act=ACTIVATION,
            norm=("group", {"num_groups": settings.groups}),
        )
        own_norms(self.network)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        latent = latent_in(x_t, self.settings.latent)
        coarsest = self.network.reshape(each_row(self.network.linear, latent))
        return torch.tanh(pixel_shuffle(self.network.conv(coarsest), self.settings.stem))


class Judged(NamedTuple):
    """What a discriminator says of images: a verdict [B], and the maps [B, F, *R] of its middle level."""

    verdict: Tensor
    maps: Tensor


class Discriminator(nn.Module):
    """Images [B, C, *S] → Judged."""

    def __init__(self, settings: GeneratorSettings, *, channels: int) -> None:
        super().__init__()
        from monai.networks.nets.classifier import Discriminator as Network

        self.settings = settings
        self.network = Network(**_way_down(settings, channels), dropout=None, last_act=None)
        own_norms(self.network)

    def forward(self, image: Tensor) -> Judged:
        middle = len(self.settings.widths) // 2 + 1
        maps = self.network.net[:middle](pixel_unshuffle(image, self.settings.stem))
        verdict = self.network.final(self.network.net[middle:](maps))
        return Judged(verdict[:, 0].float(), maps.float())


class LatentEncoder(nn.Module):
    """Images [B, C, *S] → means and logarithms of variances [B, 2, latent] of their latents."""

    def __init__(self, settings: GeneratorSettings, *, channels: int) -> None:
        super().__init__()
        from monai.networks.nets.regressor import Regressor

        self.settings = settings
        self.network = Regressor(**_way_down(settings, channels), out_shape=(2, settings.latent))
        own_norms(self.network)

    def forward(self, image: Tensor) -> Tensor:
        said: Tensor = self.network(pixel_unshuffle(image, self.settings.stem))
        return said.float()


def latent_in(noise: Tensor, count: int) -> Tensor:
    """The latent [B, count] that stands in noise [B, C, *S]."""
    return noise.flatten(1)[:, :count]


def noise_with(latent: Tensor, shape: Sequence[int]) -> Tensor:
    """Noise [B, *shape] in which this latent [B, count] stands, and nothing else."""
    rest = torch.Size(shape).numel() - latent.shape[1]
    return functional.pad(latent, (0, rest)).view(len(latent), *shape)


def _way_down(settings: GeneratorSettings, channels: int) -> dict[str, object]:
    """What MONAI's networks from images to numbers have in common: the generator's levels, finest first."""
    dims, size = len(settings.size), [n // settings.stem for n in settings.size]
    return {
        "in_shape": (channels * settings.stem**dims, *size),
        "channels": (*settings.widths, settings.widths[-1]),
        "strides": (1, *[2] * (len(settings.widths) - 1), 1),
        "num_res_units": 0,
        "act": ACTIVATION,
        "norm": ("group", {"num_groups": settings.groups}),
    }
