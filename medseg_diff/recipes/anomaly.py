"""The anomaly systems: a denoiser, a noisy classifier, how they are trained, and how a map becomes a finding."""

from typing import Any, Literal

from pydantic import Field, model_validator

from medseg_diff.data.datasets.augmentation import Augmentation
from medseg_diff.data.transforms import Preparation
from medseg_diff.data.views import AxialSlices
from medseg_diff.diffusion import Denoiser, NoiseSchedule
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.errors import UsageError
from medseg_diff.methods.anomaly.inversion import HealingSettings
from medseg_diff.methods.anomaly.normative import AnomalyFindings
from medseg_diff.networks.noisy_classifier import NoisyClassifier, NoisyClassifierSettings
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.settings import ChannelName, Settings, parse_settings
from medseg_diff.training.fit import FitSettings

LABELS = 2  # healthy and diseased


class AnomalyValidation(Settings):
    """What is measured during training: on this many slices, spread over the validation cases.

    `film`: of so many of them, always the same, each validation draws the way to noise and back.
    """

    slices: int = Field(default=64, ge=2)
    film: int = Field(default=2, ge=0, le=4)


class AnomalyRecipe(Settings):
    """An anomaly system. `diseased` are the labels of `seg` that make a slice diseased, `fewest_voxels` of them at least
    (a slice with fewer teaches the denoiser only); null: every label above 0. `same_height`: the classifier sees healthy
    slices from the heights of the diseased ones, so that it cannot tell them apart by where they lie.

    The networks see x_0 = image × `image_scale` and learn the times 1 … `deepest` (null: the whole schedule): a network
    that healing never asks beyond its depth need not be taught there.
    """

    task: Literal["anomaly"] = "anomaly"
    paper: str
    channels: tuple[ChannelName, ...] = Field(min_length=1)
    diseased: tuple[int, ...] | None = None
    fewest_voxels: int = Field(default=1, ge=1)
    same_height: bool = False
    preparation: Preparation = Preparation()
    view: AxialSlices = AxialSlices()
    augmentation: Augmentation = Augmentation()
    image_scale: float = Field(default=1.0, gt=0)
    schedule: NoiseSchedule
    deepest: int | None = Field(default=None, ge=1)
    denoiser: DenoiserSettings = DenoiserSettings(target="noise")
    network: UNetSettings = UNetSettings()
    label_dropout: float = Field(default=0.2, gt=0, le=1)
    classifier: NoisyClassifierSettings = NoisyClassifierSettings()
    training: FitSettings = FitSettings()
    classifier_training: FitSettings = FitSettings()
    validation: AnomalyValidation = AnomalyValidation()
    healing: HealingSettings = HealingSettings()
    findings: AnomalyFindings = AnomalyFindings()

    @model_validator(mode="after")
    def _fits(self) -> "AnomalyRecipe":
        if len(set(self.channels)) != len(self.channels):
            raise ValueError(f"a channel is named twice: {', '.join(self.channels)}")
        if self.diseased is not None and (not self.diseased or min(self.diseased) < 1):
            raise ValueError("diseased needs labels, 1 or higher, or null for all of them")
        absent = [channel for channel in self.findings.map_channels if channel not in self.channels]
        if absent:
            raise ValueError(f"findings.map_channels names {absent[0]}; the recipe reads {', '.join(self.channels)}")
        if self.view.context:
            raise ValueError("view.context is 0: healing changes every slice that it looks at")
        if self.augmentation.channel_dropout:
            raise ValueError("augmentation.channel_dropout is 0: a channel that is not there cannot be healed")
        if self.denoiser.target == "logits":
            raise ValueError("denoiser.target logits is for masks; use velocity, noise or clean")
        if self.network.covariates or self.network.classes not in (0, LABELS):
            raise ValueError(f"network.classes is {LABELS} (healthy, diseased) or 0, and there are no covariates")
        told = self.healing.engine == "classifier_free" or self.healing.told_healthy
        if told and not self.network.classes:
            raise ValueError(f"healing tells the denoiser `healthy`, so network.classes must be {LABELS}")
        for name, training in (("training", self.training), ("classifier_training", self.classifier_training)):
            if training.batch % training.accumulate:
                raise ValueError(f"{name}.batch {training.batch} does not divide by accumulate {training.accumulate}")
        if self.classifier_training.precision not in ("auto", self.training.precision):
            raise ValueError("one precision serves both networks: set training.precision")
        if (self.deepest or 0) > self.schedule.length:
            raise ValueError(f"deepest {self.deepest} is beyond the schedule's {self.schedule.length}")
        try:
            self.heals()
        except UsageError as error:
            raise ValueError(f"healing: {error.found}") from None
        return self

    def build_denoiser(self) -> Denoiser:
        """The untrained denoiser, unconditional or, with network.classes, of images with a label."""
        outputs = len(self.channels) * (2 if self.denoiser.learned_variance else 1)
        network = self.network.build(dims=self.view.dims, channels=len(self.channels), outputs=outputs)
        return self.denoiser.around(network, self.schedule)

    def build_classifier(self) -> NoisyClassifier:
        """The untrained classifier of noisy images: logits of healthy and diseased."""
        return self.classifier.build(dims=self.view.dims, channels=len(self.channels), classes=LABELS)

    def heals(self, **changes: Any) -> HealingSettings:
        """How to heal, with some of `healing` changed (depth, steps, scale, …; None changes nothing).

        Raises: UsageError where the times do not fit the schedule.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        healing = parse_settings(HealingSettings, self.healing.model_dump(mode="json") | changes, source="healing")
        healing.levels(self.schedule)
        if self.deepest and healing.depth > self.deepest:
            raise UsageError(
                f"depth {healing.depth} is deeper than the networks have learned ({self.deepest})",
                fix="use a smaller depth, or train with a larger `deepest`",
            )
        return healing

    def levels(self) -> list[int]:
        """The times that healing goes up and back."""
        return self.healing.levels(self.schedule)

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Numbers of the channels that the map sums; empty: all."""
        return tuple(self.channels.index(channel) for channel in self.findings.map_channels)
