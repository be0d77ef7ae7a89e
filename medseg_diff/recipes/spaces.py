"""Where a recipe's x_0 lives: the image itself, or what an autoencoder makes of it, which the same run trains first."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag
from torch import nn

from medseg_diff.networks.autoencoders import AnyAutoencoder, Autoencoder, KLSettings
from medseg_diff.settings import Settings
from medseg_diff.spaces import ImageSpace, LatentSpace, Space
from medseg_diff.training.compression import CompressionSettings
from medseg_diff.training.fit import FitSettings

AUTOENCODER = "autoencoder"  # its name among the networks of a run


class LatentSettings(Settings):
    """x_0 is the latent of an autoencoder, which learns by `compression` before the denoiser does.

    Then every image is encoded once, in `passes` augmented forms, which the denoiser learns from in turn; 0: it is encoded
    whenever it is drawn.
    """

    kind: Literal["latent"] = "latent"
    autoencoder: AnyAutoencoder = KLSettings()
    compression: CompressionSettings = CompressionSettings()
    training: FitSettings = FitSettings()
    passes: int = Field(default=4, ge=0, le=1000)

    @property
    def step(self) -> int:
        """Voxels of an image, along an axis, that a place of x_0 stands for."""
        return self.autoencoder.step


def _kind(value: object) -> object:
    """The kind of a space in a recipe: that of the image where it is not said."""
    return value.get("kind", "image") if isinstance(value, dict) else getattr(value, "kind", None)


AnySpace = Annotated[
    Annotated[ImageSpace, Tag("image")] | Annotated[LatentSettings, Tag("latent")],
    Discriminator(_kind, custom_error_type="space_kind", custom_error_message="kind is image or latent"),
]


def space_of(settings: ImageSpace | LatentSettings, networks: Mapping[str, nn.Module]) -> Space:
    """The space that a recipe names, with the autoencoder that was trained for it where it has one."""
    if isinstance(settings, ImageSpace):
        return settings
    autoencoder = networks[AUTOENCODER]
    assert isinstance(autoencoder, Autoencoder)
    return LatentSpace(autoencoder)
