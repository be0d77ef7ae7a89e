"""What a training works with: cases prepared once, split by patient into slices to learn from and slices to validate on."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg_diff.console import bar, log
from medseg_diff.data.datasets.cache import PreparedCase, prepare_training_case
from medseg_diff.data.datasets.labelled import (
    HalfAndHalf,
    LabelledSlices,
    Some,
    balanced,
    is_labelled,
    present_labels,
)
from medseg_diff.data.datasets.patches import PatchDataset
from medseg_diff.data.datasets.slices import PieceDataset, Regions, SliceDataset
from medseg_diff.data.plausibility import check_lesion
from medseg_diff.data.tables.manifest import Case, Manifest, split_by_patient
from medseg_diff.data.transforms import missing_channels
from medseg_diff.data.views import Patches
from medseg_diff.errors import ImageError, ManifestError, MedsegError, UsageError, raise_all
from medseg_diff.evenly import evenly_spaced
from medseg_diff.methods.anomaly.engine import Cohort
from medseg_diff.networks.noisy_classifier import DISEASED, HEALTHY
from medseg_diff.phantoms.make import is_phantom
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.segmentation import SegmentationRecipe

HELD_OUT_SLICES = 10  # one slice in ten, where there are too few patients to hold one out


@dataclass(frozen=True)
class ValidationSlices:
    """image [N, C, *S] in float32, mask [N, R, *S] and brain [N, 1, *S] booleans, and whose slice each one is."""

    image: Tensor
    mask: Tensor
    brain: Tensor
    patients: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Study:
    """Slices (or patches) to learn from, and `held`, from which validation chooses; of other patients if `separate`."""

    training: PieceDataset
    held: PieceDataset
    separate: bool

    @property
    def cases(self) -> int:
        """How many are learned from."""
        return len(self.training.cases)

    @property
    def labels(self) -> dict[int, int]:
        """How many of them hold each label."""
        return dict(
            sorted(Counter(label for case in self.training.cases for label in labels_in(case) if label).items())
        )

    @property
    def appearances(self) -> list[Mapping[str, float]]:
        """How each of them looks."""
        return [case.appearance for case in self.training.cases]

    def validation(self, count: int) -> ValidationSlices:
        """At most `count` of the slices held, evenly spaced."""
        return validation_slices(self.held, evenly_spaced(range(len(self.held)), count))


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


def with_splits(manifest: Manifest) -> Manifest:
    """The table with splits, drawn by patient where it has none; without any `val`, slices are held out instead.

    Raises: ManifestError where splits are given but none trains.
    """
    if any(case.split for case in manifest.cases):
        if not manifest.of("train"):
            raise ManifestError("no case has split `train`", fix="fill the column split", file=manifest.file)
        if not manifest.of("val"):
            log.info("no case has split `val`")
        return manifest
    split = split_by_patient(manifest)
    if split is None:
        log.info("fewer than four patients: none is held out for validation or testing")
        return manifest
    held = sorted({case.patient for case in split.of("val")})
    log.info("no column split: %d of the patients are held out for validation (%s)", len(held), ", ".join(held[:5]))
    return split


def learned_from_phantoms(manifest: Manifest) -> bool:
    """Whether all training cases of a table with splits are made up."""
    trained = manifest.of("train") or manifest.cases
    return all(map(is_phantom, trained))


def check_channels(
    manifest: Manifest, channels: Sequence[str], *, fill_missing: bool = False, resample_to: str | None = None
) -> None:
    """Raises: ManifestError for every case that lacks a channel of the recipe; with `fill_missing`, that lacks them all or
    the one whose grid the others are brought onto."""
    problems: list[MedsegError] = []
    lacking = 0
    for case in manifest.cases:
        missing = missing_channels(case, channels)
        lacking += bool(missing)
        if len(missing) > (len(channels) - 1 if fill_missing else 0):
            problems.append(
                ManifestError(
                    f"has no {', '.join(missing)}; the recipe reads {', '.join(channels)}",
                    fix=f"add the column, drop the row, set channels=[{', '.join(_common(manifest, channels)) or '…'}] to "
                    "what there is, or train to do without some by augmentation.channel_dropout=0.2",
                    case=case.name,
                )
            )
        elif resample_to in missing:
            found, fix = f"has no {resample_to}, whose grid its channels are to lie on", "drop the row, or name another"
            problems.append(ManifestError(found, fix=f"{fix} --resample-to", case=case.name))
    raise_all(problems)
    if lacking:
        log.warning("%d cases lack a channel: the background stands in its place, as channel dropout has it", lacking)


def _common(manifest: Manifest, channels: Sequence[str]) -> list[str]:
    return [channel for channel in channels if all(channel in case.channels for case in manifest.cases)]


def labels_in(case: PreparedCase) -> set[int]:
    """The labels of its references, the background's 0 included."""
    return {int(label) for piece in case.labels for label in np.flatnonzero(np.bincount(piece.ravel()))}


