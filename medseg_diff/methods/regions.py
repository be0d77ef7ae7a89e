"""Regions that lie inside one another: what is found of the inner one is never more than what is found of the outer."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Hierarchy = Sequence[Sequence[int]]  # for each region, the places of the regions that hold it


def hierarchy_of(regions: Mapping[str, Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """For each region, the places of all regions whose labels include its own (of equal ones, those before it)."""
    sets = [frozenset(labels) for labels in regions.values()]
    return tuple(
        tuple(place for place, outer in enumerate(sets) if inner < outer or (inner == outer and place < own))
        for own, inner in enumerate(sets)
    )


def kept_inside(values: Tensor, hierarchy: Hierarchy, *, dim: int) -> Tensor:
    """Each region's values no higher than those of any region that holds it; the regions lie along `dim`.

    For probabilities, shares of votes and booleans alike. One pass is enough: what holds the outer region holds the
    inner one too.
    """
    if not any(hierarchy):
        return values
    given = values.unbind(dim)
    kept = [
        torch.stack([own, *(given[place] for place in outer)]).amin(0)
        for own, outer in zip(given, hierarchy, strict=True)
    ]
    return torch.stack(kept, dim)
