"""Do masks and references mean the same by their labels? What no region counts, and numbers that look interchanged."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_diff.console import log
from medseg_diff.data.results import CaseResult
from medseg_diff.evaluation.summary import listed

Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class LabelsOfCase:
    """Of one case: labels that lie in no region, taken for background, of references and of the mask; and how many voxels
    have a label in the mask and one in the first reference, by both, where a number is to mean the same in the two."""

    uncounted: Mapping[str, tuple[int, ...]]
    together: Mapping[tuple[int, int], int]


def labels_of_case(result: CaseResult, references: Mapping[str, Labels]) -> LabelsOfCase:
    """What is to be known of the labels [X, Y, Z] of one case."""
    stated = {region: set(labels or ()) for region, labels in result.regions.items()}
    alike = all(set(labels) <= stated[region] for region, labels in result.in_mask.items())
    mask = result.main.voxels
    uncounted = {
        "references": _beyond(result.regions, references.values()),
        "masks": _beyond(result.in_mask, [mask]),
    }
    return LabelsOfCase(uncounted, _together(mask, next(iter(references.values()))) if alike else {})


def warn_of_labels(cases: Mapping[str, LabelsOfCase]) -> None:
    """Say, of the cases by name, where another convention of labels would go unnoticed."""
    for which in ("references", "masks"):
        odd = [name for name, each in cases.items() if each.uncounted[which]]
        if odd:
            labels = listed(sorted({label for name in odd for label in cases[name].uncounted[which]}))
            said = "%d of %d %s hold the label %s, which belongs to no region: %s"
            log.warning(said, len(odd), len(cases), which, labels, listed(odd))
    met = sum((Counter(each.together) for each in cases.values()), Counter[tuple[int, int]]())
    for one, other in interchanged(met):
        log.warning(
            "the labels %d and %d look interchanged: most of each in the masks is the other in the references. If the masks "
            "are numbered in another way, name their regions in a dataset.json beside them, and the references' by --config",
            one,
            other,
        )


def interchanged(met: Mapping[tuple[int, int], int]) -> list[tuple[int, int]]:
    """Pairs of labels of which each lies more on the other than on itself; `met` counts voxels by (mask's, reference's)."""
    labels = sorted({label for pair in met for label in pair})
    return [
        (one, other)
        for one, other in itertools.combinations(labels, 2)
        if met.get((one, other), 0) > met.get((one, one), 0) and met.get((other, one), 0) > met.get((other, other), 0)
    ]


def _beyond(regions: Mapping[str, Sequence[int] | None], volumes: Iterable[Labels]) -> tuple[int, ...]:
    """The labels that volumes hold and no region counts."""
    counted = {label for labels in regions.values() for label in labels or ()}
    held = {int(label) for voxels in volumes for label in np.unique(voxels[voxels > 0])}
    return tuple(sorted(held - counted))


def _together(mask: Labels, reference: Labels) -> dict[tuple[int, int], int]:
    both = (mask > 0) & (reference > 0)
    # One number for both labels, which are 16 bits each: rows of numbers take many times as long to count.
    pairs, counts = np.unique(mask[both].astype(np.int64) << 16 | reference[both].astype(np.int64), return_counts=True)
    return {(int(pair >> 16), int(pair & 0xFFFF)): int(count) for pair, count in zip(pairs, counts, strict=True)}
