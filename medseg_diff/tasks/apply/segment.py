"""`segment`: scans in, masks with probability and uncertainty out, on each scan's own grid."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from medseg_diff.console import log, timed
from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import counted
from medseg_diff.files import check_writable
from medseg_diff.recipes.trained import find_models
from medseg_diff.recipes.tuned import TUNED
from medseg_diff.studies import FoundModel
from medseg_diff.tasks.apply import segmentation_case as steps
from medseg_diff.tasks.apply.case_folder import Identity
from medseg_diff.tasks.apply.cases import Given, find_cases, given_by
from medseg_diff.tasks.apply.channels import grid_as_trained, refuse_missing, warn_of_other_grid
from medseg_diff.tasks.apply.dicom_objects import DICOM_SEG, check_format, refuse_other_images
from medseg_diff.tasks.apply.folder import Results
from medseg_diff.tasks.apply.segmentation_system import SegmentationSystem, open_system
from medseg_diff.tasks.apply.sharing import Shared, do_cases
from medseg_diff.tasks.apply.summary import rows_of, saved
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import Compute, EnsembleOptions, Model, ResultFolder, Source

# In every case of one folder.
SAME = (
    "sha256",
    "recipe_sha256",
    "calibration_sha256",
    "seed",
    "solver",
    "steps",
    "members",
    "tolerance",
    "screening",
    "noise",
    "fusion",
    "thresholds",
    "temperatures",
    "level",
    "strength",
)


@with_plain_keywords
def segment(
    source: Source, results: ResultFolder, model: Model, ensemble: EnsembleOptions, compute: Compute
) -> list[Path]:
    """Segment one case (`volumes` and `channels`, as on the command line) or the cases of a table; returns the folders
    written.

    Cases that are complete with the same settings are skipped, and so are those that another process is working on. With
    `keep_going` a bad case is listed in failures.csv and the others go on; its error is raised at the end. With
    `pseudonymise` results carry names made with the secret in `pseudonym_key` (see `tasks.apply.pseudonyms`). All options
    are fields of the groups in `tasks.options`; those that are None are the recipe's.
    Raises: UsageError, ManifestError, ImageError, CheckpointError, EnvironmentFault.
    """
    source.check()
    compute.check()
    check(results, ensemble)
    found = find_models(model.model, task="segment", runs=model.runs)
    with timed("model opened"):
        system = open_system(found, ensemble=ensemble, compute=compute.here)
    say(system)
    fill = system.recipe.bears_missing_channels
    cases = find_cases(source, system.recipe.channels, runs=model.runs, fill_missing=fill)
    given = given_by(source, cases)
    opened = partial(Segmenting.opened, found, compute, replace(given, cases=[]), results, ensemble, runs=model.runs)
    return segment_cases(given, system, results, ensemble, runs=model.runs, shared=Shared(compute.sharing, opened))


def check(results: ResultFolder, ensemble: EnsembleOptions) -> None:
    """Raises: UsageError, EnvironmentFault where results cannot be written there, or not so."""
    ensemble.check()
    check_format(ensemble.format, results)
    check_writable(results.out)


def say(system: SegmentationSystem) -> None:
    """Which model draws how many samples, and what it can promise."""
    plan, folds = system.plan, len(system.weights)
    members = f"{plan.members}" if plan.tolerance is None else f"{plan.stops[0]} to {plan.members}"
    drawn = f"{counted(len(plan.times) - 1, 'step')} × {members} {'member' if members == '1' else 'members'}"
    drawn += f" × {folds} folds" if folds > 1 else ""
    drawn += f", as tuned ({TUNED})" if system.facts["tuned"] else ""
    log.info("model %s (%s): %s", system.facts["model"], system.facts["recipe"], drawn)
    if system.starts:
        length = system.recipe.schedule.length
        log.info("from %s, noised to t = %d of %d", system.starts.in_words, plan.times[0], length)
    if system.screening:
        log.info("%s", system.screening.in_words())
    log.info("%s", system.promises.in_words())


def segment_cases(
    given: Given,
    system: SegmentationSystem,
    results: ResultFolder,
    ensemble: EnsembleOptions,
    *,
    runs: Path,
    shared: Shared | None = None,
) -> list[Path]:
    """Segment cases into a folder of results, by this process or `shared` among others; returns the folder of each. `runs`
    is where models that would fit are looked for, to name them to cases that lack channels. Raises: as `segment`."""
    job = Segmenting.of(system, given, results, ensemble, runs=runs)
    if not results.keep_going:
        job.refuse(given.cases)
    warn_of_other_grid(system.recipe, job.resample_to)
    job.folder.check_room(given.cases, maps=_maps_of_a_region(system, ensemble) * len(system.recipe.regions))
    do_cases("segmenting", given.cases, job, shared)
    folders = [job.folder.folder(case) for case in given.cases]
    if system.screening or system.plan.tolerance is not None:
        for line in saved(rows_of(folders)):
            log.info("%s", line)
    log.info("results in %s: open mask.nii.gz over the scan in 3D Slicer or ITK-SNAP", results.out)
    return folders


@dataclass(frozen=True)
class Segmenting:
    """An opened model at work on cases of one folder; `noted` stands in every case.json besides what the model says."""

    system: SegmentationSystem
    folder: Results
    ensemble: EnsembleOptions
    noted: dict[str, Any]
    runs: Path

    @classmethod
    def opened(
        cls,
        found: FoundModel,
        compute: Compute,
        given: Given,
        results: ResultFolder,
        ensemble: EnsembleOptions,
        *,
        runs: Path,
    ) -> "Segmenting":
        """Of a model that is not open yet, for a worker. Raises: what `open_system` and `of` raise."""
        return cls.of(open_system(found, ensemble=ensemble, compute=compute), given, results, ensemble, runs=runs)

    @classmethod
    def of(
        cls, system: SegmentationSystem, given: Given, results: ResultFolder, ensemble: EnsembleOptions, *, runs: Path
    ) -> "Segmenting":
        """Raises: what `Results.into` raises."""
        noted = dict(given.asked)
        noted |= {"save_members": True} if ensemble.save_members else {}
        noted |= {"format": DICOM_SEG} if ensemble.format == DICOM_SEG else {}
        noted |= {"guarantee": system.facts["guarantee"]} if system.promises.guaranteed else {}
        same = {key: system.facts.get(key) for key in SAME} | noted
        identity = Identity(same, system.starts.facts_of) if system.starts else Identity(same)
        noted |= {"start_from": system.starts.folder} if system.starts and not results.pseudonymise else {}
        return cls(system, Results.into(results, "segment", identity, given=given, runs=runs), ensemble, noted, runs)

    @property
    def resample_to(self) -> str | None:
        """The channel whose grid results lie on, where that was asked for."""
        channel: str | None = self.noted["resample_to"]
        return channel

    def refuse(self, cases: list[Case]) -> None:
        """Raises: ImageError, UsageError of every case that cannot be segmented as it is asked for."""
        recipe = self.system.recipe
        refuse_missing(cases, recipe.channels, fill_missing=recipe.bears_missing_channels, runs=self.runs)
        if self.system.starts:
            self.system.starts.refuse(cases)
        if self.ensemble.format == DICOM_SEG:
            refuse_other_images(cases, recipe.channels, resample_to=self.resample_to)

    def read(self, case: Case) -> steps.ReadCase:
        self.refuse([case])
        dicom_seg = self.ensemble.format == DICOM_SEG
        with grid_as_trained(self.system.recipe):
            return steps.read(case, self.system, resample_to=self.resample_to, dicom_seg=dicom_seg)

    def sample(self, read: steps.ReadCase, new: Path) -> steps.SampledCase:
        return steps.sample(read, self.system, new / "members" if self.ensemble.save_members else None)

    def write(self, sampled: steps.SampledCase, new: Path) -> dict[str, Any]:
        return self.noted | steps.write(sampled, self.system, new)


def _maps_of_a_region(system: SegmentationSystem, ensemble: EnsembleOptions) -> int:
    """Float maps that a case takes on the disk for each region; masks take next to nothing, DICOM objects, which are not
    packed, as much as two maps."""
    models, objects = len(system.weights), 2 * (ensemble.format == DICOM_SEG)
    members = models * system.plan.members if ensemble.save_members else 0
    return 4 + (models > 1) + system.findings.calibrated + members + objects
