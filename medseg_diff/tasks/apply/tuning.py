"""Settings of steps and members tried on one case: what `segment` would write of each is measured, and nothing written.

Every sample owns its noise, so the first 3 of 10 members are the 3 that `--members 3` draws: each number of steps is
drawn once. Of several models they are not, because a member's number counts those of the models before: each setting is
drawn.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg_diff.data.geometry import Volume
from medseg_diff.data.reading import read_case
from medseg_diff.data.results import CaseResult
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Prepared, filled, prepare_case, present_channels
from medseg_diff.device import halved_to_fit
from medseg_diff.evaluation.ensembles import ensemble_values
from medseg_diff.evaluation.summary import Mask, Values
from medseg_diff.methods.components import HALF
from medseg_diff.methods.cuts import SpreadCut
from medseg_diff.methods.plan import Sample
from medseg_diff.methods.sampled_segmentation import Ensemble
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.tasks.apply.channels import grid_as_trained
from medseg_diff.tasks.apply.segmentation_maps import brought_back, masks_of
from medseg_diff.tasks.apply.segmentation_system import SegmentationModel, SegmentationSystem, system_of
from medseg_diff.tasks.apply.segmentation_volume import masks_cut_out, sample_volume, thresholds_of
from medseg_diff.tasks.options import EnsembleOptions


class Setting(NamedTuple):
    """Steps, and members of each model."""

    steps: int
    members: int


class Measured(NamedTuple):
    """A setting on one case: the seconds that its sampling took, and the values of each region."""

    seconds: float
    regions: dict[str, Values]


@dataclass(frozen=True)
class Draw:
    """A system that draws the most members that are asked of its steps, one after the other, and which numbers of
    members of each model are settings: the last one is all of them."""

    system: SegmentationSystem
    members: tuple[int, ...]

    @property
    def steps(self) -> int:
        return len(self.system.plan.times) - 1

    @property
    def cost(self) -> int:
        """Network evaluations of a slice (a tile), and a model."""
        return self.steps * self.members[-1]

    def totals(self) -> dict[int, Setting]:
        """The settings by how many samples they are of, those of all models together."""
        return {members * len(self.system.weights): Setting(self.steps, members) for members in self.members}


def draws_of(
    model: SegmentationModel, settings: Sequence[Setting], *, seed: int, network_batch: int | None
) -> list[Draw]:
    """All that is to be drawn of a case for these settings, the fewest steps first. Raises: UsageError, ConfigError for
    a number that the recipe cannot have."""

    def draw(steps: int, members: tuple[int, ...]) -> Draw:
        options = EnsembleOptions(steps=steps, members=members[-1], members_at_once=1, seed=seed, adaptive=False)
        return Draw(system_of(model, options, network_batch=network_batch), members)

    nested = {steps: tuple(own.members for own in group) for steps, group in groupby(sorted(settings), _steps_of)}
    if model.others:
        return [draw(*setting) for setting in ((steps, (own,)) for steps, each in nested.items() for own in each)]
    return [draw(steps, members) for steps, members in nested.items()]


def _steps_of(setting: Setting) -> int:
    return setting.steps


@dataclass(frozen=True)
class Scan:
    """A case with its references, on the grid that results lie on: by region and rater, [X, Y, Z]."""

    case: Case
    prepared: Prepared
    opinions: Mapping[str, Mapping[str, Mask]]
    brain: Mask

    @classmethod
    def read(cls, case: Case, recipe: SegmentationRecipe, *, resample_to: str | None) -> "Scan":
        """Raises: ImageError, ManifestError."""
        with grid_as_trained(recipe):
            channels = present_channels(case, recipe.channels)
            images = read_case(case, channels, reference=False, resample_to=resample_to)
        prepared = filled(prepare_case(images, recipe.preparation), recipe.channels)
        grid = Volume(np.zeros(prepared.native_shape, dtype=np.int16), prepared.native_affine)
        facts = {"resample_to": resample_to, "channels": channels}
        result = CaseResult(case.name, Path(case.name), facts, "segment", recipe.regions, grid, {})
        references = result.references(case)
        opinions = {
            region: {name: result.marked(labels, region) for name, labels in references.items()}
            for region in recipe.regions
        }
        return cls(case, prepared, opinions, result.brain_seen(case))


def measure(scan: Scan, draw: Draw) -> dict[Setting, Measured]:
    """Draw, and measure every setting of it. Where memory runs out the network is given less at once.

    Raises: OutOfMemory.
    """
    found, _ = halved_to_fit(partial(_measured, scan, draw), draw.system.plan.network_batch)
    return found


def _measured(scan: Scan, draw: Draw, batch: int) -> dict[Setting, Measured]:
    system = draw.system.at_once(batch)
    settings = _Settings(scan, system, draw.totals())
    sample_volume(scan.case.name, scan.prepared, system, keep=settings.add)
    settings.end_member()
    return settings.found


class _Settings:
    """Is given the samples of a case, member after member, and measures each setting when its last member is complete.
    The clock stands still meanwhile."""

    def __init__(self, scan: Scan, system: SegmentationSystem, totals: Mapping[int, Setting]) -> None:
        self.scan, self.system, self.totals = scan, system, totals
        view, prepared = system.recipe.view, scan.prepared
        pieces, _, *size = view.cut(prepared.brain).shape
        self.shape, self.slices = (pieces, len(system.recipe.regions), *size), view.for_sampling(prepared.brain)
        keep_masks = system.findings.fusion == "staple"
        self.ensembles = {
            total: Ensemble(pieces, len(system.recipe.regions), size, total, system.device, keep_masks=keep_masks)
            for total in totals
        }
        self.soft = None if isinstance(system.plan.cut, SpreadCut) else torch.zeros(self.shape, device=system.device)
        self.masks: list[npt.NDArray[np.bool_]] = []
        self.member: int | None = None
        self.found: dict[Setting, Measured] = {}
        self.started, self.measuring = time.perf_counter(), 0.0

    def add(self, sample: Sample, probability: Tensor) -> None:
        """One member of one slice, [R, *S]."""
        if sample.member != self.member:
            self.end_member()
            self.member = sample.member
        for ensemble in self.ensembles.values():
            ensemble.add(sample, probability)
        if self.soft is not None:
            self.soft[sample.slice] = probability

    def end_member(self) -> None:
        """All slices of the present member were added."""
        if self.member is None:
            return
        if self.system.device.type == "cuda":
            torch.cuda.synchronize(self.system.device)
        stopped, total = time.perf_counter(), self.member + 1
        with torch.autocast(self.system.device.type, enabled=False):  # files are written when sampling has ended
            if self.soft is not None:
                self.masks.append(brought_back(self.scan.prepared, self.system.recipe, self.soft) > HALF)
            if total in self.totals:
                regions = self._values(self.ensembles.pop(total))
                self.found[self.totals[total]] = Measured(stopped - self.started - self.measuring, regions)
        self.measuring += time.perf_counter() - stopped

    def _values(self, ensemble: Ensemble) -> dict[str, Values]:
        scan, recipe = self.scan, self.system.recipe
        members = list(self._members(ensemble))
        means = brought_back(scan.prepared, recipe, ensemble.mean)
        masks, _ = masks_of(ensemble, means, scan.prepared, self.system)
        return {
            region: ensemble_values(
                masks[region],
                means[number],
                [member[number] for member in members],
                scan.opinions[region],
                scan.brain,
                scan.prepared.native_affine,
            )
            for number, region in enumerate(recipe.regions)
        }

    def _members(self, ensemble: Ensemble) -> Iterator[npt.NDArray[Any]]:
        """The masks of each member [R, X, Y, Z]; those cut out of the mean depend on how many members it is of."""
        if self.soft is not None:
            yield from self.masks
            return
        scan = self.scan
        threshold_of = thresholds_of(scan.case.name, scan.prepared, self.system, ensemble.members)
        ensemble.redraw(self.slices, threshold_of)
        yield from masks_cut_out(ensemble, scan.prepared, self.system.recipe, self.slices, threshold_of)
