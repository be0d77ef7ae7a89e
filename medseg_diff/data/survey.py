"""What the cases of a table are, in numbers: grids, labels and their volumes; and which conventions they mix."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medseg_diff.data.brain import background_of
from medseg_diff.data.formats.stored import parts_of
from medseg_diff.data.geometry import Shape, axes_of, spacing_of
from medseg_diff.data.reading import CaseImages, is_stored_as_float
from medseg_diff.data.tables.case import SPLITS, Case

SAME_SPACING = 0.01  # relative
SHOWN_GROUPS, SHOWN_NAMES = 3, 3
NO_SPLIT = "no split"
OLD_ENHANCING, NEW_ENHANCING = 4, 3  # BraTS up to 2021, and from 2023


@dataclass(frozen=True)
class CaseFacts:
    """One case as it was read: `shape` in voxels and `spacing_mm` along the axes of its grid, which point as `orientation`
    says; `labels_ml` holds the volume of each label above 0 of its reference (of the first rater where there is no `seg`),
    None without one; `float_masks` are the columns whose files store labels as floats."""

    case: str
    patient: str
    split: str | None
    channels: tuple[str, ...]
    shape: Shape
    spacing_mm: tuple[float, ...]
    orientation: str
    labels_ml: Mapping[int, float] | None
    constant_background: bool
    float_masks: tuple[str, ...]

    @property
    def grid(self) -> str:
        """Spacing and orientation in words."""
        return f"{_spacing_text(self.spacing_mm)}, {self.orientation}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, numbers rounded."""
        labels = None
        if self.labels_ml is not None:
            labels = {str(label): round(ml, 3) for label, ml in self.labels_ml.items()}
        return asdict(self) | {"spacing_mm": [round(mm, 4) for mm in self.spacing_mm], "labels_ml": labels}


def facts_of(case: Case, images: CaseImages) -> CaseFacts:
    """Of a case and what was read of it. Raises: ImageError where the header of a mask cannot be read again."""
    raters = images.raters if images.raters is not None else ()
    opinions = [*([images.reference] if images.reference is not None else []), *raters]
    return CaseFacts(
        case=case.name,
        patient=case.patient,
        split=case.split,
        channels=images.channels,
        shape=images.image.shape[1:],
        spacing_mm=tuple(float(mm) for mm in spacing_of(images.affine)),
        orientation=axes_of(images.affine),
        labels_ml=_volumes_ml(opinions[0], images.voxel_ml) if opinions else None,
        constant_background=any(background_of(channel) is not None for channel in images.image),
        float_masks=tuple(name for name, path in case.references.items() if is_stored_as_float(path)),
    )


def _volumes_ml(labels: np.ndarray, voxel_ml: float) -> dict[int, float]:
    most = int(labels.max()) + 1
    counts = np.sum([np.bincount(part.ravel(), minlength=most) for part in parts_of(labels)], axis=0)
    return {int(label): float(counts[label]) * voxel_ml for label in np.flatnonzero(counts) if label}


def table_facts(cases: Sequence[Case], read: Sequence[CaseFacts]) -> dict[str, Any]:
    """What a table holds: counts of its sound rows `cases`; grids and labels of those that could be `read`."""
    labels, shapes = dict[int, list[float]](), dict[str, list[Shape]]()
    splits = Counter(case.split or NO_SPLIT for case in cases)
    for each in read:
        shapes.setdefault(each.grid, []).append(each.shape)
        for label, ml in (each.labels_ml or {}).items():
            labels.setdefault(label, []).append(ml)
    return {
        "cases": len(cases),
        "patients": len({case.patient for case in cases}),
        "splits": {split: count for split in (*SPLITS, NO_SPLIT) if (count := splits[split])},
        "channels": dict(Counter(channel for case in cases for channel in case.channels)),
        "references": sum(bool(case.references) for case in cases),
        "grids": {
            grid: {
                "cases": len(found),
                "smallest": [min(axis) for axis in zip(*found, strict=True)],
                "largest": [max(axis) for axis in zip(*found, strict=True)],
            }
            for grid, found in sorted(shapes.items(), key=lambda group: -len(group[1]))
        },
        "labels": {
            str(label): {
                "cases": len(found),
                "median_ml": round(statistics.median(found), 3),
                "smallest_ml": round(min(found), 3),
                "largest_ml": round(max(found), 3),
            }
            for label, found in sorted(labels.items())
        },
    }


