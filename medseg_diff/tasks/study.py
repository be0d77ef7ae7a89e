"""What a training works with: cases prepared once, split by patient into slices to learn from and slices to validate on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg_diff.data.loaders import PreparedCase, SliceDataset, prepare_training_case, region_masks
from medseg_diff.data.manifest import Case, Manifest, split_by_patient
from medseg_diff.data.views import fit_to
from medseg_diff.errors import ManifestError, MedsegError, UsageError, raise_all
from medseg_diff.recipes import SegmentationRecipe
from medseg_diff.tasks.console import bar, log

if TYPE_CHECKING:
    import torch

HELD_OUT_SLICES = 10  # one slice in ten, where there are too few patients to hold one out


@dataclass(frozen=True)
class Study:
    """Slices to learn from and slices to validate on."""

    training: SliceDataset
    validation: "ValidationSlices"
    cases: int


@dataclass(frozen=True)
class ValidationSlices:
    """image [N, C, *S] in float32, mask [N, R, *S] booleans."""

    image: "torch.Tensor"
    mask: "torch.Tensor"

    def __len__(self) -> int:
        return len(self.image)


def with_splits(manifest: Manifest) -> tuple[Manifest, bool]:
    """The table with splits, drawn by patient where it has none; True where slices have to be held out instead.

    Raises: ManifestError where splits are given but none trains.
    """
    if any(case.split for case in manifest.cases):
        if not manifest.of("train"):
            raise ManifestError("no case has split `train`", fix="fill the column split", file=manifest.file)
        if not manifest.of("val"):
            log.info("no case has split `val`: one slice in %d is held out for validation", HELD_OUT_SLICES)
        return manifest, not manifest.of("val")
    split = split_by_patient(manifest)
    if split is None:
        log.info(
            "fewer than four patients: one slice in %d is held out for validation, none for testing", HELD_OUT_SLICES
        )
        return manifest, True
    held = sorted({case.patient for case in split.of("val")})
    log.info("no column split: %d of the patients are held out for validation (%s)", len(held), ", ".join(held[:5]))
    return split, False


def check_channels(manifest: Manifest, channels: Sequence[str]) -> None:
    """Raises: ManifestError for every case that lacks a channel of the recipe."""
    problems: list[MedsegError] = []
    for case in manifest.cases:
        missing = [channel for channel in channels if channel not in case.channels]
        if missing:
            problems.append(
                ManifestError(
                    f"has no {', '.join(missing)}; the recipe reads {', '.join(channels)}",
                    fix="add the column, drop the row, or set channels=[…] to what there is",
                    case=case.name,
                )
            )
    raise_all(problems)


def prepare_study(manifest: Manifest, recipe: SegmentationRecipe, *, cache: Path, by_slices: bool) -> Study:
    """Every case prepared (or found in the cache), split into training and validation slices."""
    trained = manifest.of("train") or tuple(case for case in manifest.cases if case.split is None)
    validated = () if by_slices else manifest.of("val")
    trained, validated = (tuple(case for case in cases if case.seg or case.raters) for cases in (trained, validated))
    if not trained:
        raise UsageError("no training case has a reference", fix="fill the column seg")
    with bar("preparing", len(trained) + len(validated)) as advance:

        def prepared(cases: Sequence[Case]) -> list[PreparedCase]:
            found = []
            for case in cases:
                found.append(prepare_training_case(case, recipe.channels, recipe.preparation, cache))
                advance(note=case.name)
            return found

        training_cases, validation_cases = prepared(trained), prepared(validated)

    def dataset(cases: Sequence[PreparedCase], held_out: bool | None) -> SliceDataset:
        def keep(number: int) -> bool:
            return held_out is None or (number % HELD_OUT_SLICES == HELD_OUT_SLICES // 2) == held_out

        background, seed = recipe.preparation.background, recipe.training.seed
        return SliceDataset(
            cases, recipe.view, recipe.augmentation, recipe.regions, background=background, seed=seed, keep=keep
        )

    if validation_cases:
        return Study(
            dataset(training_cases, None), _validation(dataset(validation_cases, None), recipe), len(training_cases)
        )
    training, held = dataset(training_cases, False), dataset(training_cases, True)
    return Study(training, _validation(held, recipe), len(training_cases))


def _validation(slices: SliceDataset, recipe: SegmentationRecipe) -> ValidationSlices:
    """Evenly spaced slices, never changed by augmentation."""
    import torch

    count = min(recipe.validation.slices, len(slices))
    chosen = np.linspace(0, len(slices) - 1, count).round().astype(int).tolist()
    images, masks = [], []
    for case, z in (slices.slices[number] for number in chosen):
        prepared = slices.cases[case]
        image = torch.from_numpy(prepared.image[z].astype(np.float32))
        labels = torch.from_numpy(np.array(prepared.labels[z, :1]))
        images.append(fit_to(recipe.view.size, image, fill=recipe.preparation.background))
        masks.append(fit_to(recipe.view.size, region_masks(labels, recipe.regions).float(), fill=0) > 0.5)
    return ValidationSlices(torch.stack(images), torch.stack(masks))
