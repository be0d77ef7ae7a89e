"""`anomaly`: scans in; anomaly map, mask, lesion table and pseudo-healthy brain out, on each scan's own grid."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from medseg_diff.console import log, timed
from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import UsageError
from medseg_diff.files import check_writable
from medseg_diff.recipes.trained import find_models
from medseg_diff.studies import FoundModel
from medseg_diff.tasks.apply import anomaly_case as steps
from medseg_diff.tasks.apply.anomaly_ensemble import AnomalyEnsemble, open_ensemble
from medseg_diff.tasks.apply.anomaly_threshold import Cut
from medseg_diff.tasks.apply.case_folder import Identity
from medseg_diff.tasks.apply.cases import Given, find_cases, given_by
from medseg_diff.tasks.apply.channels import grid_as_trained, warn_of_other_grid
from medseg_diff.tasks.apply.folder import Results
from medseg_diff.tasks.apply.sharing import Shared, do_cases
from medseg_diff.tasks.apply.sweep import check_options, sweep_anomaly
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import Compute, MapOptions, MapOrSweep, Model, ResultFolder, Source
from medseg_diff.tracking.attaching import attach_trials

# In every case of one folder.
SAME = ("sha256", "classifier_sha256", "recipe_sha256", "calibration_sha256", "engine", "findings", "seed")


@with_plain_keywords
def anomaly(source: Source, results: ResultFolder, model: Model, maps: MapOrSweep, compute: Compute) -> list[Path]:
    """Map the anomalies of one case (`volumes`, as on the command line) or of a table's cases; returns the folders written.

    Cases that are complete with the same settings are skipped, and so are those that another process is working on.
    `overrides` lay `engine.…=…` and `findings.…=…` over the recipe. `baselines` also writes the maps that a method must
    beat, treated alike, for `evaluate`. `sweep` writes no maps: it tries settings of the engine on a few slices and returns
    the folder of its table. All options are fields of the groups in `tasks.options`.
    Raises: UsageError, ConfigError, ManifestError, ImageError, CheckpointError, EnvironmentFault.
    """
    source.check()
    compute.check()
    if maps.sweep:
        check_options(results, maps, compute)
    check_writable(results.out)
    found = find_models(model.model, task="anomaly", runs=model.runs)
    if maps.sweep and len(found.runs) > 1:
        said = f"--sweep tries settings of one run, but {found.name} is a study of {len(found.runs)}"
        raise UsageError(said, fix=f"name one of them, such as --model {found.name}/{found.runs[0].name}")
    with timed("model opened"):
        ensemble = open_ensemble(found, compute=compute.here, overrides=maps.overrides, seed=maps.seed)
    say(ensemble)
    cases = find_cases(source, ensemble.recipe.channels, task="anomaly", runs=model.runs)
    warn_of_other_grid(ensemble.recipe, source.resample_to)
    if maps.sweep:
        with grid_as_trained(ensemble.recipe):
            swept = sweep_anomaly(cases, ensemble.systems[0], results.out, resample_to=source.resample_to)
        attach_trials(found.runs[0], store=model.runs, sweep=swept / "sweep.csv")
        return [swept]
    given = given_by(source, cases)
    opened = partial(AnomalyMapping.opened, found, compute, replace(given, cases=[]), results, maps, runs=model.runs)
    return map_cases(given, ensemble, results, maps, runs=model.runs, shared=Shared(compute.sharing, opened))


def say(ensemble: AnomalyEnsemble) -> None:
    """Which model maps, and what that takes."""
    log.info("model %s (%s): %s", ensemble.facts["model"], ensemble.facts["recipe"], in_words(ensemble))


def map_cases(
    given: Given,
    ensemble: AnomalyEnsemble,
    results: ResultFolder,
    maps: MapOptions,
    *,
    runs: Path,
    shared: Shared | None = None,
) -> list[Path]:
    """Map the anomalies of cases into a folder of results, by this process or `shared` among others; returns the folder of
    each. Raises: as `anomaly`."""
    job = AnomalyMapping.of(ensemble, given, results, maps, runs=runs)
    job.folder.check_room(given.cases, maps=1 + len(ensemble.recipe.channels))
    do_cases("mapping", given.cases, job, shared)
    log.info("results in %s: open anomaly.nii.gz over the scan in 3D Slicer or ITK-SNAP", results.out)
    return [job.folder.folder(case) for case in given.cases]


@dataclass(frozen=True)
class AnomalyMapping:
    """An opened model at work on cases of one folder; `noted` stands in every case.json besides what is found."""

    ensemble: AnomalyEnsemble
    folder: Results
    cut: Cut
    maps: MapOptions
    noted: dict[str, Any]
    warned: set[str] = field(default_factory=set)  # a warning that is true of every case is said once

    @classmethod
    def opened(
        cls, found: FoundModel, compute: Compute, given: Given, results: ResultFolder, maps: MapOptions, *, runs: Path
    ) -> "AnomalyMapping":
        """Of a model that is not open yet, for a worker. Raises: what `open_ensemble` and `of` raise."""
        ensemble = open_ensemble(found, compute=compute, overrides=maps.overrides, seed=maps.seed)
        return cls.of(ensemble, given, results, maps, runs=runs)

    @classmethod
    def of(
        cls, ensemble: AnomalyEnsemble, given: Given, results: ResultFolder, maps: MapOptions, *, runs: Path
    ) -> "AnomalyMapping":
        """Raises: UsageError for a threshold that there is not; EnvironmentFault for the key of pseudonyms."""
        cut = Cut.guaranteed(ensemble, maps) if maps.promises else Cut.asked(ensemble, maps.threshold)
        same = {key: ensemble.facts.get(key) for key in SAME} | given.asked | {"threshold_asked": cut.asked_for}
        identity = Identity(same | ({"baselines": True} if maps.baselines else {}))
        folder = Results.into(results, "anomaly", identity, given=given, runs=runs)
        return cls(ensemble, folder, cut, maps, dict(given.asked))

    def read(self, case: Case) -> steps.ReadCase:
        with grid_as_trained(self.ensemble.recipe):
            return steps.read(case, self.ensemble, resample_to=self.noted["resample_to"])

    def sample(self, read: steps.ReadCase, new: Path) -> steps.MappedCase:
        return steps.map_case(read, self.ensemble, baselines=self.maps.baselines)

    def write(self, sampled: steps.MappedCase, new: Path) -> dict[str, Any]:
        facts = steps.write(sampled, self.ensemble, self.cut, new, baselines=self.maps.baselines)
        for warning in facts["warnings"]:
            if warning not in self.warned:
                log.warning("[%s] %s", sampled.read.name, warning)
                self.warned.add(warning)
        return self.noted | facts


def in_words(ensemble: AnomalyEnsemble) -> str:
    """`inversion, 16 network evaluations a slice`, of a study those of all runs."""
    folds = f", {len(ensemble.systems)} folds" if ensemble.is_study else ""
    evaluations = sum(ensemble.facts["network_evaluations"].values())
    return f"{ensemble.recipe.engine.kind}{folds}, {evaluations} network evaluations a slice"
