"""`anomaly`: scans in; anomaly map, mask, lesion table and pseudo-healthy brain out, on each scan's own grid."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, cat, from_numpy

from medseg_diff.console import bar, log
from medseg_diff.data.appearance import appearance_of
from medseg_diff.data.digests import read_inputs
from medseg_diff.data.reading import CaseImages
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Prepared, prepare_case, restore, with_change
from medseg_diff.device import halved_to_fit, less_at_once
from medseg_diff.files import check_writable, write_table
from medseg_diff.methods.anomaly.baselines import plain_baselines
from medseg_diff.methods.anomaly.normative import (
    OWN,
    RECONSTRUCTED,
    AnomalyFindings,
    above_normal,
    cleaned,
    depth_of,
    top_mean,
)
from medseg_diff.methods.components import LESION_COLUMNS, find_lesions
from medseg_diff.phantoms.make import is_phantom
from medseg_diff.recipes.calibration import MapCalibration
from medseg_diff.recipes.trained import find_model
from medseg_diff.recipes.typicality import warnings_of
from medseg_diff.run import Run
from medseg_diff.tasks.apply.anomaly_threshold import Cut
from medseg_diff.tasks.apply.anomaly_volume import AnomalySystem, AnomalyVolume, map_volume, open_system
from medseg_diff.tasks.apply.case_folder import Identity
from medseg_diff.tasks.apply.cases import Given, find_cases, given_by
from medseg_diff.tasks.apply.channels import grid_as_trained, warn_of_other_grid
from medseg_diff.tasks.apply.folder import Results
from medseg_diff.tasks.apply.quality_checks import quality_checks
from medseg_diff.tasks.apply.sharing import Shared, do_cases
from medseg_diff.tasks.apply.sweep import check_options, sweep_anomaly
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import Compute, MapOptions, MapOrSweep, Model, ResultFolder, Source

# In every case of one folder.
SAME = ("sha256", "classifier_sha256", "recipe_sha256", "calibration_sha256", "engine", "findings", "seed")
BASELINES = "baselines"


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
    run = find_model(model.model, task="anomaly", runs=model.runs)
    system = open_system(run, compute=compute.here, overrides=maps.overrides, seed=maps.seed)
    say(system)
    cases = find_cases(source, system.recipe.channels, task="anomaly", runs=model.runs)
    warn_of_other_grid(system.recipe, source.resample_to)
    if maps.sweep:
        with grid_as_trained(system.recipe):
            return [sweep_anomaly(cases, system, results.out, resample_to=source.resample_to)]
    given = given_by(source, cases)
    opened = partial(AnomalyMapping.opened, run, compute, replace(given, cases=[]), results, maps, runs=model.runs)
    return map_cases(given, system, results, maps, runs=model.runs, shared=Shared(compute.sharing, opened))


def say(system: AnomalySystem) -> None:
    """Which model maps, and what that takes."""
    log.info("model %s (%s): %s", system.facts["model"], system.facts["recipe"], in_words(system))


def map_cases(
    given: Given,
    system: AnomalySystem,
    results: ResultFolder,
    maps: MapOptions,
    *,
    runs: Path,
    shared: Shared | None = None,
) -> list[Path]:
    """Map the anomalies of cases into a folder of results, by this process or `shared` among others; returns the folder of
    each. Raises: as `anomaly`."""
    job = AnomalyMapping.of(system, given, results, maps, runs=runs)
    job.folder.check_room(given.cases, maps=1 + len(system.recipe.channels))
    do_cases("mapping", given.cases, job, shared)
    log.info("results in %s: open anomaly.nii.gz over the scan in 3D Slicer or ITK-SNAP", results.out)
    return [job.folder.folder(case) for case in given.cases]


@dataclass(frozen=True)
class AnomalyMapping:
    """An opened run at work on cases of one folder; `noted` stands in every case.json besides what is found."""

    system: AnomalySystem
    folder: Results
    cut: Cut
    maps: MapOptions
    noted: dict[str, Any]
    warned: set[str] = field(default_factory=set)  # a warning that is true of every case is said once

    @classmethod
    def opened(
        cls, run: Run, compute: Compute, given: Given, results: ResultFolder, maps: MapOptions, *, runs: Path
    ) -> "AnomalyMapping":
        """Of a run that is not open yet, for a worker. Raises: what `open_system` and `of` raise."""
        system = open_system(run, compute=compute, overrides=maps.overrides, seed=maps.seed)
        return cls.of(system, given, results, maps, runs=runs)

    @classmethod
    def of(
        cls, system: AnomalySystem, given: Given, results: ResultFolder, maps: MapOptions, *, runs: Path
    ) -> "AnomalyMapping":
        """Raises: UsageError for a threshold that there is not; EnvironmentFault for the key of pseudonyms."""
        cut = Cut.guaranteed(system, maps) if maps.promises else Cut.asked(system, maps.threshold)
        same = {key: system.facts.get(key) for key in SAME} | given.asked | {"threshold_asked": cut.asked_for}
        identity = Identity(same | ({"baselines": True} if maps.baselines else {}))
        folder = Results.into(results, "anomaly", identity, given=given, runs=runs)
        return cls(system, folder, cut, maps, dict(given.asked))

    def work(self, case: Case, new: Path) -> dict[str, Any]:
        """Map a case into the folder `new`; what case.json says of it."""
        baselines, resample_to = self.maps.baselines, self.noted["resample_to"]
        with grid_as_trained(self.system.recipe):
            facts = find_anomalies(case, self.system, self.cut, new, baselines=baselines, resample_to=resample_to)
        for warning in facts["warnings"]:
            if warning not in self.warned:
                log.warning("[%s] %s", case.name, warning)
                self.warned.add(warning)
        return self.noted | facts


def in_words(system: AnomalySystem) -> str:
    """`inversion, 16 network evaluations a slice`."""
    return f"{system.engine.kind}, {sum(system.engine.evaluations.values())} network evaluations a slice"


def find_anomalies(
    case: Case,
    system: AnomalySystem,
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
    images, inputs = read_inputs(case, system.recipe.channels, resample_to=resample_to)
    prepared = prepare_case(images, system.recipe.preparation)
    read_seconds = time.perf_counter() - started
    slices = system.recipe.view.for_sampling(prepared.brain)

    def mapped(batch: int) -> AnomalyVolume:
        with bar(f"  {case.name}", len(slices)) as advance:
            return map_volume(
                prepared, system.but(network_batch=batch), slices=slices, baselines=baselines, advance=advance
            )

    volume, batch = halved_to_fit(mapped, system.engine.network_batch)
    map_seconds = time.perf_counter() - started - read_seconds
    report, gain = _write(volume, images, prepared, system, cut, folder)
    if baselines:
        report["baseline_thresholds"] = _write_baselines(volume, prepared, system, folder / BASELINES)
    checks = quality_checks(volume, system, gain, lesions=report["lesions"])
    looks = appearance_of(prepared.image, prepared.brain, prepared.spacing_mm, system.recipe.channels)
    typicality = system.typicality.judge(looks) if system.typicality else None
    of_phantoms = bool(system.typicality and system.typicality.phantoms) and not is_phantom(case)
    unlike = warnings_of(typicality, of_phantoms=of_phantoms)
    warnings = [*prepared.warnings, *unlike, *(check.warning for check in checks if check.warning)]
    if batch < system.engine.network_batch:
        warnings.append(less_at_once(batch, system.engine.network_batch))
    seconds = {"read": read_seconds, "map": map_seconds, "all": time.perf_counter() - started}
    facts = {"channels": list(images.channels), **system.facts, **report, "baselines": baselines}
    facts |= {"typicality": typicality, "warnings": warnings, "inputs": inputs, "network_batch": batch}
    facts |= {"quality_checks": {check.name: check.values for check in checks}, "slices": len(slices)}
    return facts | {"seconds": {name: round(value, 2) for name, value in seconds.items()}}


def _write(
    volume: AnomalyVolume, images: CaseImages, prepared: Prepared, system: AnomalySystem, cut: Cut, folder: Path
) -> tuple[dict[str, Any], float]:
    """Map, mask, lesions and pseudo-healthy channels on the case's own grid; what case.json says of them, and the gain."""
    recipe, affine = system.recipe, prepared.native_affine
    known = system.calibrated.own if system.calibrated else None
    score, depth_mm, gain = finished(OWN, volume.score, prepared, recipe.findings, known)
    native, brain = _on_native_grid(score, prepared)
    inside = native[brain & (native != 0)]
    threshold, smallest_ml = cut.of(inside), recipe.findings.smallest_ml
    lesions = find_lesions(native, brain, threshold=threshold, smallest_ml=smallest_ml, affine=affine)
    prepared.write(folder / "anomaly.nii.gz", native)
    prepared.write(folder / "anomaly_mask.nii.gz", lesions.mask.astype(np.uint8))
    if volume.healthy is not None:
        healthy = with_change(images, prepared, volume.healthy - prepared.image)
        for name, voxels in zip(images.channels, healthy, strict=True):
            prepared.write(folder / f"healthy_{name}.nii.gz", voxels)
    write_table(folder / "lesions.csv", LESION_COLUMNS, lesions.rows)
    of_slices = [top_mean(score[0, ..., z].numpy()[depth_mm[..., z] > 0]) for z in volume.slices]
    return {
        "diseased": None if recipe.diseased is None else list(recipe.diseased),
        "threshold_asked": cut.asked_for,
        "threshold": {"value": round(threshold, 6) if np.isfinite(threshold) else None, "how": cut.how},
        "normative_mean": known and known.normative_mean.model_dump(mode="json"),
        "lesions": len(lesions.rows),
        "volume_ml": lesions.volume_ml,
        "removed": lesions.removed,
        "score": round(top_mean(inside), 5),
        "slice_scores": _by_slice(of_slices, volume.slices, prepared),
    }, gain


