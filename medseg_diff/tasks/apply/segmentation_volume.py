"""The ensemble that a trained segmentation system draws of one volume."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg_diff.console import bar
from medseg_diff.data.results import MEMBER_MASKS
from medseg_diff.data.transforms import Prepared
from medseg_diff.data.views import Patches
from medseg_diff.device import autocast
from medseg_diff.diffusion.denoiser import AnyDenoiser
from medseg_diff.methods.adaptive import Settling
from medseg_diff.methods.components import HALF
from medseg_diff.methods.cuts import SpreadCut, recentred
from medseg_diff.methods.plan import Course, Plan, Sample
from medseg_diff.methods.sampled_segmentation import Ensemble, sample_masks
from medseg_diff.methods.tiled import Tiled
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.apply.sampled_slices import slices_to_sample
from medseg_diff.tasks.apply.segmentation_maps import brought_back, suffix_of
from medseg_diff.tasks.apply.segmentation_system import SegmentationSystem
from medseg_diff.training.weights import load_weights


class Drawn(NamedTuple):
    """The ensemble of a case, and what case.json says of how it was drawn."""

    ensemble: Ensemble
    facts: dict[str, Any]


def sample_volume(
    case: str,
    prepared: Prepared,
    system: SegmentationSystem,
    members: Path | None = None,
    *,
    keep: Callable[[Sample, Tensor], None] = lambda sample, probability: None,
) -> Drawn:
    """The ensemble over what holds brain; each member is written into the folder `members`, where one is given, as it is
    finished. `keep` is given every sample.

    Of several models the first says how many members are enough, and each draws as many.
    """
    recipe, plan, view = system.recipe, system.plan, system.recipe.view
    images = view.conditions(prepared.image, background=recipe.preparation.background)
    images = images.to(system.device).contiguous()
    start = view.cut(system.starts.regions_in(prepared)).to(system.device) if system.starts else None
    slices, regions, size = slices_to_sample(view, prepared), len(recipe.regions), images.shape[2:]
    if members is not None:
        # One member after the other: then only one has to be held.
        plan = replace(plan, members_at_once=1)
    keep_masks, models = system.findings.fusion == "staple", len(system.weights)
    ensemble = Ensemble(len(images), regions, size, models * plan.members, system.device, keep_masks=keep_masks)
    keeper = _MemberWriter(prepared, recipe, members, (len(images), regions, *size)) if members else None
    work, settling = _work(system, plan, slices, size), Settling([*system.thresholds.values()], prepared.voxel_ml)
    courses, now = [Course(partial(_is_enough, plan, settling, ensemble))], work.plan
    with autocast(system.device, system.precision), bar(f"  {case}", models * work.total) as advance:
        finished = _finished(work.denoiser, advance)
        draw = partial(sample_masks, work.denoiser, images, slices, regions=regions, start=start, advance=finished)
        for number, weights in enumerate(system.weights):
            if models > 1:
                load_weights(system.denoiser.module(), weights)
            seed_of_sample = partial(_seed, system, case, number * plan.members)
            for sample, probability in draw(now, seed_of=seed_of_sample, course=courses[-1]):
                own = Sample(sample.slice, number * now.members + sample.member)
                ensemble.add(own, probability)
                keep(own, probability)
                if keeper:
                    keeper.add(own, probability)
            if number == 0:
                now = replace(now, members=courses[0].members, tolerance=None)
                ensemble.end_at(models * now.members)
                advance(round(models * work.total * (1 - now.members / plan.members)))
            if models > 1:
                ensemble.end_model(now.members)
            courses.append(Course())
    if keeper:
        keeper.close()
    if isinstance(plan.cut, SpreadCut):
        _redraw(case, prepared, system, ensemble, slices, members)
    passes = sum(each.once + each.walks * work.passes for each in courses)
    return Drawn(ensemble, _facts(system, ensemble, settling, courses[0], len(slices)) | {"network_passes": passes})


def _seed(system: SegmentationSystem, case: str, first: int, z: int, member: int) -> int:
    """Of a sample's noise; `first` is the number of its model's first member, were all of them drawn."""
    owner = () if system.plan.shared_noise else system.recipe.view.owner(z)
    return seed_of(system.seed, case, *owner, first + member)


def _finished(denoiser: AnyDenoiser, advance: Callable[[int], None]) -> Callable[[int], None]:
    """What is told of samples that are finished: nothing where tiles are counted."""
    if not isinstance(denoiser, Tiled):
        return advance
    denoiser.advance = advance
    return lambda samples: None


def _is_enough(plan: Plan, settling: Settling, ensemble: Ensemble, members: int) -> bool:
    """Whether so many members need no more, asked after each round of a plan with a tolerance."""
    if plan.tolerance is None:
        return False
    look = settling.look(members, ensemble.mean_of(members))
    return members in plan.stops and look is not None and look.is_settled(plan.tolerance)


def _facts(
    system: SegmentationSystem, ensemble: Ensemble, settling: Settling, course: Course, slices: int
) -> dict[str, Any]:
    """What case.json says of the members that were drawn, why there are no more, and of slices that were screened out."""
    regions, plan = system.recipe.regions, system.plan
    facts: dict[str, Any] = {"members_drawn": ensemble.members, "stopped": None, "slices": None}
    if plan.tolerance is not None:
        looks = [
            {
                "members": look.members,
                "dice": dict(zip(regions, (round(value, 4) for value in look.dice), strict=True)),
                "uncertainty": dict(zip(regions, (round(value, 4) for value in look.uncertainty), strict=True)),
            }
            for look in settling.looks
        ]
        why = "settled" if course.members < plan.members else "all drawn"
        facts["stopped"] = {"why": why, "looks": looks}
    if plan.screen is not None:
        facts["slices"] = {"with_brain": slices, "screened": len(course.screened)}
    return facts


def _redraw(
    case: str,
    prepared: Prepared,
    system: SegmentationSystem,
    ensemble: Ensemble,
    slices: Sequence[int],
    members: Path | None,
) -> None:
    """Give every member the mask that its surface of thresholds cuts out of the mean, and write it into MEMBER_MASKS beside
    the folder `members`, where one is given."""
    threshold_of = thresholds_of(case, prepared, system, ensemble.members)
    ensemble.redraw(slices, threshold_of)
    if members is None:
        return
    for member, masks in enumerate(masks_cut_out(ensemble, prepared, system.recipe, slices, threshold_of)):
        for region, mask in zip(system.recipe.regions, masks, strict=True):
            name = f"{member:02d}{suffix_of(system.recipe, region)}.nii.gz"
            prepared.write(members.with_name(MEMBER_MASKS) / name, mask.astype(np.uint8))


def thresholds_of(
    case: str, prepared: Prepared, system: SegmentationSystem, members: int
) -> Callable[[Sample], Tensor]:
    """The surface of thresholds of each of so many members in a slice, of a system that cuts masks so."""
    cut, whole = system.plan.cut, isinstance(system.recipe.view, Patches)
    assert isinstance(cut, SpreadCut)
    grid = prepared.image.shape[1:], prepared.spacing_mm
    surfaces = cut.surfaces(members, *grid, seed_of(system.seed, case, "cut"))

    def threshold_of(sample: Sample) -> Tensor:
        surface = surfaces.whole(sample.member) if whole else surfaces.plane(sample.member, sample.slice)
        return surface.to(system.device, non_blocking=True)

    return threshold_of


def masks_cut_out(
    ensemble: Ensemble,
    prepared: Prepared,
    recipe: SegmentationRecipe,
    slices: Sequence[int],
    threshold_of: Callable[[Sample], Tensor],
) -> Iterator[npt.NDArray[np.bool_]]:
    """The masks [R, X, Y, Z] of one member after the other on the case's own grid, cut out of the mean."""
    mean = ensemble.mean
    for member in range(ensemble.members):
        odds = torch.zeros_like(mean, device="cpu")
        for z in slices:
            odds[z] = recentred(mean[z], threshold_of(Sample(z, member))).cpu()
        yield brought_back(prepared, recipe, odds) > HALF


