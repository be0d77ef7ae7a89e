"""What a training works with: cases prepared once, split by patient into slices to learn from and slices to validate on."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medseg_diff.console import bar, log
from medseg_diff.data.datasets.cache import PreparedCase, prepare_training_case
from medseg_diff.data.datasets.patches import PatchDataset
from medseg_diff.data.datasets.slices import PieceDataset, Regions, SliceDataset, every
from medseg_diff.data.datasets.volumes import VolumeDataset
from medseg_diff.data.tables.manifest import Case, Manifest, split_by_patient
from medseg_diff.data.transforms import missing_channels
from medseg_diff.data.views import AxialSlices, Patches, WholeVolume
from medseg_diff.errors import ImageError, ManifestError, MedsegError, UsageError, counted, raise_all
from medseg_diff.evenly import evenly_spaced
from medseg_diff.phantoms.make import is_phantom
from medseg_diff.recipes.lookup import AnyRecipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.synthesis import SynthesisRecipe

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

    def take(self, chosen: Tensor) -> "ValidationSlices":
        """Those that `chosen` [N] booleans name."""
        patients = tuple(name for name, kept in zip(self.patients, chosen.tolist(), strict=True) if kept)
        return ValidationSlices(self.image[chosen], self.mask[chosen], self.brain[chosen], patients)


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
                    "what there is, or train for missing channels with augmentation.channel_dropout=0.2",
                    case=case.name,
                )
            )
        elif resample_to in missing:
            found, fix = f"has no {resample_to}, whose grid its channels should have", "drop the row, or name another"
            problems.append(ManifestError(found, fix=f"{fix} --resample-to", case=case.name))
    raise_all(problems)
    if lacking:
        said = "%s without a channel: background is used instead, as with channel dropout"
        log.warning(said, counted(lacking, "case"))


def _common(manifest: Manifest, channels: Sequence[str]) -> list[str]:
    return [channel for channel in channels if all(channel in case.channels for case in manifest.cases)]


def labels_in(case: PreparedCase) -> set[int]:
    """The labels of its references, the background's 0 included."""
    return {int(label) for piece in case.labels for label in np.flatnonzero(np.bincount(piece.ravel()))}


def check_labels(case: str, labels: Set[int], recipe: SegmentationRecipe | SynthesisRecipe) -> None:
    """Raises: ImageError where a reference holds labels that the recipe does not name: they would be background unsaid."""
    known = {0, *recipe.other_labels, *(label for labels in recipe.regions.values() for label in labels)}
    if unknown := sorted(labels - known):
        raise ImageError(
            f"holds the label {', '.join(map(str, unknown[:8]))}, which no region of the recipe names",
            fix=f"add it to a region, or set other_labels=[{','.join(map(str, unknown[:8]))}] to leave it out",
            case=case,
            channel="seg",
        )


def prepare_study(manifest: Manifest, recipe: SegmentationRecipe, *, cache: Path) -> Study:
    """The cases with a reference, cut into slices (or patches) of the recipe's regions."""

    def prepare(case: Case) -> PreparedCase:
        fill = recipe.bears_missing_channels
        found = prepare_training_case(case, recipe.channels, recipe.preparation, cache, fill_missing=fill)
        check_labels(case.name, labels_in(found), recipe)
        return found

    trained, validated = cases_of(manifest)
    trained, validated = ([case for case in cases if case.seg or case.raters] for cases in (trained, validated))
    if not trained:
        raise UsageError("no training case has a reference", fix="fill the column seg")
    return cut_study(recipe, trained, validated, prepare, lambda cases: recipe.regions)


def prepare_synthesis_study(manifest: Manifest, recipe: SynthesisRecipe, *, cache: Path) -> Study:
    """All cases, cut into slices or whole volumes; references are looked at where the recipe has regions.

    Raises: ManifestError for every case without one then.
    """
    painted = bool(recipe.regions)

    def prepare(case: Case) -> PreparedCase:
        found = prepare_training_case(case, recipe.channels, recipe.preparation, cache, needs_reference=painted)
        if painted:
            check_labels(case.name, labels_in(found), recipe)
        return found

    trained, validated = cases_of(manifest)
    without = [case.name for case in (*trained, *validated) if painted and not (case.seg or case.raters)]
    fix = "fill the column seg, or drop the row"
    raise_all(
        [ManifestError("has no reference, and its mask is to be painted", fix=fix, case=name) for name in without]
    )
    study = cut_study(recipe, trained, validated, prepare, lambda cases: recipe.regions)
    if isinstance(recipe.view, WholeVolume):
        size = recipe.view.size
        larger = [case.name for case in study.training.cases if any(np.array(brain_size(case)) > size)]
        if larger:
            said = counted(len(larger), "brain"), "×".join(map(str, size)), ", ".join(larger[:5])
            log.warning("%s larger than view.size %s, without its edges: %s", *said)
    return study


def brain_size(case: PreparedCase) -> tuple[int, ...]:
    """Voxels that the brain spans along x, y and z."""
    inside = np.nonzero(case.brain[:, 0])
    z, x, y = (int(axis.max() - axis.min()) + 1 for axis in inside)
    return x, y, z


def cases_of(manifest: Manifest) -> tuple[Sequence[Case], Sequence[Case]]:
    """Those to learn from and those to validate on; none of the latter where slices are held out instead."""
    trained = manifest.of("train") or tuple(case for case in manifest.cases if case.split is None)
    return trained, manifest.of("val")


def cut_study(
    recipe: AnyRecipe,
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

    def pieces(cases: Sequence[PreparedCase], keep: Callable[[int], bool] = every) -> PieceDataset:
        background, seed = recipe.preparation.background, recipe.training.seed
        if isinstance(recipe.view, Patches):
            return PatchDataset(cases, recipe.view, recipe.augmentation, shown, background=background, seed=seed)
        if isinstance(recipe.view, WholeVolume):
            return VolumeDataset(cases, recipe.view, recipe.augmentation, shown, background=background, seed=seed)
        return SliceDataset(cases, recipe.view, recipe.augmentation, shown, background=background, seed=seed, keep=keep)

    if validation:
        return Study(pieces(training), pieces(validation), separate=True)
    if not isinstance(recipe.view, AxialSlices):  # a patch held out would lie among others that were not
        log.info("validating on %s of the training patients", recipe.view.piece)
        return Study(pieces(training), pieces(training), separate=False)
    log.info("validating on one slice in %d, held out", HELD_OUT_SLICES)
    return Study(pieces(training, _learned_from), pieces(training, _held_out), separate=False)


def _held_out(number: int) -> bool:
    return number % HELD_OUT_SLICES == HELD_OUT_SLICES // 2


def _learned_from(number: int) -> bool:
    return not _held_out(number)


def validation_slices(pieces: PieceDataset, chosen: Sequence[int]) -> ValidationSlices:
    """Some of the slices (or patches), never changed by augmentation."""
    found = [pieces.plain(number) for number in chosen]
    image, mask, brain = (torch.stack([item[name] for item in found]) for name in ("image", "mask", "brain"))
    return ValidationSlices(image, mask, brain, tuple(pieces.case_of(number).patient for number in chosen))
