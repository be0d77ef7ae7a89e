"""What an ensemble says of a case, brought onto the case's own grid and written: maps, masks, and words for case.json.

A region never exceeds one that holds it, in any file: members are kept inside when they are drawn, the maps once more
after resampling, and each mask is cut to the outer ones after its small components are gone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg_diff.data import geometry
from medseg_diff.data.formats.label_tables import write_label_tables
from medseg_diff.data.transforms import Prepared, restore
from medseg_diff.methods.components import Findings, Removed, find_mask
from medseg_diff.methods.fusion import staple, vote
from medseg_diff.methods.labels import Masks, painted, settled
from medseg_diff.methods.regions import hierarchy_of, kept_inside
from medseg_diff.methods.sampled_segmentation import Ensemble, uncertainty_maps
from medseg_diff.metrics.tuning import tempered
from medseg_diff.recipes.segmentation import SegmentationRecipe

if TYPE_CHECKING:
    from medseg_diff.tasks.apply.dicom_objects import DicomObjects
    from medseg_diff.tasks.apply.segmentation_system import SegmentationSystem

MOST_SLICES = 5
FEWEST_ML = 0.05  # an axial slice with less expected error than this needs no second look
CENTRAL = (2.5, 97.5)  # percentiles of the members' volumes

Floats = npt.NDArray[np.float32]


def suffix_of(recipe: SegmentationRecipe, region: str) -> str:
    """What a region's files are called beyond their kind."""
    return "" if len(recipe.regions) == 1 else f"_{region}"


def brought_back(prepared: Prepared, recipe: SegmentationRecipe, probability: Tensor) -> Floats:
    """Values in [0, 1] [N, R, *S] of the view → [R, X, Y, Z] on the case's own grid, no region above an outer one."""
    native = np.clip(restore(prepared, recipe.view.join(probability.float().cpu())), 0, 1)
    return kept_inside(torch.from_numpy(native), hierarchy_of(recipe.regions), dim=0).numpy()


def write_maps(
    ensemble: Ensemble,
    prepared: Prepared,
    system: "SegmentationSystem",
    folder: Path,
    *,
    objects: "DicomObjects | None" = None,
) -> dict[str, Any]:
    """Write every map and mask, and `objects` of them where a DICOM series is there; returns what case.json says of them.

    Mean and variance between members are brought back and the other maps follow from them there, so that variance_between
    + variance_within = uncertainty = m (1 - m) holds on the grid that is written.
    """
    recipe, affine = system.recipe, prepared.native_affine
    voxel_ml = geometry.voxel_ml(affine)
    means = brought_back(prepared, recipe, ensemble.mean)

    def restored(variance: Tensor) -> Tensor:
        return torch.from_numpy(np.clip(restore(prepared, recipe.view.join(variance.cpu())), 0, 1))

    between, of_models = restored(ensemble.variance_between), ensemble.variance_of_models
    models = None if of_models is None else restored(of_models)
    masks, removed = masks_of(ensemble, means, prepared, system)
    report: dict[str, Any] = {
        "volume_ml": {},
        "lesion_presence": {},
        "agreement": {},
        "removed": {},
        "slices_to_review": {},
    }
    for number, (region, agreement) in enumerate(zip(recipe.regions, ensemble.agreement(), strict=True)):
        own = None if models is None else models[number]
        maps = uncertainty_maps(torch.from_numpy(means[number]), between[number], own)
        written = {"probability": means[number], **{kind: values.numpy() for kind, values in maps.items()}}
        for kind, values in written.items():
            prepared.write(folder / f"{kind}{suffix_of(recipe, region)}.nii.gz", values)
        of_members = volumes_of_members(ensemble.voxels[:, number].tolist(), prepared.voxel_ml)
        mask_ml = float(masks[region].sum()) * voxel_ml
        volume = system.promises.volume(region, mask_ml, means[number], voxel_ml)
        report["volume_ml"][region] = volume | {"members": of_members}
        report["lesion_presence"][region] = system.promises.presence(region, means[number], voxel_ml)
        report["agreement"][region] = round(agreement, 4)
        report["removed"][region] = {
            "components": removed[region].components,
            "volume_ml": round(removed[region].volume_ml, 3),
        }
        report["slices_to_review"][region] = slices_to_review(written["uncertainty"], affine, voxel_ml)
    prepared.write(folder / "mask.nii.gz", painted(masks, system.labels))
    write_label_tables(folder, [(label.label, label.name) for label in system.labels])
    _write_guaranteed(means, system, prepared, folder)
    _write_calibrated(means, system, prepared, folder)
    if objects is not None:
        objects.write(folder, masks, means)
    return report