def check_labels(case: PreparedCase, recipe: SegmentationRecipe) -> None:
    """Raises: ImageError where a reference holds labels that the recipe does not name: they would be background unsaid."""
    known = {0, *recipe.other_labels, *(label for labels in recipe.regions.values() for label in labels)}
    if unknown := sorted(labels_in(case) - known):
        raise ImageError(
            f"holds the label {', '.join(map(str, unknown[:8]))}, which no region of the recipe names",
            fix=f"add it to a region, or set other_labels=[{','.join(map(str, unknown[:8]))}] to leave it out",
            case=case.name,
            channel="seg",
        )


def prepare_study(manifest: Manifest, recipe: SegmentationRecipe, *, cache: Path) -> Study:
    """The cases with a reference, cut into slices (or patches) of the recipe's regions."""

    def prepare(case: Case) -> PreparedCase:
        fill = recipe.bears_missing_channels
        found = prepare_training_case(case, recipe.channels, recipe.preparation, cache, fill_missing=fill)
        check_labels(found, recipe)
        return found

    trained, validated = _cases(manifest)
    trained, validated = ([case for case in cases if case.seg or case.raters] for cases in (trained, validated))
    if not trained:
        raise UsageError("no training case has a reference", fix="fill the column seg")
    return _study(recipe, trained, validated, prepare, lambda cases: recipe.regions)


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

    trained, validated = _cases(manifest)
    study = _study(recipe, trained, [case for case in validated if is_labelled(case)], prepare, regions)
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


def _cases(manifest: Manifest) -> tuple[Sequence[Case], Sequence[Case]]:
    """Those to learn from and those to validate on; none of the latter where slices are held out instead."""
    trained = manifest.of("train") or tuple(case for case in manifest.cases if case.split is None)
    return trained, manifest.of("val")


def _study(
    recipe: SegmentationRecipe | AnomalyRecipe,
    trained: Sequence[Case],
    validated: Sequence[Case],
    prepare: Callable[[Case], PreparedCase],
    regions: Callable[[Sequence[PreparedCase]], Regions],
) -> Study:
    """Every case prepared (or found in the cache) and cut; without cases to validate on, one slice in ten is held out."""
    with bar("preparing", len(trained) + len(validated)) as advance:

        def prepared(cases: Sequence[Case]) -> list[PreparedCase]:
            found = []
            for case in cases:
                found.append(prepare(case))
                for warning in found[-1].warnings:
                    log.warning("[%s] %s", case.name, warning)
                advance(note=case.name)
            return found

        training, validation = prepared(trained), prepared(validated)
    shown = regions([*training, *validation])

    def pieces(cases: Sequence[PreparedCase], keep: Callable[[int], bool] = lambda number: True) -> PieceDataset:
        background, seed = recipe.preparation.background, recipe.training.seed
        if isinstance(recipe.view, Patches):
            return PatchDataset(cases, recipe.view, recipe.augmentation, shown, background=background, seed=seed)
        return SliceDataset(cases, recipe.view, recipe.augmentation, shown, background=background, seed=seed, keep=keep)

    if validation:
        return Study(pieces(training), pieces(validation), separate=True)
    if isinstance(recipe.view, Patches):  # a patch held out would lie among others that were not
        log.info("validating on patches of the patients trained on")
    else:
        log.info("validating on one slice in %d, held out", HELD_OUT_SLICES)
    return Study(pieces(training, lambda number: not _held_out(number)), pieces(training, _held_out), separate=False)


def _held_out(number: int) -> bool:
    return number % HELD_OUT_SLICES == HELD_OUT_SLICES // 2


def validation_slices(pieces: PieceDataset, chosen: Sequence[int]) -> ValidationSlices:
    """Some of the slices (or patches), never changed by augmentation."""
    found = [pieces.plain(number) for number in chosen]
    image, mask, brain = (torch.stack([item[name] for item in found]) for name in ("image", "mask", "brain"))
    return ValidationSlices(image, mask, brain, tuple(pieces.case_of(number).patient for number in chosen))
