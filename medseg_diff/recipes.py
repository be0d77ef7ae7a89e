"""The floor plan: every system as a composition of rooms, read from YAML."""

import importlib.resources
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medseg_diff.data.augmentation import Augmentation
from medseg_diff.data.transforms import Preparation
from medseg_diff.data.views import AnyView, AxialSlices
from medseg_diff.diffusion import DDPM, AnySolver, Clipped, Denoiser, NoiseSchedule
from medseg_diff.diffusion.denoiser import AnyDenoiser, Target
from medseg_diff.errors import ConfigError, UsageError
from medseg_diff.methods.sampled_segmentation import Plan
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.settings import Settings, apply_overrides, parse_settings, read_yaml
from medseg_diff.training.fit import FitSettings

Task = Literal["segment", "anomaly", "synthesise"]
AnyNetwork = Annotated[UNetSettings, Field()]


class DenoiserSettings(Settings):
    """What the network's output means."""

    target: Target = "logits"
    learned_variance: bool = False


class SamplingSettings(Settings):
    """How an ensemble is drawn. `members_at_once` null: all of them."""

    solver: AnySolver = DDPM()
    steps: int = Field(default=3, ge=1)
    members: int = Field(default=10, ge=1)
    members_at_once: int | None = Field(default=None, ge=1)
    network_batch: int = Field(default=32, ge=1)


class Findings(Settings):
    """From probability to mask: above `threshold`, without components smaller than a share of the largest."""

    threshold: float = Field(default=0.5, gt=0, lt=1)
    smallest_component: float = Field(default=0.1, ge=0, le=1)  # 0 keeps everything


class Validation(Settings):
    """What is sampled during training: this many slices, spread over the validation cases, with this many members."""

    slices: int = Field(default=48, ge=1)
    members: int = Field(default=3, ge=1)


class SegmentationRecipe(Settings):
    """A segmentation system. `regions` group the labels of `seg`, the outermost first: {whole_tumour: [1, 2, 3, 4]}."""

    task: Literal["segment"] = "segment"
    paper: str
    channels: tuple[str, ...] = Field(min_length=1)
    regions: dict[str, tuple[int, ...]] = Field(min_length=1)
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
        if any(not set(inner) <= set(outer) for outer, inner in itertools.pairwise(nested)):
            raise ValueError("regions must be nested, the outermost first")
        if self.sampling.steps > self.schedule.length:
            raise ValueError(f"{self.sampling.steps} sampling steps, but the schedule has {self.schedule.length}")
        if self.training.batch % self.training.accumulate:
            raise ValueError(
                f"training.batch {self.training.batch} does not divide by accumulate {self.training.accumulate}"
            )
        return self

    def build_denoiser(self) -> Denoiser:
        """The untrained denoiser."""
        outputs = len(self.regions) * (2 if self.denoiser.learned_variance else 1)
        network = self.network.build(
            dims=self.view.dims, channels=len(self.regions), outputs=outputs, image_channels=len(self.channels)
        )
        return Denoiser(
            network, self.schedule, target=self.denoiser.target, learned_variance=self.denoiser.learned_variance
        )

    def plan(self, **changes: Any) -> Plan:
        """How to draw an ensemble, with some of `sampling` changed (steps, members, network_batch, …)."""
        sampling = self.sampling.but(**{name: value for name, value in changes.items() if value is not None})
        if sampling.steps > self.schedule.length:
            raise UsageError(
                f"{sampling.steps} steps, but the schedule has {self.schedule.length}", fix="lower --steps"
            )
        return Plan(
            times=self.schedule.times(sampling.steps),
            solver=sampling.solver,
            members=sampling.members,
            network_batch=sampling.network_batch,
            members_at_once=sampling.members_at_once or sampling.members,
        )


def for_masks(denoiser: Denoiser) -> AnyDenoiser:
    """The denoiser as it samples masks: clean predictions kept inside [-1, 1]. Logits are there by construction."""
    return denoiser if denoiser.target == "logits" else Clipped(denoiser)


RECIPES: dict[str, type[SegmentationRecipe]] = {"segment": SegmentationRecipe}


def load_recipe(name: str, *, task: Task, overrides: Sequence[str] = ()) -> SegmentationRecipe:
    """A recipe by name (`quick/mask_logits`, of the task's folder) or path, with `key=value` laid over it.

    Raises: ConfigError, or Problems of them, naming the setting and what would be right.
    """
    path = find_recipe(name, task=task)
    return parse_settings(RECIPES[task], apply_overrides(read_yaml(path), overrides), source=path.name)


def find_recipe(name: str, *, task: Task) -> Path:
    """The file of a recipe. Raises: ConfigError with the names that there are."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError("no such recipe file", fix="check the path of --config", file=path.name)
        return path
    known = recipe_names(task)
    if name not in known:
        raise ConfigError(f"no recipe `{name}` for {task}", fix=f"use one of {', '.join(known)}, or a path to a .yaml")
    return configs_folder() / task / f"{name}.yaml"


def recipe_names(task: Task) -> list[str]:
    """Names that `--config` knows for a task."""
    folder = configs_folder() / task
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def configs_folder() -> Path:
    """Where the recipes lie: inside the installed package, or beside it in a checkout."""
    package = Path(str(importlib.resources.files("medseg_diff")))
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
