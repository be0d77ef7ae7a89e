"""When enough members are drawn: once their mean would hardly draw another mask, or another interval of its volume.

The mean of n members differs from that of infinitely many about as much as it does from the mean of its own first half:
both by s / sqrt(n), where members differ by s. So half of the members show how far all of them still are from the end. That
follows from the members alone: the answer is the case's own.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from medseg_diff.metrics import conformal

FIRST, FURTHER, SHARE = 4, 2, 4  # the fewest members; those that are added at a time, at least, and as a part of all


class Look(NamedTuple):
    """How a mean of so many `members` compares with that of the first half of them, in each region: Dice of their masks, and
    the relative change of the uncertainty of its volume, which its interval is as wide as (`conformal.volume_uncertainty`).
    """

    members: int
    dice: list[float]
    uncertainty: list[float]

    def is_settled(self, tolerance: float) -> bool:
        """Whether nothing of it is further off than that."""
        return all(dice >= 1 - tolerance for dice in self.dice) and all(x <= tolerance for x in self.uncertainty)


def stops_of(members: int, views: int) -> list[int]:
    """After how many of at most so many members drawing may end, the last of them being all. The others have a half, and are
    multiples of the `views` that members see by turns, so that no view counts more than another."""
    unit, stops = math.lcm(views, 2), list[int]()
    stop = -(-FIRST // unit) * unit
    while stop < members:
        stops.append(stop)
        stop += -(-max(FURTHER, stop // SHARE) // unit) * unit
    return [*stops, members]


def rounds_of(members: int, views: int) -> list[range]:
    """The members that are drawn from one look to the next: at every stop, and at the half of each that is not the last."""
    stops = stops_of(members, views)
    ends = sorted({*stops, *(stop // 2 for stop in stops[:-1])})
    return [range(start, end) for start, end in itertools.pairwise([0, *ends])]


class _Seen(NamedTuple):
    """What a mean says: masks [N, R, *S], and the uncertainty of each region's volume."""

    masks: Tensor
    uncertainty: list[float]


@dataclass
class Settling:
    """What the means of more and more members say: masks are where they lie above `thresholds`, of each region; a voxel has
    `voxel_ml`. `looks` are those that were compared."""

    thresholds: Sequence[float]
    voxel_ml: float
    looks: list[Look] = field(default_factory=list)
    _seen: dict[int, _Seen] = field(default_factory=dict)

    def look(self, members: int, mean: Tensor) -> Look | None:
        """Compare the mean [N, R, *S] of so many members with that of half as many; None where it was not seen."""
        cuts = torch.tensor(self.thresholds, device=mean.device).view(1, -1, *(1,) * (mean.ndim - 2))
        now = self._seen[members] = _Seen(mean > cuts, list(self._uncertainties(mean)))
        half = self._seen.get(members // 2)
        self._seen = {number: seen for number, seen in self._seen.items() if number > members // 2}
        if half is None or members % 2:
            return None
        changes = [abs(then / of_all - 1) for of_all, then in zip(now.uncertainty, half.uncertainty, strict=True)]
        self.looks.append(Look(members, _dice(now.masks, half.masks), changes))
        return self.looks[-1]

    def _uncertainties(self, mean: Tensor) -> Iterator[float]:
        for region in mean.unbind(1):
            yield conformal.volume_uncertainty(region.cpu().numpy(), self.voxel_ml)


def _dice(masks: Tensor, others: Tensor) -> list[float]:
    """Of each region, [N, R, *S] booleans; 1 where both are empty."""
    common, one, other = (
        each.transpose(0, 1).flatten(1).sum(1).cpu().double() for each in (masks & others, masks, others)
    )
    return torch.where(one + other > 0, 2 * common / (one + other).clamp(min=1), 1.0).tolist()