class _Work(NamedTuple):
    """How the samples of a case are drawn and what that takes: network passes of a batch that walks, and the steps of a
    progress bar, which counts slices or, where volumes are drawn, tiles at every step."""

    denoiser: AnyDenoiser
    plan: Plan
    passes: int
    total: int


def _work(system: SegmentationSystem, plan: Plan, slices: Sequence[int], size: Sequence[int]) -> _Work:
    """Slices are batches of the network by themselves; volumes are cut into tiles, which are."""
    steps, view = len(plan.times) - 1, system.recipe.view
    if not isinstance(view, Patches):
        return _Work(system.recipe.for_masks(system.denoiser), plan, steps, len(slices) * plan.members)
    tiled = system.recipe.in_tiles(system.denoiser, view, batch=plan.network_batch)
    plan = replace(plan, network_batch=max(1, plan.network_batch // tiled.tiles(size)))  # volumes in one walk
    passes, tiles = tiled.passes(plan.network_batch, size), plan.network_batch * tiled.tiles(size)
    return _Work(tiled, plan, steps * passes, plan.batches(slices) * steps * tiles)


class _MemberWriter:
    """Collects the slices of one member, `shape` [N, R, *S] in all, and writes it when the next begins."""

    def __init__(self, prepared: Prepared, recipe: SegmentationRecipe, folder: Path, shape: Sequence[int]) -> None:
        self.prepared, self.recipe, self.folder, self.shape = prepared, recipe, folder, shape
        self.member: int | None = None

    def add(self, sample: Sample, probability: Tensor) -> None:
        if sample.member != self.member:
            self.close()
            self.member, self.slices = sample.member, torch.zeros(self.shape)
        self.slices[sample.slice] = probability.cpu()

    def close(self) -> None:
        if self.member is None:
            return
        maps = brought_back(self.prepared, self.recipe, self.slices)
        for region, values in zip(self.recipe.regions, maps, strict=True):
            name = f"{self.member:02d}{suffix_of(self.recipe, region)}.nii.gz"
            self.prepared.write(self.folder / name, values)
