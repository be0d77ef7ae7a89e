"""One thing to train within a run, and the bench that it is trained on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning_fabric import Fabric

from medseg_diff.data.datasets.batch import Items
from medseg_diff.run import Run
from medseg_diff.training.checkpoint import steps_done
from medseg_diff.training.fit import FitSettings, Progress
from medseg_diff.training.objective import Objective


@dataclass(frozen=True)
class Phase:
    """One thing to train within a run.

    `name` names its checkpoint; `prefix` goes before its numbers' names in metrics.csv and MLflow. `validate` measures
    every `settings.validate_every` steps and at the end; `better` is which of its numbers (higher is better) chooses the
    best weights; without it, or where `latest` says so, the last ones are the best. `weights` says of which models the
    average is kept, and how the files below weights/ are called: {"denoiser": {"best": "denoiser"}} keeps the best of one,
    as denoiser.safetensors.
    `settings_of` are those of models that learn at a rate of their own (see `Learners`).
    `draw` writes a denoising trajectory, after each validation, into the PNG it is given.
    """

    name: str
    objective: Objective
    examples: Items
    settings: FitSettings
    validate: Callable[[Progress], dict[str, float]] | None = None
    draw: Callable[[Progress, Path], None] | None = None
    better: str | None = None
    latest: bool = False
    prefix: str = ""
    settings_of: Mapping[str, FitSettings] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, str]] = field(
        default_factory=lambda: {"denoiser": {"best": "best", "last": "last"}}
    )


@dataclass(frozen=True)
class Bench:
    """Where the work is done: the run's folder, the devices, fp32 or bf16; and the command that goes on with it."""

    run: Run
    fabric: Fabric
    precision: str
    recipe_sha256: str
    data_digest: str
    again: str

    def left(self, phase: str, settings: FitSettings) -> FitSettings:
        """The settings of a phase with the steps alone that it still has to go, by its checkpoint: for an estimate."""
        return settings.but(steps=max(settings.steps - steps_done(self.run.checkpoints(phase)), 1))
