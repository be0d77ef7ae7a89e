"""`anomaly`: scans in; calibrated anomaly map, mask, lesion table and the healed brain out, on each scan's own grid."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from medseg_diff.console import bar, log
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import CaseImages, read_case
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Prepared, prepare_case, restore, with_change
from medseg_diff.device import halved_to_fit, less_at_once
from medseg_diff.errors import UsageError
from medseg_diff.files import check_writable, write_json, write_table
from medseg_diff.methods.anomaly.normative import (
    LEVELLED,
    AnomalyFindings,
    Floor,
    above_floor,
    cleaned,
    depth_of,
    otsu,
    top_mean,
)
from medseg_diff.methods.components import LESION_COLUMNS, find_lesions
from medseg_diff.recipes.trained import find_model
from medseg_diff.tasks.apply.anomaly_volume import HealedVolume, heal_volume
from medseg_diff.tasks.apply.cases import find_cases
from medseg_diff.tasks.apply.folder import Identity, Results
from medseg_diff.tasks.apply.healer import Healer, load_healer
from medseg_diff.tasks.apply.pseudonyms import names_of, without_names
from medseg_diff.tasks.apply.quality_checks import doubts_about, doubts_about_level, guards_of
from medseg_diff.tasks.apply.sweep import sweep_anomaly
from medseg_diff.tasks.train.normative import plain_baselines

Threshold = Literal["healthy", "otsu"] | float
SAME = ("sha256", "classifier_sha256", "recipe_sha256", "calibration_sha256", "healing")
BASELINES = "baselines"


def anomaly(
    volumes: Sequence[str] = (),
    *,
    data: Path | None = None,
    out: Path,
    model: Path | None = None,
    split: str | None = None,
    shard: tuple[int, int] = (1, 1),
    threshold: Threshold | None = None,
    depth: int | None = None,
    steps: int | None = None,
    scale: float | None = None,
    network_batch: int | None = None,
    precision: str | None = None,
    resample_to: str | None = None,
    baselines: bool = False,
    sweep: bool = False,
    overwrite: bool = False,
    keep_going: bool = False,
    pseudonymise: bool = False,
    pseudonym_key: Path | None = None,
    device: str = "auto",
    data_root: Path | None = None,
    runs: Path = Path("runs"),
) -> list[Path]:
    """Map the anomalies of one case (`volumes`, as on the command line) or of a table's cases; returns the folders written.

    Cases that are complete with the same settings are skipped, and so are those that another process is working on.
    `baselines` also writes the maps that a method must beat, treated alike, for `evaluate`. `sweep` writes no maps: it
    tries depths, steps and scales on a few slices and returns the folder of its table. With `keep_going` a bad case is
    listed in failures.csv and the others go on; its error is raised at the end. With `pseudonymise` results carry names
    made with the secret in `pseudonym_key` (see `tasks.pseudonyms`).
    Raises: UsageError, ManifestError, ImageError, CheckpointError, EnvironmentFault.
    """
    if bool(volumes) == (data is not None):
        raise UsageError("one of --volume and --data is needed", fix="name a scan, or a table of cases")
    check_writable(out)
    run = find_model(model, task="anomaly", runs=runs)
    healer = load_healer(
        run, device=device, precision=precision, depth=depth, steps=steps, scale=scale, network_batch=network_batch
    )
    log.info("model %s (%s): %s", run.name, run.facts["recipe"], in_words(healer))
    for doubt in doubts_about(healer):
        log.warning("%s", doubt)
    cases = find_cases(volumes, data, healer.recipe.channels, split=split, data_root=data_root, shard=shard)
    if sweep:
        return [sweep_anomaly(cases, healer, out, resample_to=resample_to)]
    cut = Cut.asked(healer, threshold)
    same = {key: healer.facts[key] for key in SAME} | {"threshold_asked": cut.asked_for}
    identity = Identity(same | ({"baselines": True} if baselines else {}))
    called = names_of(pseudonymise, pseudonym_key, out=out, runs=runs)
    results = Results(out, identity, overwrite=overwrite, keep_going=keep_going, called=called)
    results.check_room(cases, maps=1 + len(healer.recipe.channels))
    results.work_through(
        "healing",
        cases,
        lambda case, folder: find_anomalies(case, healer, cut, folder, baselines=baselines, resample_to=resample_to),
    )
    log.info("results in %s: open anomaly.nii.gz over the scan in 3D Slicer or ITK-SNAP", out)
    return [results.folder(case) for case in cases]


def in_words(healer: Healer) -> str:
    """`10 steps to L = 250 and back at scale 100`."""
    healing = healer.healing
    return f"{healing.steps} steps to L = {healing.depth} and back at scale {healing.scale:g} ({healing.engine})"


@dataclass(frozen=True)
class Cut:
    """Where a map becomes a mask: `value`, or, where it is None, each scan's own Otsu threshold; and how it was set."""

    asked_for: str | float
    value: float | None
    how: str

    @classmethod
    def asked(cls, healer: Healer, threshold: Threshold | None) -> "Cut":
        """From the command line, else from the recipe.

        Raises: UsageError where the stored threshold is asked for and there is none for these settings.
        """
        chosen = healer.recipe.findings.threshold if threshold is None else threshold
        if chosen == "otsu":
            return cls("otsu", None, "Otsu's threshold of this scan's brain")
        if not isinstance(chosen, str):
            return cls(float(chosen), float(chosen), "given")
        facts = healer.calibration.facts if healer.calibration else {}
        other = "use --threshold otsu, or a number"
        if facts.get("threshold") is None:
            raise UsageError(f"the model has no threshold from healthy brains ({facts.get('source')})", fix=other)
        if not healer.is_calibrated:
            found = "the stored threshold was measured with other depth, steps or scale"
            raise UsageError(found, fix=f"{other}, or train with these settings in healing")
        share = facts["false_positive_rate"]
        return cls("healthy", float(facts["threshold"]), f"{share:.2%} of the voxels of {facts['source']} lie above")

    def of(self, values: npt.NDArray[np.float32]) -> float:
        """The threshold for a brain whose voxels score `values` [N]."""
        return otsu(values) if self.value is None else self.value


