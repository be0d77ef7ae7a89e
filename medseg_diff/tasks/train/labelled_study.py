"""What an anomaly engine's networks learn from: slices that are healthy, diseased or neither, and slices to validate on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg_diff.data.datasets.cache import PreparedCase, prepare_training_case
from medseg_diff.data.datasets.labelled import (
    HalfAndHalf,
    LabelledSlices,
    Some,
    balanced,
    is_labelled,
    present_labels,
)
from medseg_diff.data.datasets.slices import PieceDataset, Regions, SliceDataset
from medseg_diff.data.plausibility import check_lesion
from medseg_diff.data.tables.manifest import Case, Manifest
from medseg_diff.errors import UsageError
from medseg_diff.methods.anomaly.engine import Cohort
from medseg_diff.networks.noisy_classifier import DISEASED, HEALTHY
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.tasks.train.study import ValidationSlices, cases_of, cut_study, validation_slices


@dataclass(frozen=True)
class LabelledStudy:
    """What an engine's networks learn: the denoiser from `training`, the slices of its cohort; a classifier from
    `classified`, those with a label, healthy and diseased in turn. `label` [N] of the validation slices is 0 healthy,
    1 diseased; `healthy` and `diseased` count slices to learn from; `appearances` are of the cases."""

    training: LabelledSlices | Some
    classified: HalfAndHalf | None
    validation: ValidationSlices
    label: Tensor
    cases: int
    healthy: int
    diseased: int
    appearances: list[Mapping[str, float]]

    @property
    def of_both_kinds(self) -> bool:
        """Whether validation slices are healthy and diseased."""
        return 0 < int(self.label.sum()) < len(self.label)


def prepare_labelled_study(manifest: Manifest, recipe: AnomalyRecipe, *, cache: Path) -> LabelledStudy:
    """All cases, cut into slices that are healthy, diseased or neither.

    A case without reference that the table does not call healthy teaches the denoiser only.
    Raises: ManifestError, ImageError; UsageError where no training slice is healthy, or none diseased.
    """

    def prepare(case: Case) -> PreparedCase:
        found = prepare_training_case(case, recipe.channels, recipe.preparation, cache, needs_reference=False)
        check_lesion_of(found, case, recipe)
        return found

    def regions(cases: Sequence[PreparedCase]) -> Regions:
        return {"diseased": recipe.diseased or present_labels(cases)}

    trained, validated = cases_of(manifest)
    study = cut_study(recipe, trained, [case for case in validated if is_labelled(case)], prepare, regions)
    known = {case.name for case in manifest.cases if is_labelled(case)}

    def labelled(pieces: PieceDataset) -> LabelledSlices:
        assert isinstance(pieces, SliceDataset), "an anomaly recipe has no other view"
        return LabelledSlices(pieces, [case.name in known for case in pieces.cases], fewest=recipe.fewest_voxels)

    training, held = labelled(study.training), labelled(study.held)
    chosen = balanced(held.classes, held.heights, recipe.validation.slices)
    if not chosen:
        raise UsageError("no validation slice has a label", fix="fill the columns seg and label of the cases of `val`")
    engine = recipe.engine
    both = "classifier" in engine.networks or engine.needs_labels
    half = HalfAndHalf(training, same_height=recipe.same_height) if both else None
    healthy, diseased = (int((training.classes == label).sum()) for label in (HEALTHY, DISEASED))
    return LabelledStudy(
        _cohort(training, engine.learns_from),
        half if "classifier" in engine.networks else None,
        validation_slices(study.held, chosen),
        torch.from_numpy(held.classes[chosen]),
        study.cases,
        healthy,
        diseased,
        study.appearances,
    )


def _cohort(slices: LabelledSlices, cohort: Cohort) -> LabelledSlices | Some:
    if cohort == "all":
        return slices
    return Some.of_label(slices, HEALTHY) if cohort == "healthy" else Some.of_known_lesions(slices)


def check_lesion_of(found: PreparedCase, case: Case, recipe: AnomalyRecipe) -> None:
    """Raises: ImageError where a reference marks more of the brain as diseased than any lesion takes."""
    for number, name in enumerate(case.references, start=0 if case.seg else 1):
        labels = np.array(found.labels[:, number])
        check_lesion(recipe.lesion_in(torch.from_numpy(labels)).numpy(), found.brain[:, 0] > 0, labels, case, name)