def masks_of(
    ensemble: Ensemble, means: Floats, prepared: Prepared, system: "SegmentationSystem"
) -> tuple[Masks, dict[str, Removed]]:
    """Each region's mask on the case's own grid, inside the outer ones, and what was left out of it."""
    recipe = system.recipe
    fused = means if system.findings.fusion == "mean" else _fused(ensemble, prepared, system)
    voxel_ml = geometry.voxel_ml(prepared.native_affine)
    return cut_masks(fused, recipe, system.findings, system.thresholds, voxel_ml)


def cut_masks(
    values: Floats, recipe: SegmentationRecipe, findings: Findings, thresholds: Mapping[str, float], voxel_ml: float
) -> tuple[Masks, dict[str, Removed]]:
    """The mask of each region where its values [R, X, Y, Z] lie above its threshold, inside the outer regions' masks and
    where some label lies, and what was left out as too small."""
    found, removed = [], {}
    for region, own in zip(recipe.regions, values, strict=True):
        mask, removed[region] = find_mask(own, findings, voxel_ml, threshold=thresholds[region])
        found.append(mask)
    inside = [
        np.logical_and.reduce([mask, *(found[place] for place in outer)])
        for mask, outer in zip(found, hierarchy_of(recipe.regions), strict=True)
    ]
    return settled(dict(zip(recipe.regions, inside, strict=True)), values, recipe.regions), removed


def _fused(ensemble: Ensemble, prepared: Prepared, system: "SegmentationSystem") -> Floats:
    """What is cut at one half in the mean's stead: the share of the votes, or STAPLE's probability."""
    if system.findings.fusion == "vote":
        return brought_back(prepared, system.recipe, vote(ensemble.votes, ensemble.members))
    assert ensemble.masks is not None, "STAPLE needs an ensemble that keeps its masks"
    truths = [staple(ensemble.masks[:, :, number]) for number in range(ensemble.masks.shape[2])]
    return brought_back(prepared, system.recipe, torch.stack(truths, dim=1))


def _write_guaranteed(means: Floats, system: "SegmentationSystem", prepared: Prepared, folder: Path) -> None:
    """Masks that miss no more than was asked, where that was. An outer region's takes in those of the regions inside it,
    which promise as much."""
    thresholds, recipe = system.promises.guaranteed, system.recipe
    if not thresholds:
        return
    inclusive = [mean > thresholds[region] for region, mean in zip(recipe.regions, means, strict=True)]
    for inner, outers in enumerate(hierarchy_of(recipe.regions)):
        for outer in outers:
            inclusive[outer] = inclusive[outer] | inclusive[inner]
    for region, mask in zip(recipe.regions, inclusive, strict=True):
        prepared.write(folder / f"guaranteed_mask{suffix_of(recipe, region)}.nii.gz", mask.astype(np.uint8))


def _write_calibrated(means: Floats, system: "SegmentationSystem", prepared: Prepared, folder: Path) -> None:
    """The mean at the run's temperatures, beside the plain mean, where that was asked for."""
    temperatures: Mapping[str, float] = system.temperatures
    if not temperatures:
        return
    recipe = system.recipe
    values = np.stack(
        [tempered(mean, temperatures[region]) for region, mean in zip(recipe.regions, means, strict=True)]
    )
    kept = kept_inside(torch.from_numpy(values), hierarchy_of(recipe.regions), dim=0).numpy()
    for region, calibrated in zip(recipe.regions, kept, strict=True):
        prepared.write(folder / f"calibrated{suffix_of(recipe, region)}.nii.gz", calibrated)


def volumes_of_members(voxels: Sequence[int], voxel_ml: float) -> dict[str, float]:
    """Mean volume over members and its central 95 %, in millilitres."""
    volumes = np.asarray(voxels, dtype=np.float64) * voxel_ml
    low, high = np.percentile(volumes, CENTRAL)
    return {"mean": round(float(volumes.mean()), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def slices_to_review(
    uncertainty: npt.NDArray[np.float32], affine: npt.NDArray[np.float64], voxel_ml: float
) -> list[dict[str, Any]]:
    """The axial slices whose expected error is largest, worst first; at most five, none below 0.05 ml.

    `slice` counts from 0 along `axis`, the voxel axis that runs from foot to head. The expected error of a mask cut
    at one half is at least the sum of m (1 - m) over its voxels.
    """
    axis = geometry.axial_axis(affine)
    other = tuple(number for number in range(3) if number != axis)
    expected_ml = uncertainty.sum(axis=other, dtype=np.float64) * voxel_ml
    worst = [int(z) for z in np.argsort(-expected_ml, kind="stable")[:MOST_SLICES] if expected_ml[z] >= FEWEST_ML]
    return [{"axis": axis, "slice": z, "expected_error_ml": round(float(expected_ml[z]), 3)} for z in worst]