def find_anomalies(
    case: Case, healer: Healer, cut: Cut, folder: Path, *, baselines: bool = False, resample_to: str | None = None
) -> None:
    """Read, heal, compare, bring back onto the case's grid, write; case.json last, because it says that all is there.

    In the results the case is called as `folder` is. Where memory runs out the networks are given less at once.
    """
    started = time.perf_counter()
    _forget(folder)
    images = read_case(case, healer.recipe.channels, reference=False, resample_to=resample_to)
    prepared = prepare_case(images, healer.recipe.preparation)
    read_seconds = time.perf_counter() - started
    slices = healer.recipe.view.for_sampling(prepared.brain)

    def heal(batch: int) -> HealedVolume:
        with bar(f"  {case.name}", len(slices)) as advance:
            return heal_volume(prepared, healer.at_once(batch), slices=slices, rivals=baselines, advance=advance)

    volume, batch = halved_to_fit(heal, healer.healing.network_batch)
    heal_seconds = time.perf_counter() - started - read_seconds
    report = _write(volume, images, prepared, healer, cut, folder)
    if baselines:
        report["baseline_thresholds"] = _write_baselines(volume, prepared, healer, folder / BASELINES)
    guards, doubts = guards_of(volume, healer)
    warnings = [*prepared.warnings, *doubts, *doubts_about_level(report["level"])]
    if batch < healer.healing.network_batch:
        warnings.append(less_at_once(batch, healer.healing.network_batch))
    for warning in warnings:
        if warning not in doubts_about(healer):  # said once, before the first case
            log.warning("[%s] %s", case.name, warning)
    seconds = {"read": read_seconds, "heal": heal_seconds, "all": time.perf_counter() - started}
    facts = healer.facts | report | {"baselines": baselines, "resample_to": resample_to}
    warnings = [without_names(warning, case, folder.name) for warning in warnings]
    facts |= {"guards": guards, "warnings": warnings, "network_batch": batch}
    facts |= {"slices": len(slices), "seconds": {name: round(value, 2) for name, value in seconds.items()}}
    write_json(
        folder / "case.json", {"case": folder.name, "task": "anomaly", "channels": list(images.channels), **facts}
    )


def _forget(folder: Path) -> None:
    """Remove what says that the case is complete, and maps that this call may not write."""
    (folder / "case.json").unlink(missing_ok=True)
    for path in (*folder.glob(f"{BASELINES}/*.nii.gz"), *folder.glob("healed_*.nii.gz")):
        path.unlink()


