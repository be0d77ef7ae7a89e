"""From regions back to the labels of a dataset, in one label map: whether regions nest, overlap or exclude each other."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SURE = 1e-6  # a probability counts as no nearer to 0 or 1 than this
MOST_REGIONS = 30  # a bit of an int32 each

Masks = dict[str, npt.NDArray[np.bool_]]


class MaskLabel(NamedTuple):
    """A label as a mask holds it: its number, what it is called, and the regions that a voxel of it lies in."""

    label: int
    name: str
    regions: tuple[str, ...]


def labels_of_masks(
    regions: Mapping[str, Sequence[int]], names: Mapping[int, str], cases: Mapping[int, int]
) -> tuple[MaskLabel, ...]:
    """What a mask of these regions holds, in the order of the labels: one label for each set of regions that some label of
    the dataset lies in.

    Of several labels of one name, which are one thing in two conventions, it is the one that most of the `cases` trained on
    have; of labels of several names, which the regions do not tell apart, the lowest.
    """
    found = []
    for inside, labels in _alike(regions).items():
        called = {names.get(label) for label in labels}
        name = called.pop() if len(called) == 1 else None
        if name is not None:
            labels.sort(key=lambda label: (-cases.get(label, 0), label))
        found.append(MaskLabel(labels[0], name or _name(inside, regions), inside))
    return tuple(sorted(found))


def settled(masks: Masks, values: npt.NDArray[np.float32], regions: Mapping[str, Sequence[int]]) -> Masks:
    """The masks with every voxel that lies in regions in which no label lies, as in two that exclude each other, given to
    the label that its probabilities `values` [R, X, Y, Z] speak for most."""
    lying, allowed = _codes(masks), list(_alike(regions))
    odd = (lying > 0) & ~np.isin(lying, [_code(inside, list(masks)) for inside in allowed])
    if not odd.any():
        return masks
    own = np.clip(values[:, odd].astype(np.float64), SURE, 1 - SURE)
    inside = np.array([[region in each for region in masks] for each in allowed])
    fit = inside @ np.log(own) + ~inside @ np.log1p(-own)  # log-likelihood of each label, regions taken as independent
    best = inside[fit.argmax(axis=0)]
    found = {region: mask.copy() for region, mask in masks.items()}
    for place, mask in enumerate(found.values()):
        mask[odd] = best[:, place]
    return found


def painted(masks: Masks, labels: Sequence[MaskLabel]) -> npt.NDArray[np.uint8] | npt.NDArray[np.int16]:
    """One label map [X, Y, Z] of masks that are `settled`; in bytes where its labels are small enough."""
    lying, largest = _codes(masks), max(label.label for label in labels)
    map_ = np.zeros(lying.shape, np.uint8 if largest < 256 else np.int16)
    for label in labels:
        map_[lying == _code(label.regions, list(masks))] = label.label
    return map_


def _codes(masks: Masks) -> npt.NDArray[np.int32]:
    """For each voxel which regions it lies in, a bit each."""
    codes = np.zeros(next(iter(masks.values())).shape, np.int32)
    for place, mask in enumerate(masks.values()):
        codes |= mask.astype(np.int32) << place
    return codes


def _code(inside: Sequence[str], regions: Sequence[str]) -> int:
    return sum(1 << place for place, region in enumerate(regions) if region in inside)


def _alike(regions: Mapping[str, Sequence[int]]) -> dict[tuple[str, ...], list[int]]:
    """Labels by the regions that they lie in."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for label in sorted({label for labels in regions.values() for label in labels}):
        alike.setdefault(tuple(region for region in regions if label in regions[region]), []).append(label)
    return alike


def _name(inside: Sequence[str], regions: Mapping[str, Sequence[int]]) -> str:
    """The innermost of the regions that a label lies in, without those that it does not lie in."""
    sets = {region: frozenset(labels) for region, labels in regions.items()}
    inner = [region for region in inside if not any(sets[other] < sets[region] for other in inside)]
    cut = [region for region in sets if region not in inside and all(sets[region] & sets[own] for own in inner)]
    outer = [region for region in cut if not any(sets[region] < sets[other] for other in cut)]
    return " and ".join(inner) + (f" without {' and '.join(outer)}" if outer else "")
