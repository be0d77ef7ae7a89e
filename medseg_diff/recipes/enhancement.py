"""The enhancement systems: a scan at a finer resolution, drawn as one that the coarse scan is the mean of."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from medseg_diff.data.views import EnhancementView, Patches
from medseg_diff.diffusion import DDIM, AnySolver, Denoiser
from medseg_diff.diffusion.coarse import TOLD, Detail
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.methods.enhanced import Enhancing
from medseg_diff.networks.unet import ChannelNames, UNetSettings
from medseg_diff.recipes.base import Recipe
from medseg_diff.settings import Settings, parse_settings
from medseg_diff.spaces import PLAIN

DENOISER = "denoiser"
WHOLE_OVERLAP = 0.25  # of tiles, where a volume is larger than the whole ones that were learned from


class EnhancementSampling(Settings):
    """How a fine volume is drawn: `condition_noise` is the time of the schedule that the coarse one is noised to first."""

    solver: AnySolver = DDIM()
    steps: int = Field(default=20, ge=1, le=LONGEST)
    condition_noise: int = Field(default=0, ge=0, le=LONGEST)
    network_batch: int = Field(default=4, ge=1, le=4096)


class EnhancementValidation(Settings):
    """What is measured during training: on this many pieces, spread over the validation cases; `drawn` are drawn, measured
    against the true ones, and shown at each validation."""

    images: int = Field(default=16, ge=1, le=100_000)
    drawn: int = Field(default=2, ge=1, le=8)


class EnhancementRecipe(Recipe):
    """A second stage. It learns from fine scans, `preparation.spacing_mm`, whose coarse form is made on the fly: the means
    of blocks of `factor` voxels along each axis. In training that is noised to a time drawn from 0 … `condition_noise`, so
    that the network bears coarse scans unlike its own; it is told how much. With `detail_gain` x_0 is not the fine scan but
    what it has beyond the enlarged coarse one, times so much (about one over its deviation)."""

    task: Literal["enhance"] = "enhance"
    factor: int = Field(default=2, ge=2, le=4)
    condition_noise: int = Field(default=300, ge=0, le=LONGEST)
    detail_gain: float = Field(default=0.0, ge=0, le=100)
    view: EnhancementView = Patches(lesion_share=0.0)
    denoiser: DenoiserSettings = DenoiserSettings(target="velocity")
    network: UNetSettings = UNetSettings()
    validation: EnhancementValidation = EnhancementValidation()
    sampling: EnhancementSampling = EnhancementSampling()

    @model_validator(mode="after")
    def _fits(self) -> "EnhancementRecipe":
        if self.network.classes or self.network.covariates not in (0, TOLD):
            raise ValueError("network.classes and network.covariates follow from the condition's noise: leave both out")
        if any(n % self.factor for n in self.view.size):
            raise ValueError(f"view.size must be a multiple of factor, {self.factor}")
        if self.denoiser.target == "logits" or self.denoiser.learned_deviation:
            raise ValueError(
                "to predict images, denoiser.target must be velocity, noise or clean, without learned_deviation"
            )
        if self.space != PLAIN:
            raise ValueError("space must be that of the image, unscaled: leave it out")
        if self.preparation.intensity != "percentile" or self.preparation.per_slice:
            raise ValueError("preparation.intensity must be percentile, of whole volumes: drawn scans are in [-1, 1]")
        if max(self.condition_noise, self.sampling.steps) > self.schedule.length:
            raise ValueError(
                f"condition_noise and sampling.steps may not exceed the schedule, {self.schedule.length} times"
            )
        if self.sampling.condition_noise > self.condition_noise:
            raise ValueError(
                f"sampling.condition_noise is beyond what is trained, condition_noise={self.condition_noise}"
            )
        if isinstance(self.view, Patches) and self.view.lesion_share:
            raise ValueError("view.lesion_share must be 0: a scan is enhanced the same way everywhere")
        if self.augmentation.channel_dropout or self.augmentation.lesion_paste:
            raise ValueError(
                "augmentation.channel_dropout and lesion_paste must be 0: the model would draw scans like that"
            )
        return self

    @property
    def detail(self) -> Detail:
        """What x_0 is of the fine image."""
        return Detail(self.detail_gain)

    @property
    def names(self) -> ChannelNames:
        return ChannelNames(self.channels, self.channels, self._said_of(self.channels))

    def build_denoiser(self) -> Denoiser:
        """The untrained denoiser of the fine image, conditioned on the enlarged coarse one and told its noise."""
        channels = len(self.channels)
        network = self.network.but(covariates=TOLD).build(
            dims=self.view.dims, channels=channels, outputs=channels * self.denoiser.outputs, image_channels=channels
        )
        return self.denoiser.around(network, self.schedule)

    def enhancing(self, **changes: Any) -> Enhancing:
        """How fine volumes are drawn, with some of `sampling` changed (steps, condition_noise, network_batch).

        Raises: ConfigError for a value that cannot be; UsageError where there are more steps than times.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        with_changes = {"sampling": self.sampling.model_dump(mode="json") | changes}
        now = parse_settings(type(self), self.model_dump(mode="json") | with_changes, source="sampling")
        return Enhancing(
            self.factor,
            self.view.size,
            self.view.overlap if isinstance(self.view, Patches) else WHOLE_OVERLAP,
            now.sampling.solver,
            self.schedule.times(now.sampling.steps),
            condition_noise=now.sampling.condition_noise,
            detail=self.detail,
            noise=self.noise,
            network_batch=now.sampling.network_batch,
        )

    def parts(self) -> dict[str, Callable[[], nn.Module]]:
        return {DENOISER: lambda: self.build_denoiser().module()}
