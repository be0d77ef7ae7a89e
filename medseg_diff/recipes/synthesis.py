"""The synthesis systems: images out of noise, in the image's space or a latent one, by covariates or painted into a mask."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import nn

from medseg_diff.data.views import AxialSlices, SynthesisView, WholeVolume
from medseg_diff.diffusion import DDIM, AnySolver, Denoiser
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.diffusion.noise import GaussianNoise
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.errors import UsageError
from medseg_diff.methods.labels import MOST_REGIONS
from medseg_diff.methods.synthesised import Drawing
from medseg_diff.networks import SynthesisNetwork
from medseg_diff.networks.generators import Discriminator, GeneratorSettings, LatentEncoder
from medseg_diff.networks.noisy_classifier import NoisyClassifier, NoisyClassifierSettings
from medseg_diff.networks.spade_unet import SpadeUNetSettings
from medseg_diff.networks.unet import ChannelNames, UNetSettings
from medseg_diff.recipes.base import Recipe
from medseg_diff.recipes.spaces import AnySpace, LatentSettings
from medseg_diff.settings import Label, Settings, parse_settings
from medseg_diff.spaces import PLAIN, Space
from medseg_diff.training.adversarial import AdversarialSettings
from medseg_diff.training.fit import FitSettings

Column = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
DENOISER, REGRESSOR = "denoiser", "regressor"


class SynthesisSampling(Settings):
    """How an image is drawn. `guidance` 1 follows covariates or mask as they were learned, more exaggerates them, 0 leaves
    them out. `limit`: how far a clean prediction may go, by the share `dynamic` of its own values (None: no limit; in the
    image's space 1 is the range)."""

    solver: AnySolver = DDIM()
    steps: int = Field(default=50, ge=1, le=LONGEST)
    guidance: float = Field(default=1.0, ge=0, le=100)
    limit: float | None = Field(default=None, gt=0)
    dynamic: float = Field(default=0.995, gt=0.5, le=1)
    network_batch: int = Field(default=8, ge=1, le=4096)


class SynthesisValidation(Settings):
    """What is measured during training: on this many images, spread over the validation cases; `drawn` are drawn and shown
    at each validation."""

    images: int = Field(default=32, ge=1, le=100_000)
    drawn: int = Field(default=3, ge=0, le=8)


class SynthesisRecipe(Recipe):
    """A synthesis system. The denoiser is conditioned on `covariates`, columns of the table, or, with `network.kind` spade,
    on the mask: `regions` are its classes, of the labels of `seg`, disjoint: {oedema: [2], enhancing: [3, 4]}; with
    `outline` the brain as a whole is one more channel. Labels that lie in none on purpose stand in `other_labels`. A share
    `covariate_dropout` of the images is conditioned on neither: so that there is guidance, and images of anybody.

    With covariates a `regressor` is trained to read them off a scan: it measures what comes out, and its features tell
    images apart.

    With `network.kind` generator it is a GAN: of the diffusion the one step from noise to image is left, and the network
    learns as `adversarial` says.
    """

    task: Literal["synthesise"] = "synthesise"
    covariates: tuple[Column, ...] = ()
    covariate_dropout: float = Field(default=0.1, ge=0, le=1)
    regions: dict[Annotated[str, Field(pattern=r"^[A-Za-z][\w-]{0,40}$")], tuple[Label, ...]] = Field(
        default_factory=dict, max_length=MOST_REGIONS
    )
    outline: bool = False
    other_labels: tuple[Label, ...] = ()
    view: SynthesisView = WholeVolume()
    space: AnySpace = LatentSettings()
    denoiser: DenoiserSettings = DenoiserSettings(target="velocity")
    network: SynthesisNetwork = UNetSettings()
    adversarial: AdversarialSettings | None = None
    regressor: NoisyClassifierSettings = NoisyClassifierSettings(attention=(), pooling="levels")
    regressor_training: FitSettings = FitSettings()
    validation: SynthesisValidation = SynthesisValidation()
    sampling: SynthesisSampling = SynthesisSampling()

    @model_validator(mode="after")
    def _fits(self) -> "SynthesisRecipe":
        if len(set(self.covariates)) < len(self.covariates):
            raise ValueError("covariates names a column twice")
        self._check_network()
        if isinstance(self.view, AxialSlices) and self.view.context:
            raise ValueError("view.context must be 0: a slice is drawn by itself")
        if any(n % self.space.step for n in self.view.size):
            raise ValueError(f"view.size must be a multiple of {self.space.step}, the step of the autoencoder")
        if self.denoiser.target == "logits" or self.denoiser.learned_deviation:
            raise ValueError(
                "to predict images, denoiser.target must be velocity, noise or clean, without learned_deviation"
            )
        if self.sampling.steps > self.schedule.length:
            raise ValueError(f"{self.sampling.steps} sampling steps, but the schedule has {self.schedule.length}")
        if isinstance(self.space, LatentSettings) and self.space.compression.perceptual and not self.covariates:
            raise ValueError("space.compression.perceptual uses the regressor's features, which needs covariates")
        if self.sampling.guidance not in (0, 1) and not self.can_be_guided:
            raise ValueError("sampling.guidance needs covariates or regions, and covariate_dropout above 0")
        if self.regressor.pooling != "levels":
            raise ValueError("regressor.pooling must be levels: the regressor measures amounts")
        if self.covariates and self.regressor_training.passes_batch < 2:
            raise ValueError("regressor_training.batch must be 2 or more: differences show only between images")
        if self.augmentation.channel_dropout or self.augmentation.lesion_paste:
            raise ValueError(
                "augmentation.channel_dropout and lesion_paste must be 0: the model would draw scans like that"
            )
        return self

    def _check_network(self) -> None:
        """Raises: ValueError where the network does not take what the recipe conditions it on."""
        if isinstance(self.network, GeneratorSettings):
            self._check_generator(self.network)
            return
        if self.adversarial:
            raise ValueError("adversarial is for network.kind generator: set it, or leave adversarial out")
        if isinstance(self.network, UNetSettings):
            if self.regions or self.outline or self.other_labels:
                raise ValueError(
                    "regions, outline and other_labels are for network.kind spade: set it, or leave them out"
                )
            if self.network.covariates not in (0, len(self.covariates)) or self.network.classes:
                raise ValueError("network.covariates follows from covariates, and there are no classes: leave both out")
            return
        if not self.regions:
            raise ValueError("network.kind spade paints regions of seg: set regions, such as {lesion: [1]}")
        if self.covariates:
            raise ValueError("network.kind spade is conditioned on a mask, not on covariates: set covariates=[]")
        labels = [label for region in self.regions.values() for label in region]
        if not all(self.regions.values()) or min(labels) < 1:
            raise ValueError("every region needs labels, 1 or higher")
        labels += self.other_labels
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"regions must be disjoint, but label {twice[0]} is in two of regions and other_labels")
        if self.network.map_channels not in (1, self.map_channels):
            raise ValueError("network.map_channels follows from regions: leave it out")
        if self.encodes_once:
            raise ValueError("space.passes must be 0 with regions: masks are not kept with latents")

    def _check_generator(self, network: GeneratorSettings) -> None:
        """Raises: ValueError where the recipe is no GAN."""
        if not self.adversarial:
            raise ValueError("network.kind generator learns from a discriminator: set adversarial={}")
        if self.covariates or self.regions or self.outline or self.other_labels:
            raise ValueError("network.kind generator is conditioned on nothing: leave covariates and regions out")
        if self.space != PLAIN or self.noise != GaussianNoise():
            raise ValueError("network.kind generator makes images of normal numbers: leave space and noise as they are")
        if self.schedule.length != 1 or self.denoiser.target != "clean":
            raise ValueError("network.kind generator takes one step: set schedule.length=1 and denoiser.target=clean")
        if network.size not in ((), self.view.size):
            raise ValueError("network.size follows from view.size: leave it out")
        network.check_size(self.view.size)

    @property
    def map_channels(self) -> int:
        """Channels of the mask that the network is shown."""
        return len(self.regions) + self.outline

    @property
    def generator(self) -> GeneratorSettings | None:
        """The generator, where this is a GAN."""
        network = self._network()
        return network if isinstance(network, GeneratorSettings) else None

    @property
    def can_be_guided(self) -> bool:
        """Whether it learns from images with and without what it is conditioned on."""
        return bool((self.covariates or self.regions) and self.covariate_dropout)

    @property
    def names(self) -> ChannelNames:
        return ChannelNames(self.x_channels, (), self._said_of(self.x_channels))

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid of x_0."""
        return tuple(n // self.space.step for n in self.view.size)

    def build_denoiser(self) -> Denoiser:
        """The untrained denoiser of x_0, conditioned on the covariates or the mask."""
        network = self._network().build(
            dims=self.view.dims,
            channels=len(self.x_channels),
            outputs=len(self.x_channels) * self.denoiser.outputs,
        )
        return self.denoiser.around(network, self.schedule)

    def _network(self) -> UNetSettings | SpadeUNetSettings | GeneratorSettings:
        """Its settings, with what follows from those of the recipe."""
        if isinstance(self.network, SpadeUNetSettings):
            return self.network.but(map_channels=self.map_channels)
        if isinstance(self.network, UNetSettings):
            return self.network.but(covariates=len(self.covariates))
        return self.network.but(size=self.view.size)

    def build_discriminator(self) -> Discriminator:
        """The untrained discriminator beside a generator."""
        network = self.generator
        assert network
        return network.discriminator(channels=len(self.channels))

    def build_encoder(self) -> LatentEncoder | None:
        """The untrained encoder beside a generator, where the recipe asks for one."""
        network, settings = self.generator, self.adversarial
        return network.encoder(channels=len(self.channels)) if network and settings and settings.encoder else None

    def build_regressor(self) -> NoisyClassifier:
        """The untrained reader of covariates: [B, C, *S] → [B, K]."""
        return self.regressor.build(dims=self.view.dims, channels=len(self.channels), classes=len(self.covariates))

    def drawing(self, space: Space, **changes: Any) -> Drawing:
        """How images are drawn in the trained space, with some of `sampling` changed (steps, guidance, network_batch, …).

        Raises: ConfigError for a value that cannot be; UsageError where there are more steps than times, or guidance
        without what it needs.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        known = self.sampling.model_dump(mode="json") | changes
        sampling = parse_settings(SynthesisSampling, known, source="sampling")
        if sampling.guidance not in (0, 1) and not self.can_be_guided:
            found = "guidance needs covariates that were sometimes left out in training, and the model has none"
            raise UsageError(found, fix="leave --guidance out, or train with covariates and covariate_dropout=0.1")
        return Drawing(
            space,
            (len(self.x_channels), *self.grid),
            sampling.solver,
            self.schedule.times(sampling.steps),
            guidance=sampling.guidance,
            limit=sampling.limit,
            dynamic=sampling.dynamic,
            noise=self.noise,
            network_batch=sampling.network_batch,
        )

    def parts(self) -> dict[str, Callable[[], nn.Module]]:
        regressor: dict[str, Callable[[], nn.Module]] = {REGRESSOR: self.build_regressor} if self.covariates else {}
        return {DENOISER: lambda: self.build_denoiser().module(), **self._autoencoder(), **regressor}
