"""What every recipe says, whatever it is for: whose idea it is, what it reads, and how its denoiser learns."""

from collections.abc import Callable
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from medseg_diff.data.datasets.augmentation import Augmentation
from medseg_diff.data.transforms import Preparation
from medseg_diff.data.views import AnyView, AxialSlices, SynthesisView
from medseg_diff.diffusion import DDPM, Denoiser, NoiseSchedule
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.diffusion.noise import AnyNoise, GaussianNoise
from medseg_diff.networks import AnyNetwork
from medseg_diff.networks.autoencoders import Autoencoder
from medseg_diff.networks.prior import WithPriorSettings
from medseg_diff.networks.unet import ChannelNames, UNetSettings
from medseg_diff.recipes.spaces import AUTOENCODER, AnySpace, LatentSettings
from medseg_diff.settings import ChannelName, Settings
from medseg_diff.spaces import PLAIN, ImageSpace
from medseg_diff.training.fit import FitSettings, trainings_of


class Recipe(Settings):
    """A system, read from YAML. x_0 lives in `space`; `noise` is what training adds and sampling begins with."""

    task: str
    paper: str
    channels: tuple[ChannelName, ...] = Field(min_length=1)
    preparation: Preparation = Preparation()
    view: AnyView | SynthesisView = AxialSlices()
    augmentation: Augmentation = Augmentation()
    space: AnySpace = ImageSpace()
    schedule: NoiseSchedule
    noise: AnyNoise = GaussianNoise()
    denoiser: DenoiserSettings = DenoiserSettings()
    network: AnyNetwork = UNetSettings()
    training: FitSettings = FitSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        if len(set(self.channels)) != len(self.channels):
            raise ValueError(f"a channel is named twice: {', '.join(self.channels)}")
        if (grid_of := self.preparation.resample_to) not in (None, *self.channels):
            raise ValueError(
                f"preparation.resample_to {grid_of} is not one of the channels: {', '.join(self.channels)}"
            )
        beyond = [axis for axis in self.augmentation.flips if not 0 <= axis < self.view.dims]
        if beyond:
            raise ValueError(f"augmentation.flips names axis {beyond[0]}, but the view has only {self.view.dims} axes")
        if self.denoiser.target == "logits" and self.space != PLAIN:
            raise ValueError("logits predict masks in [-1, 1]: leave space as it is")
        if isinstance(self.network, WithPriorSettings) and self.denoiser.target != "logits":
            raise ValueError(
                f"network with_prior predicts masks, not {self.denoiser.target}: set denoiser.target=logits"
            )
        for name, part in self:
            solver = getattr(part, "solver", None)
            if isinstance(solver, DDPM) and solver.variance == "learned" and not self.denoiser.learned_variance:
                raise ValueError(
                    f"{name}.solver.variance is learned, but the denoiser learns none: set it to posterior"
                )
        if isinstance(self.network, WithPriorSettings) and self.denoiser.learned_variance:
            raise ValueError("network with_prior learns no variance: set denoiser.learned_variance=false")
        for name, value in trainings_of(self).items():
            if value.batch % value.accumulate:
                raise ValueError(f"{name}.batch {value.batch} does not divide by accumulate {value.accumulate}")
            if value.precision not in ("auto", self.training.precision):
                raise ValueError(f"one precision serves all networks: set training.precision, not {name}.precision")
        return self

    @property
    def bears_missing_channels(self) -> bool:
        """Whether the model is trained to do without some of its channels."""
        return self.augmentation.channel_dropout > 0

    @property
    def names(self) -> ChannelNames:
        """What the channels of its networks are called."""
        raise AssertionError("each recipe knows what its networks are shown")

    def parts(self) -> dict[str, Callable[[], nn.Module]]:
        """The networks of a trained run: how each file below weights/ is called → what builds it untrained."""
        raise AssertionError("each recipe knows what it trains")

    @property
    def trainings(self) -> dict[str, FitSettings]:
        """How each network that the recipe has is trained, by the name of the setting."""
        parts, named = self.parts(), trainings_of(self)
        of_absent = {f"{name}_training" for name in ("classifier", "regressor") if name not in parts}
        return {name: each for name, each in named.items() if name not in of_absent}

    @property
    def x_channels(self) -> tuple[str, ...]:
        """What the channels of x_0 are called, where that is the image or its latent."""
        if isinstance(self.space, LatentSettings):
            return tuple(f"latent {number}" for number in range(self.space.autoencoder.latent))
        return self.channels

    @property
    def encodes_once(self) -> bool:
        """Whether the denoiser learns from latents that were made beforehand."""
        return isinstance(self.space, LatentSettings) and self.space.passes > 0

    def build_autoencoder(self) -> Autoencoder:
        """The untrained autoencoder of a latent space."""
        assert isinstance(self.space, LatentSettings)
        return self.space.autoencoder.build(dims=self.view.dims, channels=len(self.channels))

    def _autoencoder(self) -> dict[str, Callable[[], nn.Module]]:
        """The autoencoder as one of the `parts`, where the space has one."""
        return {AUTOENCODER: self.build_autoencoder} if isinstance(self.space, LatentSettings) else {}

    def _said_of(self, channels: tuple[str, ...]) -> tuple[str, ...]:
        """What its denoiser's outputs are called: of each channel of x_0 one, with a learned variance or deviation two."""
        variances = tuple(f"variance of {name}" for name in channels) if self.denoiser.outputs > 1 else ()
        return (*channels, *variances)

    def _denoiser(self, channels: int, **condition: Any) -> Denoiser:
        """The untrained denoiser of x_0 [B, channels, *S]."""
        outputs = channels * self.denoiser.outputs
        network = self.network.build(dims=self.view.dims, channels=channels, outputs=outputs, **condition)
        return self.denoiser.around(network, self.schedule)
