"""Segmentation as an ensemble of samples: n walks from noise to a mask, their mean and how far they differ.

Wolleb et al., Diffusion Models for Implicit Image Segmentation Ensembles, 2022, arXiv 2112.03145.
From a given mask: Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, 2022,
arXiv 2108.01073.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_diff.diffusion import DDIM, Condition, SeededNoise, walk
from medseg_diff.diffusion.condition import one_after_another
from medseg_diff.diffusion.denoiser import AnyDenoiser, prepared
from medseg_diff.diffusion.losses import noised
from medseg_diff.methods.batches import index_of, padded_batches
from medseg_diff.methods.components import HALF
from medseg_diff.methods.plan import Course, Plan, Sample, SeedOf
from medseg_diff.methods.regions import kept_inside


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
    course: Course | None = None,
) -> Iterator[tuple[Sample, Tensor]]:
    """Yield (sample, probability [regions, *S]) for every member of every slice in `slices`, in the plan's order.

    images [N, C, *S] on the device that samples; the noise of a sample is that of seed_of(slice, member), whatever stands
    beside it. The last batch is padded to `network_batch`, so that the network always sees one shape. A member's last
    clean mask is kept soft. `advance` is told how many samples each batch finished. What a network need see only once of a
    slice, it sees once for all members.
    `start` [N, regions, *S] booleans: each walk begins with this mask, noised to the level of the plan's first time, in the
    place of noise alone; at time 0 the mask itself comes out.
    `course` is told what was done, and may end it before all members are drawn.
    """
    course = course or Course()
    drawing = _Drawing(denoiser, images, plan, regions, seed_of, start, course)
    said, looks = drawing.prepared_once(slices), dict[int, Tensor]()
    if plan.screen is not None:
        masks = drawing.looks(said, slices)
        empty = (masks.flatten(1).amax(1) < plan.screen).tolist() if len(masks) else []
        looks = {z: mask for z, mask, screened in zip(slices, masks, empty, strict=True) if screened}
        said = said.take(index_of([row for row, z in enumerate(slices) if z not in looks], images))
    course.screened, sampled = tuple(looks), [z for z in slices if z not in looks]
    mirrored = drawing.views[1:] if sampled else []
    known = one_after_another([said, *(drawing.prepared_once(sampled, axes) for axes in mirrored)])
    for members in plan.rounds:
        drawn = drawing.walked(plan.work(sampled, members), known, sampled, advance)
        for sample in plan.work(slices, members):
            yield (sample, looks[sample.slice]) if sample.slice in looks else next(drawn)
        next(drawn, None)  # its last word to `advance`
        if looks:
            advance(len(looks) * len(members))
        course.members = members.stop
        if course.is_enough(members.stop):
            break


def look_once(
    denoiser: AnyDenoiser, images: Tensor, slices: Sequence[int], plan: Plan, *, regions: int, seed_of: SeedOf
) -> Tensor:
    """What the network says of each of the slices before any is sampled: probability [N, regions, *S], see `sample_masks`.

    One that has a prior has said it anyway; another one is asked for the first step of member 0, which is the mean of what
    it would draw.
    """
    drawing = _Drawing(denoiser, images, plan, regions, seed_of, None, Course())
    return drawing.looks(drawing.prepared_once(slices), slices)


@dataclass(frozen=True)
class _Drawing:
    """What every batch of `sample_masks` has in common."""

    denoiser: AnyDenoiser
    images: Tensor
    plan: Plan
    regions: int
    seed_of: SeedOf
    start: Tensor | None
    course: Course

    @property
    def views(self) -> list[list[int]]:
        """Mirrored axes, counted from the end, with or without a batch."""
        dims = self.images.ndim - 2
        return [[axis - dims for axis in axes] for axes in self.plan.views]

    def prepared_once(self, slices: Sequence[int], mirrored: list[int] | None = None) -> Condition:
        """What is known of each of the slices, in their order, as a walk wants it."""
        parts, images = [], self.images.flip(mirrored or [])
        for places, padded in padded_batches(slices, self.plan.network_batch):
            with torch.no_grad():
                known = prepared(
                    self.denoiser, self.plan.space.condition(Condition(image=images[index_of(padded, images)]))
                )
            parts.append(known.take(slice(len(places))))
            self.course.once += says_prior(self.denoiser)
        return one_after_another(parts)

    def looks(self, known: Condition, slices: Sequence[int]) -> Tensor:
        """What one look says of each of the slices, of which that is known: probability [N, R, *S]."""
        if says_prior(self.denoiser) and known.mask is not None:
            return self._probability(torch.tanh(known.mask.float() / 2))  # logits, see `networks.prior`
        assert self.start is None, "a look begins with noise alone"
        parts = [self.images.new_zeros(0, self.regions, *self.images.shape[2:])]
        for places, padded in padded_batches(range(len(slices)), self.plan.network_batch):
            begin = self._noise([Sample(slices[row], 0) for row in padded])
            condition = known.take(index_of(padded, self.images))
            clean = walk(self.denoiser, DDIM(), begin, (self.plan.times[0], 0), condition)
            parts.append(self._probability(clean[: len(places)]))
            self.course.once += 1
        return torch.cat(parts)

    def walked(
        self, work: Sequence[Sample], known: Condition, slices: Sequence[int], advance: Callable[[int], None]
    ) -> Iterator[tuple[Sample, Tensor]]:
        """The samples in their order; `known` is of the slices in each of the views, one view after the other."""
        place, views = {z: row for row, z in enumerate(slices)}, self.views
        for places, padded in padded_batches(work, self.plan.network_batch):
            rows = [sample.member % len(views) * len(slices) + place[sample.slice] for sample in padded]
            condition = known.take(index_of(rows, self.images))
            noise = SeededNoise([self.seed_of(*sample) for sample in padded], self.plan.noise)
            masks = walk(self.denoiser, self.plan.solver, self._begin(padded), self.plan.times, condition, noise)
            self.course.walks += 1
            for sample, own in zip(places, self._probability(masks[: len(places)]), strict=True):
                yield sample, own.flip(views[sample.member % len(views)])
            advance(len(places))

    def _noise(self, samples: Sequence[Sample]) -> Tensor:
        """That a walk begins with, [B, R, *S]."""
        noise = SeededNoise([self.seed_of(*sample) for sample in samples], self.plan.noise)
        return noise(self.images.new_empty(len(samples), self.regions, *self.images.shape[2:]), 0)

    def _begin(self, samples: Sequence[Sample]) -> Tensor:
        begin, views = self._noise(samples), self.views
        if self.start is None:
            return begin
        given = torch.stack([self.start[z].flip(views[member % len(views)]) for z, member in samples]).to(begin)
        level = self.denoiser.schedule.level(self.plan.times[0])
        return noised(self.plan.space.encode(2 * given - 1), begin, level)

    def _probability(self, masks: Tensor) -> Tensor:
        """[B, R, *S] of masks of the space, each region inside its outer ones."""
        return kept_inside(((self.plan.space.decode(masks) + 1) / 2).clamp(0, 1), self.plan.hierarchy, dim=1)


def says_prior(denoiser: AnyDenoiser) -> bool:
    """Whether it looks at an image alone once a walk, with a pass of its own."""
    return bool(getattr(denoiser, "says_prior", False))


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

    def end_at(self, members: int) -> None:
        """No more than so many members are drawn, fewer than was thought."""
        self.members, self.voxels = members, self.voxels[:members]
        self.masks = None if self.masks is None else self.masks[:members]

    def mean_of(self, members: int) -> Tensor:
        """Of so many, where no more are added yet: [slices, regions, *S]."""
        return self._first / members

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
    def variance_between(self) -> Tensor:
        """Var[p] over the members, [slices, regions, *S]."""
        return (self.second_moment - self.mean**2).clamp(min=0)

    @property
    def variance_of_models(self) -> Tensor | None:
        """Var[m] over the means m of several models, [slices, regions, *S]; None of one model."""
        return (self._of_models / self._models - self.mean**2).clamp(min=0) if self._models > 1 else None

    def agreement(self) -> list[float]:
        """Dice between members, over all pairs pooled, for each region (1 where all are empty).

        With c votes at a voxel, the pairs' overlaps sum to c (c - 1) / 2 and their sizes to (n - 1) c.
        """
        votes = self.votes.transpose(0, 1).flatten(1).long()  # whole numbers add up exactly on any device
        shared, size = (votes * (votes - 1)).sum(1).cpu().double(), (self.members - 1) * votes.sum(1).cpu()
        return torch.where(size > 0, shared / size.clamp(min=1), 1.0).tolist()


def uncertainty_maps(mean: Tensor, between: Tensor, of_models: Tensor | None = None) -> dict[str, Tensor]:
    """Var[p] `between` the members, E[p (1 - p)] within them, and m (1 - m), which is their sum; of several models also the
    part of the first that lies between their means. Shapes as given.

    All may have been interpolated. The variance between members is not the interpolated E[p²] less the square of the
    interpolated mean: that counts how neighbouring voxels differ, too.
    """
    uncertainty = mean * (1 - mean)
    between = between.minimum(uncertainty)
    maps = {"variance_between": between, "variance_within": uncertainty - between, "uncertainty": uncertainty}
    if of_models is not None:
        maps["variance_models"] = of_models.minimum(between)
    return maps
