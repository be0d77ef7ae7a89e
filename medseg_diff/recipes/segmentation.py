"""The segmentation systems: masks denoised with the MR channels as their condition, and how an ensemble is drawn."""

import itertools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field, model_validator
from torch import nn

from medseg_diff.data.views import AnyView, AxialSlices, Patches
from medseg_diff.diffusion import DDPM, AnySolver, Clipped, Denoiser
from medseg_diff.diffusion.denoiser import AnyDenoiser
from medseg_diff.diffusion.schedule import LONGEST
from medseg_diff.errors import UsageError
from medseg_diff.methods.components import Findings
from medseg_diff.methods.cuts import AT_HALF, AnyCut
from medseg_diff.methods.labels import MOST_REGIONS
from medseg_diff.methods.plan import Plan
from medseg_diff.methods.regions import hierarchy_of
from medseg_diff.methods.tiled import Tiled
from medseg_diff.networks import SegmentationNetwork
from medseg_diff.networks.unet import ChannelNames, UNetSettings
from medseg_diff.recipes.base import Recipe
from medseg_diff.settings import Axis, Label, Settings, parse_settings
from medseg_diff.spaces import ImageSpace

Noise = Literal["independent", "shared"]


class SamplingSettings(Settings):
    """How an ensemble is drawn. `members_at_once` null: all of them.

    `noise`: each slice of a member has its own, or all slices of a member share one, so that they agree more. `cut`:
    where a member's mask ends. `mirrors`: axes of the view, as in `augmentation.flips`, along which one member after the
    other sees the scan mirrored. `adaptive`: `members` are the most, and no more are drawn than the mean of a case needs to
    be within `tolerance` of its end. `screen`: slices of which one look says that they are empty are not sampled.
    """

    solver: AnySolver = DDPM()
    steps: int = Field(default=3, ge=1, le=LONGEST)
    members: int = Field(default=10, ge=1, le=1000)
    members_at_once: int | None = Field(default=None, ge=1, le=1000)
    network_batch: int = Field(default=32, ge=1, le=4096)
    noise: Noise = "independent"
    cut: AnyCut = AT_HALF
    mirrors: tuple[Axis, ...] = ()
    adaptive: bool = False
    tolerance: float = Field(default=0.05, gt=0, lt=1)
    screen: bool = False


class Validation(Settings):
    """What is sampled during training: this many slices, spread over the validation cases, with this many members.

    At its end `calibration_slices` are sampled as `segment` would, for threshold and temperature; 0 leaves that out.
    `trajectories`: of so many slices, always the same, each validation draws how the mask comes out of the noise.
    `weights`: those kept are of the validation with the best Dice, or the last ones. The last it is, whatever is said here,
    where the slices are of patients that are trained on: these are learned by heart and can choose nothing.
    """

    renamed: ClassVar[Mapping[str, str]] = {"film": "trajectories"}

    slices: int = Field(default=48, ge=1, le=100_000)
    members: int = Field(default=3, ge=1, le=1000)
    trajectories: int = Field(default=3, ge=0, le=4)
    calibration_slices: int = Field(default=128, ge=0, le=100_000)
    weights: Literal["best", "last"] = "best"


