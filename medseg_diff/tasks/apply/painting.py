"""Scans painted into the masks of a table's cases, each on its case's own grid, with the mask beside it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, cat

from medseg_diff.console import bar, log
from medseg_diff.data.datasets.slices import region_masks
from medseg_diff.data.digests import digest_of_image
from medseg_diff.data.formats.size import VOXEL_BYTES, size_in_memory
from medseg_diff.data.reading import read_case
from medseg_diff.data.results import FACTS
from medseg_diff.data.tables.manifest import Case, Manifest, read_manifest, write_manifest
from medseg_diff.data.transforms import Prepared, prepare_case, restore
from medseg_diff.data.views import fit_to
from medseg_diff.errors import ImageError, UsageError, counted
from medseg_diff.files import check_room, read_facts
from medseg_diff.recipes.synthesis import SynthesisRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.apply.case_folder import Identity, made_anew, tell
from medseg_diff.tasks.apply.synthesis_system import SAME, SynthesisSystem, as_written, is_complete
from medseg_diff.tasks.synthesis_options import SynthesisOptions
from medseg_diff.tasks.train.study import check_channels, check_labels

SEG = "seg"
BACKGROUND = -1.0  # of what is drawn


@dataclass(frozen=True)
class MaskedCase:
    """A case whose mask is painted: prepared as in training, and its labels [X, Y, Z] on its own grid."""

    prepared: Prepared
    labels: np.ndarray


def paint(out: Path, table: Path, system: SynthesisSystem, options: SynthesisOptions) -> list[Path]:
    """Scans in OUT/CASE_00 …, `options.count` of each case, and their `table` in OUT; returns the folders.

    A scan depends on the model, the seed, its number and its case alone. Those that are complete are skipped.
    Raises: UsageError, ManifestError, ImageError, EnvironmentFault.
    """
    recipe = system.recipe
    if not recipe.regions:
        raise UsageError("the model was trained without masks", fix="leave --masks out, or train quick/mask_to_mr")
    cases = _with_masks(options, recipe)
    folders = {case.name: [out / f"{case.name}_{number:02d}" for number in range(options.count)] for case in cases}
    check_room(out, options.count * sum(_bytes_of(case, recipe) for case in cases))
    identity = Identity({key: system.facts.get(key) for key in SAME})
    with bar("painting", len(cases) * options.count) as advance:
        for case in cases:
            inputs = _inputs_of(case, recipe)
            masked: MaskedCase | None = None
            for number, folder in enumerate(folders[case.name]):
                if options.overwrite or not _is_there(folder, identity, inputs):
                    masked = masked or read(case, recipe)
                    began = time.perf_counter()
                    image = painted(masked.prepared, system, seed_of(options.seed, "painting", case.name, number))
                    seconds = round(time.perf_counter() - began, 3)
                    facts = {**system.facts, "mask_of": case.name, "number": number, "inputs": inputs}
                    _write(folder, case, masked, image, facts | {"seconds": seconds})
                advance(note=folder.name)
    _write_table(table, cases, folders, recipe.channels)
    scans, masks = counted(len(cases) * options.count, "scan"), counted(len(cases), "mask")
    log.info("%s painted into %s in %s, listed in %s", scans, masks, out, table.name)
    return [folder for case in cases for folder in folders[case.name]]


def read(case: Case, recipe: SynthesisRecipe) -> MaskedCase:
    """A case as training reads it. Raises: ImageError also for a brain beyond the view, and labels that no region names."""
    images = read_case(case, recipe.channels, resample_to=recipe.preparation.resample_to)
    assert images.reference is not None
    check_labels(case.name, {int(label) for label in np.unique(images.reference)}, recipe)
    prepared, view = prepare_case(images, recipe.preparation), recipe.view
    brain = view.cut(prepared.brain).float()
    if fit_to((1, *view.size), brain, fill=0).sum() < brain.sum():
        raise ImageError(
            f"its brain is larger than {'×'.join(map(str, view.size))}, which the model paints",
            fix="leave the case out, or train with a larger view.size",
            case=case.name,
        )
    return MaskedCase(prepared, images.reference)


def painted(prepared: Prepared, system: SynthesisSystem, seed: int) -> Tensor:
    """A scan [C, *S] in [-1, 1] of the network's grid, painted into the case's mask; every piece has noise of its own.
    Where the painter was shown the brain's outline, there is background beyond it."""
    recipe, view = system.recipe, system.recipe.view
    assert prepared.reference is not None
    classes = region_masks(prepared.reference, recipe.regions)
    mask = view.cut((cat([classes, prepared.brain]) if recipe.outline else classes).float())
    chosen = view.for_sampling(prepared.brain)
    shown = fit_to((mask.shape[1], *view.size), mask[chosen], fill=0)
    drawn = system.images([seed_of(seed, *view.owner(number)) for number in chosen], masks=shown)
    pieces = mask.new_full((len(mask), drawn.shape[1], *mask.shape[2:]), BACKGROUND)
    pieces[chosen] = fit_to(pieces.shape[1:], drawn, fill=BACKGROUND)
    whole = view.join(pieces)
    return whole.where(prepared.brain, BACKGROUND) if recipe.outline else whole


