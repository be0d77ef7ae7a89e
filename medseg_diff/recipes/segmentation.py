"""The floor plan: every system as a composition of rooms, read from YAML."""

import itertools
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from medseg_diff.data.datasets.augmentation import Augmentation
from medseg_diff.data.transforms import Preparation
from medseg_diff.data.views import AnyView, AxialSlices, Patches
from medseg_diff.diffusion import DDPM, AnySolver, Clipped, Denoiser, NoiseSchedule
from medseg_diff.diffusion.denoiser import AnyDenoiser, DenoiserSettings
from medseg_diff.errors import UsageError
from medseg_diff.methods.components import Findings
from medseg_diff.methods.regions import hierarchy_of
from medseg_diff.methods.sampled_segmentation import Plan
from medseg_diff.methods.tiled import Tiled
from medseg_diff.networks import AnyNetwork
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.settings import ChannelName, Settings, parse_settings
from medseg_diff.training.fit import FitSettings

Noise = Literal["independent", "shared"]


class SamplingSettings(Settings):
    """How an ensemble is drawn. `members_at_once` null: all of them.

    `noise`: each slice of a member has its own, or all slices of a member share one, so that they agree more.
    """

    solver: AnySolver = DDPM()
    steps: int = Field(default=3, ge=1)
    members: int = Field(default=10, ge=1, le=1000)
    members_at_once: int | None = Field(default=None, ge=1)
    network_batch: int = Field(default=32, ge=1, le=4096)
    noise: Noise = "independent"


class Validation(Settings):
    """What is sampled during training: this many slices, spread over the validation cases, with this many members.

    At its end `calibration_slices` are sampled as `segment` would, for threshold and temperature; 0 leaves that out.
    `film`: of so many slices, always the same, each validation draws how the mask comes out of the noise.
    """

    slices: int = Field(default=48, ge=1)
    members: int = Field(default=3, ge=1)
    film: int = Field(default=3, ge=0, le=4)
    calibration_slices: int = Field(default=128, ge=0)


class SegmentationRecipe(Settings):
    """A segmentation system. `regions` group the labels of `seg`, the outermost first: {whole_tumour: [1, 2, 3, 4]}.

    Labels that lie in none of them on purpose stand in `other_labels`; any other is refused in training.
    Where they do not all nest (`nested: false`) they may be disjoint or overlap; what holds another still bounds it.
    """

    task: Literal["segment"] = "segment"
    paper: str
    channels: tuple[ChannelName, ...] = Field(min_length=1)
    regions: dict[Annotated[str, Field(pattern=r"^[A-Za-z][\w-]{0,40}$")], tuple[int, ...]] = Field(min_length=1)
    nested: bool = True
    other_labels: tuple[int, ...] = ()
    preparation: Preparation = Preparation()
    view: AnyView = AxialSlices()
    augmentation: Augmentation = Augmentation()
    schedule: NoiseSchedule
    denoiser: DenoiserSettings = DenoiserSettings()
    network: AnyNetwork = UNetSettings()
    training: FitSettings = FitSettings()
    validation: Validation = Validation()
    sampling: SamplingSettings = SamplingSettings()
    findings: Findings = Findings()

    @model_validator(mode="after")
    def _fits(self) -> "SegmentationRecipe":
        if len(set(self.channels)) != len(self.channels):
            raise ValueError(f"a channel is named twice: {', '.join(self.channels)}")
        if any(not labels or min(labels) < 1 for labels in self.regions.values()):
            raise ValueError("every region needs labels, 1 or higher")
        nested = list(self.regions.values())
        if self.nested and any(not set(inner) <= set(outer) for outer, inner in itertools.pairwise(nested)):
            raise ValueError("regions must be nested, the outermost first; if they are not meant to, set nested=false")
        if self.sampling.steps > self.schedule.length:
            raise ValueError(f"{self.sampling.steps} sampling steps, but the schedule has {self.schedule.length}")
        if self.training.batch % self.training.accumulate:
            raise ValueError(
                f"training.batch {self.training.batch} does not divide by accumulate {self.training.accumulate}"
            )
        beyond = [axis for axis in self.augmentation.flips if not 0 <= axis < self.view.dims]
        if beyond:
            raise ValueError(f"augmentation.flips names axis {beyond[0]}, but the view has {self.view.dims}")
        if self.sampling.noise == "shared" and isinstance(self.view, Patches):
            raise ValueError("sampling.noise shared is for slices: a volume in patches has one noise already")
        return self

    @property
    def bears_missing_channels(self) -> bool:
        """Whether the model is trained to do without some of its channels."""
        return self.augmentation.channel_dropout > 0

    def build_denoiser(self) -> Denoiser:
        """The untrained denoiser."""
        outputs = len(self.regions) * (2 if self.denoiser.learned_variance else 1)
        network = self.network.build(
            dims=self.view.dims,
            channels=len(self.regions),
            outputs=outputs,
            image_channels=self.view.shown(len(self.channels)),
        )
        return self.denoiser.around(network, self.schedule)

    def plan(self, **changes: Any) -> Plan:
        """How to draw an ensemble, with some of `sampling` changed (steps, members, network_batch, …)."""
        if changes.get("noise") not in (None, *get_args(Noise)):
            raise UsageError(f"there is no noise `{changes['noise']}`", fix=f"use {' or '.join(get_args(Noise))}")
        changes = {name: value for name, value in changes.items() if value is not None}
        sampling = parse_settings(SamplingSettings, self.sampling.model_dump(mode="json") | changes, source="sampling")
        if sampling.steps > self.schedule.length:
            raise UsageError(
                f"{sampling.steps} steps, but the schedule has {self.schedule.length}", fix="lower --steps"
            )
        if sampling.noise == "shared" and isinstance(self.view, Patches):
            raise UsageError("a volume in patches has one noise already", fix="leave --noise out")
        return Plan(
            times=self.schedule.times(sampling.steps),
            solver=sampling.solver,
            members=sampling.members,
            network_batch=sampling.network_batch,
            members_at_once=sampling.members_at_once or sampling.members,
            hierarchy=hierarchy_of(self.regions),
            shared_noise=sampling.noise == "shared",
        )


def for_masks(denoiser: Denoiser) -> AnyDenoiser:
    """The denoiser as it samples masks: clean predictions kept inside [-1, 1]. Logits are there by construction."""
    return denoiser if denoiser.target == "logits" else Clipped(denoiser)


def in_tiles(denoiser: Denoiser, view: Patches, *, batch: int) -> Tiled:
    """The denoiser of masks for whole volumes, `batch` tiles in a network pass."""
    return Tiled(for_masks(denoiser), view.size, overlap=view.overlap, batch=batch)
