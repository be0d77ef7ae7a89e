"""Segmentation as an ensemble of samples: n walks from noise to a mask, their mean and how far they differ.

Wolleb et al., Diffusion Models for Implicit Image Segmentation Ensembles, 2022, arXiv 2112.03145.
From a given mask: Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, 2022,
arXiv 2108.01073.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from medseg_diff.diffusion import AnySolver, Condition, SeededNoise, walk
from medseg_diff.diffusion.condition import one_after_another
from medseg_diff.diffusion.denoiser import AnyDenoiser, prepared
from medseg_diff.diffusion.losses import noised
from medseg_diff.diffusion.noise import AnyNoise, GaussianNoise
from medseg_diff.methods.batches import index_of, padded_batches
from medseg_diff.methods.components import HALF
from medseg_diff.methods.cuts import AT_HALF, AnyCut
from medseg_diff.methods.regions import Hierarchy, kept_inside
from medseg_diff.spaces import PLAIN, Space

SeedOf = Callable[[int, int], int]


class Sample(NamedTuple):
    """One sample of an ensemble: which slice (or patch, or volume) and which member."""

    slice: int
    member: int


@dataclass(frozen=True)
class Plan:
    """How an ensemble is drawn. `members_at_once` changes the order of work and the memory, never a byte of the result.

    `hierarchy` names for each region those that hold it: every member is kept inside them. With `shared_noise` a
    member's noise is the same in all slices of a case. `cut`: where a member's mask ends. `mirrors`: along these axes of
    *S the members see the slices mirrored, one member so and the next otherwise, and their masks are mirrored back.
    """

    times: Sequence[int]
    solver: AnySolver
    members: int
    network_batch: int
    members_at_once: int
    hierarchy: Hierarchy = ()
    shared_noise: bool = False
    noise: AnyNoise = GaussianNoise()
    cut: AnyCut = AT_HALF
    space: Space = PLAIN
    mirrors: Sequence[int] = ()

    @property
    def views(self) -> list[tuple[int, ...]]:
        """The axes that are mirrored in each view that the members have, by turns; the first is the slice as it is."""
        every = (itertools.combinations(self.mirrors, n) for n in range(len(self.mirrors) + 1))
        return list(itertools.chain.from_iterable(every))[: self.members]

    def work(self, slices: Sequence[int]) -> list[Sample]:
        """Every (slice, member): group by group of members, within a group slice by slice."""
        starts = range(0, self.members, self.members_at_once)
        groups = [range(start, min(start + self.members_at_once, self.members)) for start in starts]
        return [Sample(z, member) for group in groups for z in slices for member in group]

    def batches(self, slices: Sequence[int]) -> int:
        """How many batches of the network the plan takes, each len(times) - 1 passes."""
        return -(-len(slices) * self.members // self.network_batch)


def sample_masks(
    denoiser: AnyDenoiser,
    images: Tensor,
    slices: Sequence[int],
    plan: Plan,
    *,
    regions: int,
    seed_of: SeedOf,
    start: Tensor | None = None,
    advance: Callable[[int], None] = lambda samples: None,
) -> Iterator[tuple[Sample, Tensor]]:
    """Yield (sample, probability [regions, *S]) for every member of every slice in `slices`, in the plan's order.

    images [N, C, *S] on the device that samples; the noise of a sample is that of seed_of(slice, member), whatever stands
    beside it. The last batch is padded to `network_batch`, so that the network always sees one shape. A member's last
    clean mask is kept soft. `advance` is told how many samples each batch finished. What a network need see only once of a
    slice, it sees once for all members.
    `start` [N, regions, *S] booleans: each walk begins with this mask, noised to the level of the plan's first time, in the
    place of noise alone; at time 0 the mask itself comes out.
    """
    dims = images.ndim - 2
    views = [[axis - dims for axis in axes] for axes in plan.views]  # counted from the end, with or without a batch
    known = one_after_another([_prepared_once(denoiser, images.flip(axes), slices, plan) for axes in views])
    place = {z: row for row, z in enumerate(slices)}
    for places, padded in padded_batches(plan.work(slices), plan.network_batch):
        rows = [sample.member % len(views) * len(slices) + place[sample.slice] for sample in padded]
        condition = known.take(index_of(rows, images))
        noise = SeededNoise([seed_of(*sample) for sample in padded], plan.noise)
        shape = (len(padded), regions, *images.shape[2:])
        begin = noise(torch.empty(shape, dtype=images.dtype, device=images.device), 0)
        if start is not None:
            given = torch.stack([start[z].flip(views[member % len(views)]) for z, member in padded]).to(begin)
            begin = noised(plan.space.encode(2 * given - 1), begin, denoiser.schedule.level(plan.times[0]))
        masks = plan.space.decode(walk(denoiser, plan.solver, begin, plan.times, condition, noise))
        probability = kept_inside(((masks[: len(places)] + 1) / 2).clamp(0, 1), plan.hierarchy, dim=1)
        for sample, own in zip(places, probability, strict=True):
            yield sample, own.flip(views[sample.member % len(views)])
        advance(len(places))


def _prepared_once(denoiser: AnyDenoiser, images: Tensor, slices: Sequence[int], plan: Plan) -> Condition:
    """What is known of each of the slices, in their order, as a walk wants it."""
    parts = []
    for places, padded in padded_batches(slices, plan.network_batch):
        with torch.no_grad():
            known = prepared(denoiser, plan.space.condition(Condition(image=images[index_of(padded, images)])))
        parts.append(known.take(slice(len(places))))
    return one_after_another(parts)


class Ensemble:
    """What is kept of the samples: first and second moments and votes. Memory does not grow with the members.

    A member votes for what lies above one half of its own, or for what `redraw` gives it.
    With `keep_masks` every member's mask is held too, a byte a voxel and region, in the main memory: 10 members of
    192×160×155 voxels take 48 MB a region.
    """

    def __init__(
        self,
        slices: int,
        regions: int,
        size: Sequence[int],
        members: int,
        device: torch.device | str,
        *,
        keep_masks: bool = False,
    ) -> None:
        shape = (slices, regions, *size)
        self.members = members
        self._first = torch.zeros(shape, device=device)
        self._second = torch.zeros(shape, device=device)
        self.votes = torch.zeros(shape, device=device, dtype=torch.int16)
        self.voxels = torch.zeros(members, regions, device=device, dtype=torch.int64)
        self.masks = torch.zeros((members, *shape), dtype=torch.uint8) if keep_masks else None  # [n, slices, R, *S]
        self._models = 0

    def add(self, sample: Sample, probability: Tensor) -> None:
        """One member of one slice, [regions, *S]. Members of a slice must come in ascending order, as a plan's do."""
        self._first[sample.slice] += probability
        self._second[sample.slice] += probability**2
        self._count(sample, probability > HALF)

    def end_model(self, members: int) -> None:
        """The members since the last call, so many, were all that one of several models drew."""
        if not self._models:
            self._before, self._of_models = torch.zeros_like(self._first), torch.zeros_like(self._first)
        self._of_models += ((self._first - self._before) / members) ** 2
        self._before.copy_(self._first)
        self._models += 1

    def redraw(self, slices: Sequence[int], threshold_of: Callable[[Sample], Tensor]) -> None:
        """Give every member the mask where the mean of all lies above its own threshold [*S], in the place of its own.

        Once all members of all `slices` were added.
        """
        self.votes.zero_()
        self.voxels.zero_()
        for z in slices:
            mean = self._first[z] / self.members
            for member in range(self.members):
                sample = Sample(z, member)
                self._count(sample, mean > threshold_of(sample))

    def _count(self, sample: Sample, inside: Tensor) -> None:
        self.votes[sample.slice] += inside
        self.voxels[sample.member] += inside.flatten(1).sum(1)
        if self.masks is not None:
            self.masks[sample.member, sample.slice] = inside.cpu()

    @property
    def mean(self) -> Tensor:
        """Probability m = E[p], [slices, regions, *S]."""
        return self._first / self.members

    @property
    def second_moment(self) -> Tensor:
        """E[p²], [slices, regions, *S]."""
        return self._second / self.members

    @property
    def second_moment_of_models(self) -> Tensor | None:
        """E[m²] over the means m of several models, [slices, regions, *S]; None of one model."""
        return self._of_models / self._models if self._models > 1 else None

    def agreement(self) -> list[float]:
        """Dice between members, over all pairs pooled, for each region (1 where all are empty).

        With c votes at a voxel, the pairs' overlaps sum to c (c - 1) / 2 and their sizes to (n - 1) c.
        """
        votes = self.votes.transpose(0, 1).flatten(1).to(torch.float64)
        shared, size = (votes * (votes - 1)).sum(1), (self.members - 1) * votes.sum(1)
        return torch.where(size > 0, shared / size.clamp(min=1), 1.0).tolist()


def uncertainty_maps(mean: Tensor, second_moment: Tensor, of_models: Tensor | None = None) -> dict[str, Tensor]:
    """Var[p] between the members, E[p (1 - p)] within them, and m (1 - m), which is their sum; with the second moment of the
    means of several models also the part of the first that lies between the models. Shapes as given."""
    variance_between = (second_moment - mean**2).clamp(min=0)
    uncertainty = mean * (1 - mean)
    maps = {
        "variance_between": variance_between,
        "variance_within": (uncertainty - variance_between).clamp(min=0),
        "uncertainty": uncertainty,
    }
    if of_models is not None:
        maps["variance_models"] = (of_models - mean**2).clamp(min=0).minimum(variance_between)
    return maps