def _with_masks(options: SynthesisOptions, recipe: SynthesisRecipe) -> list[Case]:
    """The table's cases with a `seg`. Raises: UsageError where there are none; ManifestError for one without a channel."""
    assert options.masks is not None
    manifest = read_manifest(options.masks, data_root=options.data_root)
    cases = tuple(case for case in manifest.cases if case.seg and options.split in (None, case.split))
    if not cases:
        among = f"no case of split {options.split}" if options.split else "no case"
        raise UsageError(f"{among} has a mask", fix="fill the column seg of the table")
    check_channels(Manifest(cases, manifest.file, manifest.root), recipe.channels)
    return list(cases)


def _bytes_of(case: Case, recipe: SynthesisRecipe) -> int:
    """Of the int16 voxels of a scan and its mask."""
    assert case.seg is not None
    return size_in_memory(case.seg) // VOXEL_BYTES * 2 * (len(recipe.channels) + 1)


def _inputs_of(case: Case, recipe: SynthesisRecipe) -> dict[str, str]:
    """Digests of the files that a scan is painted by: the mask, and the channels that say where the brain lies."""
    used = {channel: case.file_of(channel) for channel in recipe.channels} | {SEG: case.paths[SEG]}
    return {name: digest_of_image(path) for name, path in used.items()}


def _is_there(folder: Path, identity: Identity, inputs: Mapping[str, str]) -> bool:
    """Whether this very scan is. Raises: UsageError where another one is."""
    known = read_facts(folder / FACTS).get("inputs", inputs)
    if known != inputs:
        fix = "use --overwrite, or another --out"
        raise UsageError("was painted from other images", fix=fix, case=folder.name, file=FACTS)
    return is_complete(folder, identity)


def _write(folder: Path, case: Case, masked: MaskedCase, image: Tensor, facts: Mapping[str, Any]) -> None:
    """CHANNEL.nii.gz of image [C, *S] on the case's own grid, background outside its brain's box, the labels as seg.nii.gz,
    and case.json."""
    prepared = masked.prepared
    with made_anew(folder) as new:
        new.mkdir(parents=True)
        for channel, values in zip(prepared.channels, restore(prepared, image, fill=BACKGROUND), strict=True):
            prepared.write(new / f"{channel}.nii.gz", as_written(values))
        prepared.write(new / f"{SEG}.nii.gz", masked.labels)
        said = {"task": "synthesise", **facts, "warnings": list(prepared.warnings)}
        tell(new, case, folder.name, None, said)


def _write_table(
    table: Path, cases: Sequence[Case], folders: Mapping[str, Sequence[Path]], channels: Sequence[str]
) -> None:
    """A row a scan, the patient and split those of its mask, so that no split sees another's."""
    rows = []
    for case in cases:
        for folder in folders[case.name]:
            row = {"case": folder.name, "patient": case.patient} | ({"split": case.split} if case.split else {})
            rows.append(row | {name: f"{folder.name}/{name}.nii.gz" for name in (*channels, SEG)})
    write_manifest(table, rows)
