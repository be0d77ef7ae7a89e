"""`enhance`: scans in; the same scans out in smaller voxels, drawn by a trained second stage of a cascade."""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from medseg_diff.console import bar, log
from medseg_diff.data.digests import read_inputs
from medseg_diff.data.reading import CaseImages
from medseg_diff.data.refinement import refined
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Prepared, prepare_case
from medseg_diff.device import halved_to_fit, less_at_once
from medseg_diff.files import check_writable
from medseg_diff.phantoms.make import is_phantom
from medseg_diff.recipes.trained import find_model
from medseg_diff.recipes.typicality import warnings_of
from medseg_diff.tasks.apply.case_folder import Identity
from medseg_diff.tasks.apply.cases import Given, find_cases, given_by
from medseg_diff.tasks.apply.channels import grid_as_trained, warn_of_other_grid
from medseg_diff.tasks.apply.enhancement_system import EnhancementSystem, open_enhancement
from medseg_diff.tasks.apply.folder import Results
from medseg_diff.tasks.apply.sharing import Shared, do_cases
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import Compute, Model, ResultFolder, Source
from medseg_diff.tasks.synthesis_options import EnhancementOptions

SAME = ("sha256", "recipe_sha256", "seed", "draws", "steps", "condition_noise")  # in every case of one folder


@with_plain_keywords
def enhance(
    source: Source, results: ResultFolder, model: Model, drawing: EnhancementOptions, compute: Compute
) -> list[Path]:
    """Draw one case (`volumes`, as on the command line) or a table's cases at a finer resolution; returns the folders.

    OUT/CASE/CHANNEL.nii.gz has voxels smaller by the model's factor, and the scan's own field of view and orientation. What
    it shows beyond the scan is drawn, not measured: one of many fine scans that the scan may be the coarse form of. Cases
    that are complete with the same settings are skipped, and so are those that another process is working on.
    Raises: UsageError, ConfigError, ManifestError, ImageError, CheckpointError, EnvironmentFault.
    """
    source.check()
    compute.check()
    check_writable(results.out)
    run = find_model(model.model, task="enhance", runs=model.runs).folder
    system = open_enhancement(run, drawing, compute.here, runs=model.runs)
    recipe, facts = system.recipe, system.facts
    said = facts["model"], facts["recipe"], facts["steps"], facts["condition_noise"]
    log.info("model %s (%s): %d steps, the scan noised to time %d", *said)
    given = given_by(source, find_cases(source, recipe.channels, task="enhance", runs=model.runs))
    warn_of_other_grid(recipe, source.resample_to)
    job = Refining.of(system, given, results, runs=model.runs)
    none = replace(given, cases=[])
    opened = partial(Refining.opened, run, drawing, compute, none, results, runs=model.runs)
    job.folder.check_room(given.cases, maps=len(recipe.channels) * recipe.factor**3)
    do_cases("enhancing", given.cases, job, Shared(compute.sharing, opened))
    log.info("results in %s: what they show beyond the scans is drawn, not measured", results.out)
    return [job.folder.folder(case) for case in given.cases]


@dataclass(frozen=True)
class ReadCase:
    """A case before the network, and what case.json says of it."""

    images: CaseImages
    prepared: Prepared
    facts: dict[str, Any]
    warnings: list[str]
    started: float


@dataclass(frozen=True)
class DrawnCase:
    """What was drawn of a case, fine [C, *S factor], by passes of the network over so many tiles."""

    read: ReadCase
    fine: Tensor
    batch: int


@dataclass(frozen=True)
class Refining:
    """An opened model at work on cases of one folder; `noted` stands in every case.json besides what is found."""

    system: EnhancementSystem
    folder: Results
    noted: dict[str, Any]

    @classmethod
    def opened(
        cls,
        run: Path,
        drawing: EnhancementOptions,
        compute: Compute,
        given: Given,
        results: ResultFolder,
        *,
        runs: Path,
    ) -> "Refining":
        """Of a model that is not open yet, for a worker. Raises: what `open_enhancement` and `of` raise."""
        return cls.of(open_enhancement(run, drawing, compute, runs=runs), given, results, runs=runs)

    @classmethod
    def of(cls, system: EnhancementSystem, given: Given, results: ResultFolder, *, runs: Path) -> "Refining":
        """Raises: EnvironmentFault for the key of pseudonyms."""
        identity = Identity({key: system.facts[key] for key in SAME} | given.asked)
        return cls(system, Results.into(results, "enhance", identity, given=given, runs=runs), dict(given.asked))

    def read(self, case: Case) -> ReadCase:
        started, system = time.perf_counter(), self.system
        recipe = system.recipe
        with grid_as_trained(recipe):
            images, inputs = read_inputs(case, recipe.channels, resample_to=self.noted["resample_to"])
        as_it_is = recipe.preparation.but(spacing_mm=(None, None, None))
        prepared = prepare_case(images, as_it_is)
        spacing = prepared.spacing_mm
        warnings = list(prepared.warnings)
        if system.unlike(spacing):
            own, found = ("×".join(f"{mm or 1:.3g}" for mm in voxel) for voxel in (system.coarse_mm, spacing))
            warnings.append(f"its voxels are {found} mm, but the model learned to refine {own} mm")
        # How fine scans look says little of coarse ones; what they are of does.
        warnings += warnings_of(None, of_phantoms=system.learned_from_phantoms and not is_phantom(case))
        return ReadCase(images, prepared, {"inputs": inputs, "channels": list(images.channels)}, warnings, started)

    def sample(self, read: ReadCase, new: Path) -> DrawnCase:
        image, name = read.prepared.image, read.prepared.name

        def drawn(batch: int) -> Tensor:
            with bar(f"  {name}", self.system.tiles(image.shape[1:])) as advance:
                return self.system.at_once(batch).volume(image, name, advance)

        return DrawnCase(read, *halved_to_fit(drawn, self.system.enhancing.network_batch))

    def write(self, sampled: DrawnCase, new: Path) -> dict[str, Any]:
        read, system = sampled.read, self.system
        new.mkdir(parents=True, exist_ok=True)
        refined(read.images, read.prepared, sampled.fine, system.recipe.factor).write(new)
        asked, warnings = system.enhancing.network_batch, list(read.warnings)
        if sampled.batch < asked:
            warnings.append(less_at_once(sampled.batch, asked))
        for warning in warnings:
            log.warning("[%s] %s", read.prepared.name, warning)
        known = {"warnings": warnings, "network_batch": sampled.batch}
        return (
            self.noted | system.facts | read.facts | known | {"seconds": round(time.perf_counter() - read.started, 2)}
        )