def _write(
    volume: HealedVolume, images: CaseImages, prepared: Prepared, healer: Healer, cut: Cut, folder: Path
) -> dict[str, Any]:
    """Map, mask, lesions and healed channels on the case's own grid, and what case.json says of them."""
    recipe, affine = healer.recipe, prepared.native_affine
    floor = healer.calibration.floor if healer.calibration and healer.is_calibrated else None
    score, depth_mm, level = finished("map", volume.score, prepared, recipe.findings, floor)
    native, brain = _on_native_grid(score, prepared)
    inside = native[brain & (native != 0)]
    threshold = cut.of(inside)
    smallest_ml = recipe.findings.smallest_ml
    lesions = find_lesions(native, brain, threshold=threshold, smallest_ml=smallest_ml, affine=affine)
    write_volume(folder / "anomaly.nii.gz", native, affine)
    write_volume(folder / "anomaly_mask.nii.gz", lesions.mask.astype(np.uint8), affine)
    healed = with_change(images, prepared, volume.healed - prepared.image)
    for name, voxels in zip(images.channels, healed, strict=True):
        write_volume(folder / f"healed_{name}.nii.gz", voxels, affine)
    write_table(folder / "lesions.csv", LESION_COLUMNS, lesions.rows)
    of_slices = [top_mean(score[0, ..., z].numpy()[depth_mm[..., z] > 0]) for z in volume.slices]
    return {
        "diseased": None if recipe.diseased is None else list(recipe.diseased),
        "findings": recipe.findings.model_dump(mode="json"),
        "threshold_asked": cut.asked_for,
        "threshold": {"value": round(threshold, 6) if np.isfinite(threshold) else None, "how": cut.how},
        "floor": floor.facts if floor else None,
        "level": round(level, 4),
        "lesions": len(lesions.rows),
        "volume_ml": lesions.volume_ml,
        "removed": lesions.removed,
        "score": round(top_mean(inside), 5),
        "slice_scores": _by_slice(of_slices, volume.slices, prepared),
    }


def finished(
    name: str, raw: torch.Tensor, prepared: Prepared, findings: AnomalyFindings, floor: Floor | None
) -> tuple[torch.Tensor, npt.NDArray[np.float32], float]:
    """The raw map `name` [1, *S] as it is written, above its floor at the scan's own level; the depth [*S] of each voxel
    below the brain's surface; and that level."""
    depth_mm = depth_of(prepared.brain, prepared.spacing_mm)
    score = cleaned(raw, prepared.brain, findings, spacing_mm=prepared.spacing_mm)
    inside, level = depth_mm > 0, 1.0
    if floor is not None and name in LEVELLED:
        level = floor.level_of(score[0].numpy()[inside], depth_mm[inside])
    return above_floor(score, depth_mm, findings, floor, level=level), depth_mm, level


def _on_native_grid(score: torch.Tensor, prepared: Prepared) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """The map [X, Y, Z], 0 outside the brain, and the brain, both on the case's own grid."""
    back = restore(prepared, torch.cat([score, prepared.brain.float()]))
    brain = back[1] > 0.5
    return np.where(brain, back[0], 0).astype(np.float32), brain


def _write_baselines(volume: HealedVolume, prepared: Prepared, healer: Healer, folder: Path) -> dict[str, float | None]:
    """The rivals' maps, cleaned as the method's own is, above floors of their own; returns their stored thresholds."""
    known = healer.calibration.facts["rivals"] if healer.calibration and healer.is_calibrated else {}
    maps = {**plain_baselines(prepared), **volume.rivals}
    for name, raw in maps.items():
        floor = Floor.from_facts(known[name]["floor"]) if name in known else None
        score, *_ = finished(name, raw, prepared, healer.recipe.findings, floor)
        write_volume(folder / f"{name}.nii.gz", _on_native_grid(score, prepared)[0], prepared.native_affine)
    return {name: known[name]["threshold"] if name in known else None for name in maps}


def _by_slice(scores: Sequence[float], slices: Sequence[int], prepared: Prepared) -> dict[str, Any]:
    """Scores of the network's axial slices, with the height of each in RAS millimetres."""
    heights = [round(float(prepared.affine[2, 2] * z + prepared.affine[2, 3]), 1) for z in slices]
    return {"z_mm": heights, "score": [round(score, 5) for score in scores]}
