"""What a training works with: cases prepared once, split by patient into slices to learn from and slices to validate on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg_diff.console import bar, log
from medseg_diff.data.datasets.cache import PreparedCase, prepare_training_case
from medseg_diff.data.datasets.patches import PatchDataset
from medseg_diff.data.datasets.slices import PieceDataset, SliceDataset
from medseg_diff.data.missing import missing_channels
from medseg_diff.data.tables.manifest import Case, Manifest, split_by_patient
from medseg_diff.data.views import Patches
from medseg_diff.errors import ImageError, ManifestError, MedsegError, UsageError, raise_all
from medseg_diff.recipes.segmentation import SegmentationRecipe

if TYPE_CHECKING:
    import torch

HELD_OUT_SLICES = 10  # one slice in ten, where there are too few patients to hold one out


@dataclass(frozen=True)
class Study:
    """Slices (or patches) to learn from and to validate on, the latter chosen from `held`; of other patients if
    `separate`."""

    training: PieceDataset
    validation: "ValidationSlices"
    cases: int
    held: PieceDataset
    separate: bool


@dataclass(frozen=True)
class ValidationSlices:
    """image [N, C, *S] in float32, mask [N, R, *S] and brain [N, 1, *S] booleans, and whose slice each one is."""

    image: "torch.Tensor"
    mask: "torch.Tensor"
    brain: "torch.Tensor"
    patients: tuple[str, ...]

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
            log.info("no case has split `val`")
        return manifest, not manifest.of("val")
    split = split_by_patient(manifest)
    if split is None:
        log.info("fewer than four patients: none is held out for validation or testing")
        return manifest, True
    held = sorted({case.patient for case in split.of("val")})
    log.info("no column split: %d of the patients are held out for validation (%s)", len(held), ", ".join(held[:5]))
    return split, False


def check_channels(manifest: Manifest, channels: Sequence[str], *, fill_missing: bool = False) -> None:
    """Raises: ManifestError for every case that lacks a channel of the recipe; with `fill_missing`, that lacks them all."""
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
    raise_all(problems)
    if lacking:
        log.warning("%d cases lack a channel: the background stands in its place, as channel dropout has it", lacking)


def _common(manifest: Manifest, channels: Sequence[str]) -> list[str]:
    return [channel for channel in channels if all(channel in case.channels for case in manifest.cases)]


def check_labels(case: PreparedCase, recipe: SegmentationRecipe) -> None:
    """Raises: ImageError where a reference holds labels that the recipe does not name: they would be background unsaid."""
    known = {0, *recipe.other_labels, *(label for labels in recipe.regions.values() for label in labels)}
    found = {int(label) for piece in case.labels for label in np.flatnonzero(np.bincount(piece.ravel()))}
    if unknown := sorted(found - known):
        raise ImageError(
            f"holds the label {', '.join(map(str, unknown[:8]))}, which no region of the recipe names",
            fix=f"add it to a region, or set other_labels=[{','.join(map(str, unknown[:8]))}] to leave it out",
            case=case.name,
            channel="seg",
        )


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
                fill = recipe.bears_missing_channels
                found.append(prepare_training_case(case, recipe.channels, recipe.preparation, cache, fill_missing=fill))
                check_labels(found[-1], recipe)
                advance(note=case.name)
            return found

        training_cases, validation_cases = prepared(trained), prepared(validated)

    def dataset(cases: Sequence[PreparedCase], held_out: bool | None) -> PieceDataset:
        def keep(number: int) -> bool:
            return held_out is None or (number % HELD_OUT_SLICES == HELD_OUT_SLICES // 2) == held_out

        background, seed = recipe.preparation.background, recipe.training.seed
        if isinstance(recipe.view, Patches):
            return PatchDataset(
                cases, recipe.view, recipe.augmentation, recipe.regions, background=background, seed=seed
            )
        return SliceDataset(
            cases, recipe.view, recipe.augmentation, recipe.regions, background=background, seed=seed, keep=keep
        )

    if validation_cases:
        training, held = dataset(training_cases, None), dataset(validation_cases, None)
    else:
        log.info(
            "validating on %s",
            "patches of the patients trained on"  # a patch held out would lie among others that were not
            if isinstance(recipe.view, Patches)
            else f"one slice in {HELD_OUT_SLICES}, held out",
        )
        training, held = dataset(training_cases, False), dataset(training_cases, True)
    validation = validation_slices(held, recipe, recipe.validation.slices)
    return Study(training, validation, len(training_cases), held, separate=bool(validation_cases))


def validation_slices(pieces: PieceDataset, recipe: SegmentationRecipe, count: int) -> ValidationSlices:
    """Evenly spaced slices (or patches), at most `count`, never changed by augmentation."""
    import torch

    chosen = np.linspace(0, len(pieces) - 1, min(count, len(pieces))).round().astype(int).tolist()
    found = [pieces.plain(number) for number in chosen]
    image, mask, brain = (torch.stack([item[name] for item in found]) for name in ("image", "mask", "brain"))
    return ValidationSlices(image, mask, brain, tuple(pieces.case_of(number).patient for number in chosen))