def finished(
    name: str, raw: Tensor, prepared: Prepared, findings: AnomalyFindings, known: MapCalibration | None
) -> tuple[Tensor, npt.NDArray[np.float32], float]:
    """The raw map `name` [1, *S] as it is written, above its normative mean at the scan's own gain (unless the recipe takes
    it as it is); the depth [*S] of each voxel below the brain's surface; and that gain."""
    depth_mm = depth_of(prepared.brain, prepared.spacing_mm)
    score = cleaned(raw, prepared.brain, findings, spacing_mm=prepared.spacing_mm)[0].numpy()
    inside, gain, normal = depth_mm > 0, 1.0, known.normative_mean if known and findings.normative else None
    if normal and name in RECONSTRUCTED:
        gain = normal.gain_of(score[inside], depth_mm[inside])
    return from_numpy(above_normal(score, depth_mm, normal, rim_mm=findings.rim_mm, gain=gain))[None], depth_mm, gain


def _on_native_grid(score: Tensor, prepared: Prepared) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The map [X, Y, Z], 0 outside the brain, and the brain, both on the case's own grid."""
    back = restore(prepared, cat([score, prepared.brain.float()]))
    brain = back[1] > 0.5
    return np.where(brain, back[0], 0).astype(np.float32), brain


def _write_baselines(
    volume: AnomalyVolume, prepared: Prepared, system: AnomalySystem, folder: Path
) -> dict[str, float | None]:
    """The baselines' maps, cleaned as the engine's own is, above normative means of their own; their stored thresholds."""
    known = system.calibrated.maps if system.calibrated else {}
    maps = {
        **plain_baselines(prepared.image, prepared.brain, prepared.channels, prepared.spacing_mm),
        **volume.baselines,
    }
    for name, raw in maps.items():
        score, *_ = finished(name, raw, prepared, system.recipe.findings, known.get(name))
        native, _ = _on_native_grid(score, prepared)
        prepared.write(folder / f"{name}.nii.gz", native)
    return {name: known[name].threshold if name in known else None for name in maps}


def _by_slice(scores: Sequence[float], slices: Sequence[int], prepared: Prepared) -> dict[str, Any]:
    """Scores of the network's axial slices, with the height of each in RAS millimetres."""
    heights = [round(float(prepared.affine[2, 2] * z + prepared.affine[2, 3]), 1) for z in slices]
    return {"z_mm": heights, "score": [round(score, 5) for score in scores]}
