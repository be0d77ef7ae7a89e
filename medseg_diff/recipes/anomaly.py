"""The anomaly systems: the networks of an engine, what they learn from, and how a score becomes a finding."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medseg_diff.data.views import AxialSlices
from medseg_diff.diffusion import Denoiser
from medseg_diff.diffusion.denoiser import AnyDenoiser, DenoiserSettings, Network
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.errors import ConfigError, UsageError
from medseg_diff.methods.anomaly import AnyEngine
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.methods.anomaly.inversion import Inversion
from medseg_diff.methods.anomaly.normative import AnomalyFindings
from medseg_diff.networks import AnomalyNetwork
from medseg_diff.networks.bottleneck import BottleneckSettings
from medseg_diff.networks.encoded import WithEncoderSettings
from medseg_diff.networks.noisy_classifier import NoisyClassifier, NoisyClassifierSettings
from medseg_diff.networks.unet import ChannelNames, UNetSettings
from medseg_diff.recipes.base import Recipe
from medseg_diff.recipes.spaces import AnySpace, LatentSettings
from medseg_diff.settings import Label, Settings, apply_overrides, parse_settings
from medseg_diff.spaces import ImageSpace, Space
from medseg_diff.training.fit import FitSettings

LABELS = 2  # healthy and diseased


class AnomalyValidation(Settings):
    """What is measured during training: on this many slices, spread over the validation cases.

    `trajectories`: of so many of them, always the same, each validation draws how the engine decodes them.
    At its end at most `calibration_cases` are mapped as `anomaly` would, for normative mean and threshold, healthy brains
    before slices without lesion; a threshold of few false positives (`anomaly --guarantee`) needs nine healthy ones or more.
    """

    renamed: ClassVar[Mapping[str, str]] = {"film": "trajectories"}

    slices: int = Field(default=64, ge=2, le=100_000)
    trajectories: int = Field(default=2, ge=0, le=4)
    calibration_cases: int = Field(default=8, ge=2, le=10_000)


class AnomalyRecipe(Recipe):
    """An anomaly system. `diseased` are the labels of `seg` that make a slice diseased, `fewest_voxels` of them at least
    (a slice with fewer teaches the denoiser only); null: every label above 0. `same_height`: the classifier sees healthy
    slices from the heights of the diseased ones, so that it cannot tell them apart by where they lie.

    The networks see x_0 of the `space` and learn the times 1 … `deepest` (null: the whole schedule): a network that the
    engine never asks beyond its depth need not be taught there. `classifier` is built and trained for engines that need it.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "image_scale": "space.scale",
        "healing": "engine",
        "findings.map": "engine.map",
        "findings.map_channels": "engine.map_channels",
    }

    task: Literal["anomaly"] = "anomaly"
    diseased: tuple[Label, ...] | None = None
    fewest_voxels: int = Field(default=1, ge=1, le=1_000_000)
    same_height: bool = False
    view: AxialSlices = AxialSlices()
    space: AnySpace = ImageSpace()
    deepest: int | None = Field(default=None, ge=1, le=LONGEST)
    denoiser: DenoiserSettings = DenoiserSettings(target="noise")
    network: AnomalyNetwork = UNetSettings()
    label_dropout: float = Field(default=0.2, gt=0, le=1)
    classifier: NoisyClassifierSettings = NoisyClassifierSettings()
    classifier_training: FitSettings = FitSettings()
    validation: AnomalyValidation = AnomalyValidation()
    engine: AnyEngine = Inversion()
    findings: AnomalyFindings = AnomalyFindings()

    @model_validator(mode="after")
    def _fits(self) -> "AnomalyRecipe":
        if self.diseased is not None and (not self.diseased or min(self.diseased) < 1):
            raise ValueError("diseased needs labels, 1 or higher, or null for all of them")
        absent = [channel for channel in self.engine.named_channels if channel not in self.channels]
        if absent:
            raise ValueError(f"the engine names {absent[0]}; the recipe reads {', '.join(self.channels)}")
        if self.view.context:
            raise ValueError("view.context must be 0: an engine changes every slice that it looks at")
        if self.augmentation.channel_dropout:
            raise ValueError("augmentation.channel_dropout must be 0: a missing channel cannot be reconstructed")
        if self.augmentation.lesion_paste:
            raise ValueError("augmentation.lesion_paste must be 0: a healthy slice with a lesion in it is not healthy")
        if isinstance(self.space, LatentSettings) and self.space.compression.perceptual:
            raise ValueError(
                "space.compression.perceptual must be 0: there is no regressor whose features it could use"
            )
        if self.classifier.pooling == "levels" and self.classifier_training.passes_batch < 2:
            raise ValueError("classifier_training.batch must be 2 or more with pooling levels, which compares images")
        if self.learned > self.schedule.length:
            raise ValueError(f"deepest {self.deepest} is beyond the schedule's {self.schedule.length}")
        try:
            depth = self.engine.deepest(self.schedule)
        except UsageError as error:
            raise ValueError(f"engine: {error.found}") from None
        if depth > self.learned:
            raise ValueError(f"engine: depth {depth} is deeper than the networks learn (deepest {self.deepest})")
        return self

    @model_validator(mode="after")
    def _denoiser_fits_the_engine(self) -> "AnomalyRecipe":
        kind, target = self.engine.kind, self.denoiser.target
        if self.engine.in_latent != isinstance(self.space, LatentSettings):
            raise ValueError(f"engine {kind} works in space.kind={'latent' if self.engine.in_latent else 'image'}")
        if target == "logits":
            raise ValueError("denoiser.target logits is for masks; use velocity, noise or clean")
        if target not in self.engine.targets:
            needs = " or ".join(self.engine.targets)
            raise ValueError(f"engine {kind} takes its network's output as an image: set denoiser.target={needs}")
        if self.engine.wants_deviation and not self.denoiser.learned_deviation:
            needs = "denoiser={target: clean, learned_deviation: true}"
            raise ValueError(f"engine {kind} measures in deviations, which its denoiser must learn: set {needs}")
        if self.denoiser.learned_deviation and not self.engine.wants_deviation:
            raise ValueError(f"denoiser.learned_deviation is not for engine {kind}, which ignores it")
        return self

    @model_validator(mode="after")
    def _network_fits_the_engine(self) -> "AnomalyRecipe":
        kind, given, network = self.engine.kind, self.engine.conditioned_on, self.network
        encodes = isinstance(network, WithEncoderSettings)
        if given == "image" and not encodes:
            raise ValueError(
                f"engine {kind} conditions its denoiser on a code of the image: set network.kind=with_encoder"
            )
        if encodes and given != "image":
            raise ValueError(f"engine {kind} gives network with_encoder no image to encode: set network.kind=unet")
        if isinstance(network, BottleneckSettings) and (given != "nothing" or self.engine.needs_labels):
            raise ValueError(
                f"engine {kind} needs a condition, which a bottleneck does not take: set network.kind=unet"
            )
        if isinstance(network, UNetSettings) and (network.covariates or network.classes not in (0, LABELS)):
            raise ValueError(f"network.classes must be {LABELS} (healthy, diseased) or 0, without covariates")
        if self.engine.needs_labels and not self.learns_labels:
            raise ValueError(f"the engine conditions the denoiser on `healthy`, so network.classes must be {LABELS}")
        if given != "nothing" and self.learns_labels:
            raise ValueError(
                f"engine {kind} conditions its denoiser on an image, not on a label: set network.classes=0"
            )
        return self

    def lesion_in(self, labels: Tensor) -> Tensor:
        """Where integer labels [...] are those of a lesion."""
        if self.diseased is None:
            return labels > 0
        return torch.isin(labels, torch.tensor(list(self.diseased), dtype=labels.dtype))

    @property
    def learns_labels(self) -> bool:
        """Whether its denoiser is told which images are healthy and which diseased."""
        return isinstance(self.network, UNetSettings) and self.network.classes > 0

    @property
    def learned(self) -> int:
        """The noisiest time that the networks learn."""
        return self.deepest or self.schedule.length

    @property
    def denoised_times(self) -> tuple[int, int]:
        """The first and the last time that its denoiser learns."""
        return self.engine.learned_times(self.schedule, self.learned)

    @property
    def names(self) -> ChannelNames:
        image = tuple(f"seen {name}" for name in self.channels)
        seen = {"nothing": (), "image": image, "rest": (*image, "hidden")}[self.engine.conditioned_on]
        return ChannelNames(self.x_channels, seen, self._said_of(self.x_channels))

    def build_denoiser(self) -> Denoiser:
        """The untrained denoiser, unconditional, with network.classes of images with a label, or of what is hidden."""
        return self._denoiser(len(self.x_channels), image_channels=len(self.names.image))

    def build_classifier(self) -> NoisyClassifier:
        """The untrained classifier of noisy images: logits of healthy and diseased."""
        return self.classifier.build(dims=self.view.dims, channels=len(self.x_channels), classes=LABELS)

    def networks(
        self,
        denoiser: AnyDenoiser,
        classifier: Network | None = None,
        *,
        space: Space | None = None,
        reference: Mapping[str, float] = MappingProxyType({}),
    ) -> Networks:
        """Trained networks as the engine takes them, in their space (None: the image's, which needs no training)."""
        if space is None:
            assert isinstance(self.space, ImageSpace)
            space = self.space
        return Networks(denoiser, classifier, self.channels, space, self.preparation.background, reference)

    def parts(self) -> dict[str, Callable[[], nn.Module]]:
        builders = {"denoiser": lambda: self.build_denoiser().module(), "classifier": self.build_classifier}
        return {name: builders[name] for name in self.engine.networks} | self._autoencoder()

    def with_overrides(self, overrides: Sequence[str]) -> "AnomalyRecipe":
        """The recipe with settings of engine and findings changed; what the networks have learned stays as it is.

        Raises: ConfigError for another setting, or where a value does not fit.
        """
        for word in overrides:
            key = word.partition("=")[0]
            if key.split(".")[0] not in ("engine", "findings") or key == "findings.false_positive_rate":
                raise ConfigError(
                    f"`{key}` is fixed by the training", fix="change engine.… or findings.…, or train again"
                )
        if not overrides:
            return self
        changed = parse_settings(
            AnomalyRecipe, apply_overrides(self.model_dump(mode="json"), overrides), source="engine"
        )
        if changed.engine.kind != self.engine.kind:
            raise ConfigError(
                "`engine.kind` is fixed by the training", fix=f"leave it {self.engine.kind}, or train again"
            )
        for name in self.engine.learned:
            if getattr(changed.engine, name) != getattr(self.engine, name):
                raise ConfigError(
                    f"`engine.{name}` is fixed by the training: the network has learned nothing else",
                    fix="leave it as it is, or train again",
                )
        return changed