def mixed_conventions(read: Sequence[CaseFacts]) -> list[str]:
    """In what the cases of a table differ that one model would have to bear, in words."""
    masked = [each for each in read if each.labels_ml is not None]
    said = _mixed_labels([each for each in masked if each.labels_ml])
    said += _differ("orientation", read, lambda each: each.orientation, "the recipe reorients all of them")
    representatives = list[tuple[float, ...]]()
    spacing = [_alike(_in_order_of_axes(each), representatives) for each in read]
    alike = dict(zip((each.case for each in read), spacing, strict=True))
    said += _differ(
        "spacing",
        read,
        lambda each: _spacing_text(alike[each.case]),
        "preparation.spacing_mm of a recipe resamples all to one; without it a network sees brains of several sizes",
    )
    said += _differ(
        "background",
        read,
        lambda each: "constant" if each.constant_background else "not constant",
        "skulls are stripped in some cases and not in others: strip all, or none",
    )
    said += _differ(
        "type of the masks",
        masked,
        lambda each: "floats" if each.float_masks else "integers",
        "they are read the same way, but may come from two sources",
    )
    return said


def _mixed_labels(masked: Sequence[CaseFacts]) -> list[str]:
    """Labels that stand for one thing in some cases and for another, or under another number, in others."""
    labels = {each.case: set(each.labels_ml or ()) for each in masked}
    both = {OLD_ENHANCING, NEW_ENHANCING}
    beyond = any(max(own) > OLD_ENHANCING or both <= own for own in labels.values())
    kinds = {name: own & both for name, own in labels.items() if own & both}
    if not beyond and len({frozenset(kind) for kind in kinds.values()}) > 1:
        found = _groups(masked, lambda each: "".join(map(str, kinds.get(each.case, ()))))
        why = "BraTS calls the enhancing tumour 4 up to 2021 and 3 from 2023: make sure that the recipe's regions name both"
        return [f"label of the enhancing tumour differs: {found}; {why}"]
    if labels and all(len(own) == 1 for own in labels.values()):
        remedy = "a region of the recipe may name several"
        return _differ("label of the only region", masked, lambda each: str(min(labels[each.case])), remedy)
    return []


def _differ(what: str, read: Sequence[CaseFacts], key: Callable[[CaseFacts], str], remedy: str) -> list[str]:
    return [f"{what} differs: {_groups(read, key)}; {remedy}"] if len({key(each) for each in read}) > 1 else []


def _groups(read: Sequence[CaseFacts], key: Callable[[CaseFacts], str]) -> str:
    """`RAS in 12 cases, LPS in 2 (a, b)`: the largest first, the names of those that are few."""
    groups: dict[str, list[str]] = {}
    for each in read:
        if name := key(each):
            groups.setdefault(name, []).append(each.case)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    said = [f"{name} in {_count(cases)}" for name, cases in ordered[:SHOWN_GROUPS]]
    hidden = len(ordered) - len(said)
    return ", ".join(said) + (f", and {hidden} more" if hidden else "")


def _count(cases: Sequence[str]) -> str:
    number = f"{len(cases)} case" + ("s" if len(cases) > 1 else "")
    return f"{number} ({', '.join(cases)})" if len(cases) <= SHOWN_NAMES else number


def _alike(spacing: tuple[float, ...], representatives: list[tuple[float, ...]]) -> tuple[float, ...]:
    """The first spacing seen that is no other than this one."""
    for known in representatives:
        if np.allclose(spacing, known, rtol=SAME_SPACING, atol=0):
            return known
    representatives.append(spacing)
    return spacing


def _in_order_of_axes(facts: CaseFacts) -> tuple[float, ...]:
    """Spacing from left to right, back to front, foot to head, so that order and direction of axes make no difference."""
    towards = [next(n for n, pair in enumerate(("RL", "AP", "SI")) if axis in pair) for axis in facts.orientation]
    return tuple(facts.spacing_mm[towards.index(axis)] for axis in range(3))


def _spacing_text(spacing_mm: Iterable[float]) -> str:
    return "×".join(f"{mm:.3g}" for mm in spacing_mm) + " mm"
