"""What an anomaly training works with: slices with labels where they are known, some of them held out for validation."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from medseg_diff.console import bar, log
from medseg_diff.data.datasets.cache import PreparedCase, prepare_training_case
from medseg_diff.data.datasets.labelled import HalfAndHalf, LabelledSlices, is_labelled, present_labels
from medseg_diff.data.datasets.slices import SliceDataset
from medseg_diff.data.tables.manifest import Case, Manifest
from medseg_diff.errors import UsageError
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.tasks.train.study import HELD_OUT_SLICES

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


@dataclass(frozen=True)
class LabelledValidation:
    """image [N, C, *S] in float32, label [N]: 0 healthy, 1 diseased."""

    image: "torch.Tensor"
    label: "torch.Tensor"

    @property
    def of_both_kinds(self) -> bool:
        return 0 < int(self.label.sum()) < len(self.label)


@dataclass(frozen=True)
class AnomalyStudy:
    """`training` is all slices, `classified` those with a label, healthy and diseased in turn."""

    training: LabelledSlices
    classified: HalfAndHalf
    validation: LabelledValidation
    cases: int


def prepare_anomaly_study(manifest: Manifest, recipe: AnomalyRecipe, *, cache: Path, by_slices: bool) -> AnomalyStudy:
    """Every case prepared (or found in the cache), split into training and validation slices.

    A case without reference that the table does not call healthy teaches the denoiser only.
    Raises: ManifestError, ImageError; UsageError where no training slice is healthy, or none diseased.
    """
    trained = manifest.of("train") or tuple(case for case in manifest.cases if case.split is None)
    validated = () if by_slices else tuple(case for case in manifest.of("val") if is_labelled(case))
    with bar("preparing", len(trained) + len(validated)) as advance:

        def prepared(cases: Sequence[Case]) -> list[PreparedCase]:
            found = []
            for case in cases:
                found.append(
                    prepare_training_case(case, recipe.channels, recipe.preparation, cache, needs_reference=False)
                )
                advance(note=case.name)
            return found

        training_cases, validation_cases = prepared(trained), prepared(validated)
    diseased = recipe.diseased or present_labels([*training_cases, *validation_cases])

    def slices(cases: Sequence[Case], arrays: Sequence[PreparedCase], held_out: bool | None) -> LabelledSlices:
        def keep(number: int) -> bool:
            return held_out is None or (number % HELD_OUT_SLICES == HELD_OUT_SLICES // 2) == held_out

        base = SliceDataset(
            arrays,
            recipe.view,
            recipe.augmentation,
            {"diseased": diseased},
            background=recipe.preparation.background,
            seed=recipe.training.seed,
            keep=keep,
        )
        return LabelledSlices(base, [is_labelled(case) for case in cases], fewest=recipe.fewest_voxels)

    if validation_cases:
        training, held = slices(trained, training_cases, None), slices(validated, validation_cases, None)
    else:
        log.info("validating on one slice in %d, held out", HELD_OUT_SLICES)
        training, held = slices(trained, training_cases, False), slices(trained, training_cases, True)
    return AnomalyStudy(
        training,
        HalfAndHalf(training, same_height=recipe.same_height),
        _validation(held, recipe.validation.slices),
        len(training_cases),
    )


def _validation(slices: LabelledSlices, count: int) -> LabelledValidation:
    """The slices that `validation_places` chooses, never changed by augmentation. Raises: UsageError where there is none."""
    import torch

    chosen = validation_places(slices.classes, slices.heights, count)
    if not chosen:
        raise UsageError("no validation slice has a label", fix="fill the columns seg and label of the cases of `val`")
    image = torch.stack([slices.slices.plain(number)["image"] for number in chosen])
    return LabelledValidation(image, torch.from_numpy(slices.classes[chosen]))


def validation_places(classes: np.ndarray, heights: np.ndarray, count: int) -> list[int]:
    """Numbers of at most `count` slices, half of them healthy, half diseased, where there are as many.

    The diseased ones are spread evenly, the healthy ones chosen at their heights: knowing heights alone is no skill.
    """
    healthy, diseased = (np.flatnonzero(classes == label).tolist() for label in (0, 1))
    ill = spread(diseased, count // 2)
    return _beside(healthy, ill, heights, count // 2) + ill


def _beside(healthy: Sequence[int], diseased: Sequence[int], heights: np.ndarray, count: int) -> list[int]:
    """At most `count` healthy slices, each the nearest in height to one of the diseased, which take turns."""
    if not diseased:
        return spread(healthy, count)
    left, found = list(healthy), []
    for beside in itertools.islice(itertools.cycle(diseased), min(count, len(left))):
        found.append(left.pop(int(np.argmin(abs(heights[left] - heights[beside])))))
    return found


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of them, evenly."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]
