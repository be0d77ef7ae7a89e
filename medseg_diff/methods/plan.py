"""How an ensemble is drawn, in which order and rounds, and how that goes: all but the network."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from medseg_diff.diffusion import AnySolver
from medseg_diff.diffusion.noise import AnyNoise, GaussianNoise
from medseg_diff.methods.adaptive import rounds_of, stops_of
from medseg_diff.methods.cuts import AT_HALF, AnyCut
from medseg_diff.methods.regions import Hierarchy
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
    `tolerance`: no more members than a mean needs that is so close to its end (`methods.adaptive`); None: all of them.
    `screen`: slices of which one look says less than that everywhere are not sampled, and that is what all members say.
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
    tolerance: float | None = None
    screen: float | None = None

    @property
    def views(self) -> list[tuple[int, ...]]:
        """The axes that are mirrored in each view that the members have, by turns; the first is the slice as it is."""
        every = (itertools.combinations(self.mirrors, n) for n in range(len(self.mirrors) + 1))
        return list(itertools.chain.from_iterable(every))[: self.members]

    @property
    def rounds(self) -> list[range]:
        """The members that are drawn from one look at their mean to the next."""
        return [range(self.members)] if self.tolerance is None else rounds_of(self.members, len(self.views))

    @property
    def stops(self) -> list[int]:
        """How many members may be enough; the last are all."""
        return [self.members] if self.tolerance is None else stops_of(self.members, len(self.views))

    def work(self, slices: Sequence[int], members: range | None = None) -> list[Sample]:
        """Every (slice, member), or those of some members: group by group of members, within a group slice by slice."""
        wanted = range(self.members) if members is None else members
        starts = range(wanted.start, wanted.stop, self.members_at_once)
        groups = [range(start, min(start + self.members_at_once, wanted.stop)) for start in starts]
        return [Sample(z, member) for group in groups for z in slices for member in group]

    def batches(self, slices: Sequence[int]) -> int:
        """How many batches of the network all members take, each len(times) - 1 passes."""
        return sum(-(-len(slices) * len(members) // self.network_batch) for members in self.rounds)


@dataclass
class Course:
    """How a plan goes: `members` that were drawn; `walks`, the batches that walked, and `once`, passes of the network before
    them; slices that were `screened` out. `is_enough` is told after every round how many members are drawn, and may end
    it."""

    is_enough: Callable[[int], bool] = lambda members: False
    members: int = 0
    walks: int = 0
    once: int = 0
    screened: tuple[int, ...] = ()
