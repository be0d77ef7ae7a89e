"""`anomaly`: scans in; anomaly map, mask, lesion table and pseudo-healthy brain out, on each scan's own grid."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, cat, stack

from medseg_diff.console import bar, log
from medseg_diff.data.appearance import appearance_of
from medseg_diff.data.digests import read_inputs
from medseg_diff.data.reading import CaseImages
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Prepared, prepare_case, restore, with_change
from medseg_diff.device import halved_to_fit, less_at_once
from medseg_diff.errors import UsageError
from medseg_diff.files import check_writable, write_table
from medseg_diff.methods.anomaly.baselines import plain_baselines
from medseg_diff.methods.anomaly.normative import OWN, top_mean
from medseg_diff.methods.components import LESION_COLUMNS, find_lesions
from medseg_diff.phantoms.make import is_phantom
from medseg_diff.recipes.trained import find_models
from medseg_diff.recipes.typicality import warnings_of
from medseg_diff.studies import FoundModel
from medseg_diff.tasks.apply.anomaly_ensemble import AnomalyEnsemble, open_ensemble
from medseg_diff.tasks.apply.anomaly_threshold import Cut
from medseg_diff.tasks.apply.anomaly_volume import AnomalyVolume
from medseg_diff.tasks.apply.case_folder import Identity
from medseg_diff.tasks.apply.cases import Given, find_cases, given_by
from medseg_diff.tasks.apply.channels import grid_as_trained, warn_of_other_grid
from medseg_diff.tasks.apply.folder import Results
from medseg_diff.tasks.apply.quality_checks import checks_of_runs
from medseg_diff.tasks.apply.sharing import Shared, do_cases
from medseg_diff.tasks.apply.sweep import check_options, sweep_anomaly
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import Compute, MapOptions, MapOrSweep, Model, ResultFolder, Source

# In every case of one folder.
SAME = ("sha256", "classifier_sha256", "recipe_sha256", "calibration_sha256", "engine", "findings", "seed")
BASELINES = "baselines"
TRAINED_ON = (
    "normative mean and threshold rest on patients that the model was trained on: more of a healthy brain than stated may "
    "lie above (train-anomaly --folds measures them on others)"
)


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
        said = f"--sweep tries settings of one run, and {found.name} is a study of {len(found.runs)}"
        raise UsageError(said, fix=f"name one of them, such as --model {found.name}/{found.runs[0].name}")
    ensemble = open_ensemble(found, compute=compute.here, overrides=maps.overrides, seed=maps.seed)
    say(ensemble)
    cases = find_cases(source, ensemble.recipe.channels, task="anomaly", runs=model.runs)
    warn_of_other_grid(ensemble.recipe, source.resample_to)
    if maps.sweep:
        with grid_as_trained(ensemble.recipe):
            return [sweep_anomaly(cases, ensemble.systems[0], results.out, resample_to=source.resample_to)]
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

    def work(self, case: Case, new: Path) -> dict[str, Any]:
        """Map a case into the folder `new`; what case.json says of it."""
        baselines, resample_to = self.maps.baselines, self.noted["resample_to"]
        with grid_as_trained(self.ensemble.recipe):
            facts = find_anomalies(case, self.ensemble, self.cut, new, baselines=baselines, resample_to=resample_to)
        for warning in facts["warnings"]:
            if warning not in self.warned:
                log.warning("[%s] %s", case.name, warning)
                self.warned.add(warning)
        return self.noted | facts


def in_words(ensemble: AnomalyEnsemble) -> str:
    """`inversion, 16 network evaluations a slice`, of a study those of all runs."""
    folds = f", {len(ensemble.systems)} folds" if ensemble.is_study else ""
    evaluations = sum(ensemble.facts["network_evaluations"].values())
    return f"{ensemble.recipe.engine.kind}{folds}, {evaluations} network evaluations a slice"


def find_anomalies(
    case: Case,
    ensemble: AnomalyEnsemble,
    cut: Cut,
    folder: Path,
    *,
    baselines: bool = False,
    resample_to: str | None = None,
) -> dict[str, Any]:
    """Read, map, bring back onto the case's grid, write into `folder`; returns what case.json says of it.

    Where memory runs out the networks are given less at once.
    """
    started = time.perf_counter()
    recipe = ensemble.recipe
    images, inputs = read_inputs(case, recipe.channels, resample_to=resample_to)
    prepared = prepare_case(images, recipe.preparation)
    read_seconds = time.perf_counter() - started
    slices = recipe.view.for_sampling(prepared.brain)

    def mapped(batch: int) -> list[AnomalyVolume]:
        with bar(f"  {case.name}", len(slices) * len(ensemble.systems)) as advance:
            return ensemble.volumes(prepared, batch, slices=slices, baselines=baselines, advance=advance)

    volumes, batch = halved_to_fit(mapped, recipe.engine.network_batch)
    map_seconds = time.perf_counter() - started - read_seconds
    report, gains = _write(volumes, images, prepared, ensemble, cut, folder)
    if baselines:
        report["baseline_thresholds"] = _write_baselines(volumes, prepared, ensemble, folder / BASELINES)
    checks, warned = checks_of_runs(ensemble, volumes, gains, lesions=report["lesions"])
    typicality = ensemble.typicality(
        appearance_of(prepared.image, prepared.brain, prepared.spacing_mm, recipe.channels)
    )
    unlike = warnings_of(typicality, of_phantoms=ensemble.learned_from_phantoms and not is_phantom(case))
    warnings = [*prepared.warnings, *unlike, *warned]
    if ensemble.facts["separate"] is False:
        warnings.append(TRAINED_ON)
    if batch < recipe.engine.network_batch:
        warnings.append(less_at_once(batch, recipe.engine.network_batch))
    seconds = {"read": read_seconds, "map": map_seconds, "all": time.perf_counter() - started}
    facts = {"channels": list(images.channels), **ensemble.facts, **report, "baselines": baselines}
    facts |= {"typicality": typicality, "warnings": warnings, "inputs": inputs, "network_batch": batch}
    facts |= {"quality_checks": checks, "slices": len(slices)}
    return facts | {"seconds": {name: round(value, 2) for name, value in seconds.items()}}


def _write(
    volumes: Sequence[AnomalyVolume],
    images: CaseImages,
    prepared: Prepared,
    ensemble: AnomalyEnsemble,
    cut: Cut,
    folder: Path,
) -> tuple[dict[str, Any], Sequence[float]]:
    """Map, mask, lesions and pseudo-healthy channels on the case's own grid; what case.json says of them, and the gain of
    each run."""
    recipe, affine, own = ensemble.recipe, prepared.native_affine, ensemble.systems[0].calibrated
    score, depth_mm, gains = ensemble.joined(OWN, [volume.score for volume in volumes], prepared)
    native, brain = _on_native_grid(score, prepared)
    inside = native[brain & (native != 0)]
    threshold, smallest_ml = cut.of(inside), recipe.findings.smallest_ml
    lesions = find_lesions(native, brain, threshold=threshold, smallest_ml=smallest_ml, affine=affine)
    prepared.write(folder / "anomaly.nii.gz", native)
    prepared.write(folder / "anomaly_mask.nii.gz", lesions.mask.astype(np.uint8))
    if reconstructions := [volume.healthy for volume in volumes if volume.healthy is not None]:
        healthy = with_change(images, prepared, stack(reconstructions).mean(dim=0) - prepared.image)
        for name, voxels in zip(images.channels, healthy, strict=True):
            prepared.write(folder / f"healthy_{name}.nii.gz", voxels)
    write_table(folder / "lesions.csv", LESION_COLUMNS, lesions.rows)
    of_slices = [top_mean(score[0, ..., z].numpy()[depth_mm[..., z] > 0]) for z in volumes[0].slices]
    normal = own.own.normative_mean if own and own.own and not ensemble.is_study else None
    return {
        "diseased": None if recipe.diseased is None else list(recipe.diseased),
        "threshold_asked": cut.asked_for,
        "threshold": {"value": round(threshold, 6) if np.isfinite(threshold) else None, "how": cut.how},
        "normative_mean": normal and normal.model_dump(mode="json"),
        "lesions": len(lesions.rows),
        "volume_ml": lesions.volume_ml,
        "removed": lesions.removed,
        "score": round(top_mean(inside), 5),
        "slice_scores": _by_slice(of_slices, volumes[0].slices, prepared),
    }, gains


def _on_native_grid(score: Tensor, prepared: Prepared) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The map [X, Y, Z], 0 outside the brain, and the brain, both on the case's own grid."""
    back = restore(prepared, cat([score, prepared.brain.float()]))
    brain = back[1] > 0.5
    return np.where(brain, back[0], 0).astype(np.float32), brain


