"""A case of `segment` in three steps: read and prepared, its ensemble drawn, its maps brought back and written."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff.console import log
from medseg_diff.data.appearance import appearance_of
from medseg_diff.data.digests import read_inputs
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Prepared, filled, missing_channels, prepare_case, present_channels
from medseg_diff.device import halved_to_fit, less_at_once
from medseg_diff.phantoms.make import is_phantom
from medseg_diff.recipes.typicality import is_unlike, judged, warnings_of
from medseg_diff.tasks.apply.dicom_objects import DicomObjects
from medseg_diff.tasks.apply.promises import volume_in_words
from medseg_diff.tasks.apply.sampled_slices import left_out
from medseg_diff.tasks.apply.segmentation_maps import write_maps
from medseg_diff.tasks.apply.segmentation_system import SegmentationSystem
from medseg_diff.tasks.apply.segmentation_volume import Drawn, sample_volume


@dataclass(frozen=True)
class ReadCase:
    """A case before the network, and what case.json says of it: `facts` of how it is read, what its images are (`inputs`),
    how unlike the training's it looks. `objects` will be written of it too."""

    prepared: Prepared
    objects: DicomObjects | None
    facts: dict[str, Any]
    inputs: dict[str, Any]
    typicality: dict[str, Any] | None
    promises_apply: bool
    warnings: list[str]
    seconds: float

    @property
    def name(self) -> str:
        return self.prepared.name


@dataclass(frozen=True)
class SampledCase:
    """What was drawn of a case, by passes of the network over batches of so many samples."""

    read: ReadCase
    drawn: Drawn
    batch: int
    warnings: list[str]
    seconds: float


def read(
    case: Case, system: SegmentationSystem, *, resample_to: str | None = None, dicom_seg: bool = False
) -> ReadCase:
    """The channels of a case, all that its results will need of its files with them."""
    started = time.perf_counter()
    recipe = system.recipe
    missing = missing_channels(case, recipe.channels)
    start = system.starts.facts_of(case) if system.starts else {}  # first: a mask that is replaced meanwhile is another
    images, inputs = read_inputs(case, present_channels(case, recipe.channels), resample_to=resample_to)
    if system.starts:
        images = system.starts.beside(images, resample=resample_to is not None)
    objects = DicomObjects.over(case, images, inputs, system.facts, resample_to) if dicom_seg else None
    prepared = filled(prepare_case(images, recipe.preparation), recipe.channels)
    warnings = [*prepared.warnings, *left_out(recipe.view, prepared)]
    if missing:
        warnings.append(f"lacks {', '.join(missing)}: background is used instead, as in training with channel dropout")
    typicality = judged(
        system.typical, appearance_of(prepared.image, prepared.brain, prepared.spacing_mm, recipe.channels)
    )
    of_phantoms = system.learned_from_phantoms and not is_phantom(case)
    warnings += warnings_of(typicality, of_phantoms=of_phantoms)
    return ReadCase(
        prepared=prepared,
        objects=objects,
        facts={"channels": list(recipe.channels), "missing_channels": list(missing), **system.facts, **start},
        inputs=inputs,
        typicality=typicality,
        promises_apply=not (missing or of_phantoms or is_unlike(typicality)),
        warnings=warnings,
        seconds=time.perf_counter() - started,
    )


def sample(case: ReadCase, system: SegmentationSystem, members: Path | None = None) -> SampledCase:
    """The ensemble over what holds brain; each member is written into the folder `members`, where one is given.

    Where memory runs out the network is given less at once.
    """
    started = time.perf_counter()
    asked, warnings = system.plan.network_batch, list(case.warnings)
    for warning in warnings:
        log.warning("[%s] %s", case.name, warning)
    drawn, batch = halved_to_fit(
        lambda batch: sample_volume(case.name, case.prepared, system.at_once(batch), members), asked
    )
    if batch < asked:
        warnings.append(less_at_once(batch, asked))
        log.warning("[%s] %s", case.name, warnings[-1])
    return SampledCase(case, drawn, batch, warnings, time.perf_counter() - started)


def write(case: SampledCase, system: SegmentationSystem, folder: Path) -> dict[str, Any]:
    """Bring the ensemble back onto the case's grid and write it into `folder`; returns what case.json says of the case."""
    started = time.perf_counter()
    scan = case.read
    report = write_maps(case.drawn.ensemble, scan.prepared, system, folder, objects=scan.objects)
    for region, volume in report["volume_ml"].items():
        said = volume_in_words(volume, report["lesion_presence"][region], applies=scan.promises_apply)
        log.info("[%s] %s: %s", scan.name, region, said)
    seconds = {"read": scan.seconds, "sample": case.seconds}
    seconds["all"] = sum(seconds.values()) + time.perf_counter() - started
    facts = {
        "typicality": scan.typicality,
        "promises_apply": scan.promises_apply,
        "warnings": case.warnings,
        "inputs": scan.inputs,
        "network_batch": case.batch,
    }
    return (
        scan.facts
        | report
        | case.drawn.facts
        | facts
        | {"seconds": {name: round(value, 2) for name, value in seconds.items()}}
    )
