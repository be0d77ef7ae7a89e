"""A case of `anomaly` in three steps: read and prepared, mapped by every run, its maps brought back and written."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, cat, stack

from medseg_diff.console import bar
from medseg_diff.data.appearance import appearance_of
from medseg_diff.data.digests import read_inputs
from medseg_diff.data.geometry import slice_heights
from medseg_diff.data.reading import CaseImages
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Prepared, prepare_case, restore, with_change
from medseg_diff.device import halved_to_fit, less_at_once
from medseg_diff.files import write_table
from medseg_diff.methods.anomaly.baselines import plain_baselines
from medseg_diff.methods.anomaly.normative import OWN, stored, top_mean
from medseg_diff.methods.components import LESION_COLUMNS, find_lesions
from medseg_diff.phantoms.make import is_phantom
from medseg_diff.recipes.typicality import warnings_of
from medseg_diff.tasks.apply.anomaly_ensemble import AnomalyEnsemble
from medseg_diff.tasks.apply.anomaly_threshold import Cut
from medseg_diff.tasks.apply.anomaly_volume import AnomalyVolume
from medseg_diff.tasks.apply.quality_checks import checks_of_runs
from medseg_diff.tasks.apply.sampled_slices import left_out, slices_to_sample

BASELINES = "baselines"
TRAINED_ON = (
    "normative mean and threshold were measured on training patients: more of a healthy brain than stated may "
    "be above the threshold (train-anomaly --folds measures them on other patients)"
)


@dataclass(frozen=True)
class ReadCase:
    """A case before the networks, what its images are (`inputs`) and how unlike the training's it looks."""

    images: CaseImages
    prepared: Prepared
    inputs: dict[str, Any]
    typicality: dict[str, Any] | None
    warnings: list[str]
    seconds: float

    @property
    def name(self) -> str:
        return self.prepared.name


@dataclass(frozen=True)
class MappedCase:
    """What each run says of a case, with so many slices in a pass of the networks."""

    read: ReadCase
    volumes: list[AnomalyVolume]
    batch: int
    seconds: float


def read(case: Case, ensemble: AnomalyEnsemble, *, resample_to: str | None = None) -> ReadCase:
    """The channels of a case."""
    started = time.perf_counter()
    recipe = ensemble.recipe
    images, inputs = read_inputs(case, recipe.channels, resample_to=resample_to)
    prepared = prepare_case(images, recipe.preparation)
    typicality = ensemble.typicality(
        appearance_of(prepared.image, prepared.brain, prepared.spacing_mm, recipe.channels)
    )
    unlike = warnings_of(typicality, of_phantoms=ensemble.learned_from_phantoms and not is_phantom(case))
    warnings = [*prepared.warnings, *left_out(recipe.view, prepared), *unlike]
    return ReadCase(images, prepared, inputs, typicality, warnings, time.perf_counter() - started)


def map_case(case: ReadCase, ensemble: AnomalyEnsemble, *, baselines: bool = False) -> MappedCase:
    """What each run says of the slices that hold brain. Where memory runs out the networks are given less at once."""
    started = time.perf_counter()
    slices = slices_to_sample(ensemble.recipe.view, case.prepared)

    def mapped(batch: int) -> list[AnomalyVolume]:
        with bar(f"  {case.name}", len(slices) * len(ensemble.systems)) as advance:
            return ensemble.volumes(case.prepared, batch, slices=slices, baselines=baselines, advance=advance)

    volumes, batch = halved_to_fit(mapped, ensemble.recipe.engine.network_batch)
    return MappedCase(case, volumes, batch, time.perf_counter() - started)


def write(
    case: MappedCase, ensemble: AnomalyEnsemble, cut: Cut, folder: Path, *, baselines: bool = False
) -> dict[str, Any]:
    """Bring the maps back onto the case's grid and write them into `folder`; returns what case.json says of the case."""
    started = time.perf_counter()
    scan, volumes = case.read, case.volumes
    report, gains = _write_maps(case, ensemble, cut, folder)
    if baselines:
        report["baseline_thresholds"] = _write_baselines(volumes, scan.prepared, ensemble, folder / BASELINES)
    checks, warned = checks_of_runs(ensemble, volumes, gains, lesions=report["lesions"])
    warnings = [*scan.warnings, *warned]
    if ensemble.facts["separate"] is False:
        warnings.append(TRAINED_ON)
    if case.batch < (asked := ensemble.recipe.engine.network_batch):
        warnings.append(less_at_once(case.batch, asked))
    seconds = {"read": scan.seconds, "map": case.seconds}
    seconds["all"] = sum(seconds.values()) + time.perf_counter() - started
    facts = {"channels": list(scan.images.channels), **ensemble.facts, **report, "baselines": baselines}
    facts |= {"typicality": scan.typicality, "warnings": warnings, "inputs": scan.inputs, "network_batch": case.batch}
    facts |= {"quality_checks": checks, "slices": len(volumes[0].slices)}
    return facts | {"seconds": {name: round(value, 2) for name, value in seconds.items()}}


def _write_maps(
    case: MappedCase, ensemble: AnomalyEnsemble, cut: Cut, folder: Path
) -> tuple[dict[str, Any], Sequence[float]]:
    """Map, mask, lesions and pseudo-healthy channels on the case's own grid; what case.json says of them, and the gain of
    each run."""
    images, prepared, volumes = case.read.images, case.read.prepared, case.volumes
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
        "threshold": {"value": stored(threshold) if np.isfinite(threshold) else None, "how": cut.how},
        "normative_mean": normal and normal.model_dump(mode="json"),
        "lesions": len(lesions.rows),
        "volume_ml": lesions.volume_ml,
        "removed": lesions.removed,
        "score": round(top_mean(native[brain]), 5),
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
    heights = slice_heights(prepared.affine, prepared.image.shape[1:])
    return {"z_mm": [heights[z] for z in slices], "score": [round(score, 5) for score in scores]}