class SegmentationRecipe(Recipe):
    """A segmentation system. `regions` group the labels of `seg`, the outermost first: {whole_tumour: [1, 2, 3, 4]}.

    Labels that lie in none of them on purpose stand in `other_labels`; any other is refused in training.
    Masks are written in these labels again, called by `label_names`; labels of one name are one thing in two conventions.
    Where they do not all nest (`nested: false`) they may be disjoint or overlap; what holds another still bounds it.
    """

    task: Literal["segment"] = "segment"
    regions: dict[Annotated[str, Field(pattern=r"^[A-Za-z][\w-]{0,40}$")], tuple[Label, ...]] = Field(
        min_length=1, max_length=MOST_REGIONS
    )
    nested: bool = True
    label_names: dict[Label, Annotated[str, Field(pattern=r"^\w[\w -]{0,60}$")]] = Field(default_factory=dict)
    other_labels: tuple[Label, ...] = ()
    view: AnyView = AxialSlices()
    space: ImageSpace = ImageSpace()
    validation: Validation = Validation()
    network: SegmentationNetwork = UNetSettings()
    sampling: SamplingSettings = SamplingSettings()
    findings: Findings = Findings()

    @model_validator(mode="after")
    def _fits(self) -> "SegmentationRecipe":
        if any(not labels or min(labels) < 1 for labels in self.regions.values()):
            raise ValueError("every region needs labels, 1 or higher")
        nested = list(self.regions.values())
        if self.nested and any(not set(inner) <= set(outer) for outer, inner in itertools.pairwise(nested)):
            raise ValueError("regions must be nested, the outermost first; if they are not meant to, set nested=false")
        if self.sampling.steps > self.schedule.length:
            raise ValueError(f"{self.sampling.steps} sampling steps, but the schedule has {self.schedule.length}")
        mirrors, flips = self.sampling.mirrors, self.augmentation.flips
        if len(set(mirrors)) < len(mirrors) or not set(mirrors) <= set(flips):
            raise ValueError(f"sampling.mirrors may name axes of augmentation.flips {list(flips)}, each at most once")
        if self.sampling.noise == "shared" and isinstance(self.view, Patches):
            raise ValueError("sampling.noise shared is for slices: a volume in patches already shares one noise")
        if self.sampling.screen and isinstance(self.view, Patches):
            raise ValueError("sampling.screen is for slices: a volume in patches is sampled as a whole")
        if self.sampling.screen and not self.validation.calibration_slices:
            raise ValueError("sampling.screen needs a threshold: set validation.calibration_slices above 0")
        return self

    @property
    def names(self) -> ChannelNames:
        context = self.view.shown(1) // 2
        return ChannelNames(
            tuple(f"mask of {region}" for region in self.regions),
            tuple(f"{name} {z:+d}" if z else name for name in self.channels for z in range(-context, context + 1)),
            self._said_of(tuple(self.regions)),
        )

    def build_denoiser(self) -> Denoiser:
        """The untrained denoiser of masks, the channels its condition."""
        return self._denoiser(len(self.regions), image_channels=self.view.shown(len(self.channels)))

    def parts(self) -> dict[str, Callable[[], nn.Module]]:
        return {"best": lambda: self.build_denoiser().module()}

    def plan(self, *, strength: float = 1.0, **changes: Any) -> Plan:
        """How to draw an ensemble, with some of `sampling` changed (steps, members, network_batch, …). With a `strength`
        below 1 the walks begin at that share of the schedule, with a mask noised as far, and have as many steps. What
        `screen` leaves out is not known here: a run measures it.

        Raises: UsageError where there are more steps than times, or a tolerance of nothing.
        """
        if changes.get("noise") not in (None, *get_args(Noise)):
            raise UsageError(f"unknown noise `{changes['noise']}`", fix=f"use {' or '.join(get_args(Noise))}")
        changes = {name: value for name, value in changes.items() if value is not None}
        sampling = parse_settings(SamplingSettings, self.sampling.model_dump(mode="json") | changes, source="sampling")
        if sampling.steps > self.schedule.length:
            raise UsageError(
                f"{sampling.steps} steps, but the schedule has {self.schedule.length}", fix="lower --steps"
            )
        if sampling.noise == "shared" and isinstance(self.view, Patches):
            raise UsageError("a volume in patches already shares one noise", fix="leave --noise out")
        if sampling.screen and isinstance(self.view, Patches):
            raise UsageError(
                "a volume in patches is sampled as a whole: no slice is left out", fix="leave --screen out"
            )
        if "tolerance" in changes and not sampling.adaptive:
            raise UsageError(
                "--tolerance says when adaptive ensembles stop", fix="add --adaptive, or leave --tolerance out"
            )
        begin = round(strength * self.schedule.length)
        if sampling.steps > begin:
            found = f"{sampling.steps} steps do not fit the {begin} times below strength {strength:g}"
            raise UsageError(found, fix="raise --strength, or lower --steps")
        return Plan(
            times=self.schedule.times(sampling.steps, start=begin),
            solver=sampling.solver,
            members=sampling.members,
            network_batch=sampling.network_batch,
            members_at_once=sampling.members_at_once or sampling.members,
            hierarchy=hierarchy_of(self.regions),
            shared_noise=sampling.noise == "shared",
            noise=self.noise,
            cut=sampling.cut,
            mirrors=sampling.mirrors,
            tolerance=sampling.tolerance if sampling.adaptive else None,
            space=self.space,
        )

    def for_masks(self, denoiser: Denoiser) -> AnyDenoiser:
        """The denoiser as it samples masks: its clean predictions stay between outside and inside, as logits' do anyway."""
        if denoiser.target == "logits":
            return denoiser
        outside, inside = (float(self.space.encode(torch.tensor(value))) for value in (-1.0, 1.0))
        return Clipped(denoiser, outside, inside)

    def in_tiles(self, denoiser: Denoiser, view: Patches, *, batch: int) -> Tiled:
        """The denoiser of masks for whole volumes, `batch` tiles in a network pass."""
        return Tiled(self.for_masks(denoiser), view.size, overlap=view.overlap, batch=batch)