def _write_baselines(
    volumes: Sequence[AnomalyVolume], prepared: Prepared, ensemble: AnomalyEnsemble, folder: Path
) -> dict[str, float | None]:
    """The baselines' maps, cleaned as the engine's own is, above normative means of their own, and joined as it is; their
    stored thresholds. Those of a study that a run has no threshold for are left out."""
    plain = plain_baselines(prepared.image, prepared.brain, prepared.channels, prepared.spacing_mm)
    maps = {name: [raw] * len(volumes) for name, raw in plain.items()}
    maps |= {name: [volume.baselines[name] for volume in volumes] for name in volumes[0].baselines}
    maps = {name: raw for name, raw in maps.items() if ensemble.joins(name)}
    for name, raw in maps.items():
        native, _ = _on_native_grid(ensemble.joined(name, raw, prepared).score, prepared)
        prepared.write(folder / f"{name}.nii.gz", native)
    return {name: ensemble.threshold(name) for name in maps}


def _by_slice(scores: Sequence[float], slices: Sequence[int], prepared: Prepared) -> dict[str, Any]:
    """Scores of the network's axial slices, with the height of each in RAS millimetres."""
    heights = [round(float(prepared.affine[2, 2] * z + prepared.affine[2, 3]), 1) for z in slices]
    return {"z_mm": heights, "score": [round(score, 5) for score in scores]}
