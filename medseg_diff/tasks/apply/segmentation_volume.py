"""The ensemble that a trained segmentation system draws of one volume."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

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
from medseg_diff.methods.components import HALF
from medseg_diff.methods.cuts import SpreadCut, recentred
from medseg_diff.methods.sampled_segmentation import Ensemble, Plan, Sample, sample_masks
from medseg_diff.methods.tiled import Tiled
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.apply.segmentation_maps import brought_back, suffix_of
from medseg_diff.tasks.apply.segmentation_system import SegmentationSystem
from medseg_diff.training.weights import load_weights


def sample_volume(
    case: str,
    prepared: Prepared,
    system: SegmentationSystem,
    members: Path | None = None,
    *,
    keep: Callable[[Sample, Tensor], None] = lambda sample, probability: None,
) -> tuple[Ensemble, int]:
    """The ensemble over what holds brain, and the network passes it took; each member is written into the folder
    `members`, where one is given, as it is finished. `keep` is given every sample."""
    recipe, plan, view = system.recipe, system.plan, system.recipe.view
    images = view.conditions(prepared.image, background=recipe.preparation.background)
    images = images.to(system.device).contiguous()
    start = view.cut(system.starts.regions_in(prepared)).to(system.device) if system.starts else None
    slices, regions, size = view.for_sampling(prepared.brain), len(recipe.regions), images.shape[2:]
    if members is not None:
        # One member after the other: then only one has to be held.
        plan = replace(plan, members_at_once=1)
    keep_masks, models = system.findings.fusion == "staple", len(system.weights)
    ensemble = Ensemble(len(images), regions, size, models * plan.members, system.device, keep_masks=keep_masks)
    keeper = _MemberWriter(prepared, recipe, members, (len(images), regions, *size)) if members else None
    work = _work(system, plan, slices, size)
    with autocast(system.device, system.precision), bar(f"  {case}", models * work.total) as advance:
        if isinstance(work.denoiser, Tiled):
            work.denoiser.advance = advance
        finished = (lambda samples: None) if isinstance(work.denoiser, Tiled) else advance
        for number, weights in enumerate(system.weights):
            first = number * plan.members
            if models > 1:
                load_weights(system.denoiser.module(), weights)

            def own_seed(z: int, member: int, first: int = first) -> int:
                return seed_of(system.seed, case, *(() if plan.shared_noise else view.owner(z)), first + member)

            for sample, probability in sample_masks(
                work.denoiser,
                images,
                slices,
                work.plan,
                regions=regions,
                seed_of=own_seed,
                start=start,
                advance=finished,
            ):
                own = Sample(sample.slice, first + sample.member)
                ensemble.add(own, probability)
                keep(own, probability)
                if keeper:
                    keeper.add(own, probability)
            if models > 1:
                ensemble.end_model(plan.members)
    if keeper:
        keeper.close()
    if isinstance(plan.cut, SpreadCut):
        _redraw(case, prepared, system, ensemble, slices, members)
    return ensemble, models * work.passes


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
    """How the samples of a case are drawn and what that takes: network passes, and the steps of a progress bar, which
    counts slices or, where volumes are drawn, tiles at every step."""

    denoiser: AnyDenoiser
    plan: Plan
    passes: int
    total: int


def _work(system: SegmentationSystem, plan: Plan, slices: Sequence[int], size: Sequence[int]) -> _Work:
    """Slices are batches of the network by themselves; volumes are cut into tiles, which are."""
    steps, view = len(plan.times) - 1, system.recipe.view
    if not isinstance(view, Patches):
        once = len(plan.views) * -(-len(slices) // plan.network_batch) if system.denoiser.says_prior else 0
        passes = once + plan.batches(slices) * steps
        return _Work(system.recipe.for_masks(system.denoiser), plan, passes, len(slices) * plan.members)
    tiled = system.recipe.in_tiles(system.denoiser, view, batch=plan.network_batch)
    plan = replace(plan, network_batch=max(1, plan.network_batch // tiled.tiles(size)))  # volumes in one walk
    walked = plan.batches(slices) * steps
    passes, tiles = tiled.passes(plan.network_batch, size), plan.network_batch * tiled.tiles(size)
    return _Work(tiled, plan, walked * passes, walked * tiles)


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
