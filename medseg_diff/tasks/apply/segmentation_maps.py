"""What an ensemble says of a case, brought onto the case's own grid and written: maps, masks, and words for case.json.

A region never exceeds one that holds it, in any file: members are kept inside when they are drawn, the maps once more
after resampling, and each mask is cut to the outer ones after its small components are gone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg_diff.data import geometry
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.transforms import Prepared, restore
from medseg_diff.methods.components import Removed, find_mask
from medseg_diff.methods.fusion import staple, vote
from medseg_diff.methods.regions import hierarchy_of, kept_inside
from medseg_diff.methods.sampled_segmentation import Ensemble, uncertainty_maps
from medseg_diff.metrics.tuning import tempered
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.tasks.apply.findings import slices_to_review, volume_interval
from medseg_diff.tasks.apply.segmenter import Segmenter

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]
Masks = dict[str, npt.NDArray[np.bool_]]


def suffix_of(recipe: SegmentationRecipe, region: str) -> str:
    """What a region's files are called beyond their kind."""
    return "" if len(recipe.regions) == 1 else f"_{region}"


def brought_back(prepared: Prepared, recipe: SegmentationRecipe, probability: "Tensor") -> Floats:
    """Values in [0, 1] [N, R, *S] of the view → [R, X, Y, Z] on the case's own grid, no region above an outer one."""
    import torch

    native = np.clip(restore(prepared, recipe.view.join(probability.float().cpu())), 0, 1)
    return kept_inside(torch.from_numpy(native), hierarchy_of(recipe.regions), dim=0).numpy()


def write_maps(ensemble: Ensemble, prepared: Prepared, segmenter: Segmenter, folder: Path) -> dict[str, Any]:
    """Write every map and mask; returns what case.json says of them.

    Mean and second moment are brought back and the other maps follow from them there, so that spread + ambiguity =
    uncertainty = m (1 - m) holds on the grid that is written.
    """
    import torch

    recipe, affine = segmenter.recipe, prepared.native_affine
    voxel_ml = geometry.voxel_ml(affine)
    means = brought_back(prepared, recipe, ensemble.mean)
    squares = np.clip(restore(prepared, recipe.view.join(ensemble.second_moment.cpu())), 0, 1)
    masks, removed = _masks(ensemble, means, prepared, segmenter)
    report: dict[str, Any] = {"volume_ml": {}, "agreement": {}, "removed": {}, "slices_to_review": {}}
    for number, (region, agreement) in enumerate(zip(recipe.regions, ensemble.agreement(), strict=True)):
        maps = uncertainty_maps(torch.from_numpy(means[number]), torch.from_numpy(squares[number]))
        written = {"probability": means[number], **{kind: values.numpy() for kind, values in maps.items()}}
        for kind, values in written.items():
            write_volume(folder / f"{kind}{suffix_of(recipe, region)}.nii.gz", values, affine)
        counts = ensemble.voxels[:, number].tolist()
        report["volume_ml"][region] = volume_interval(counts, prepared.voxel_ml) | {
            "mask": round(float(masks[region].sum()) * voxel_ml, 3)
        }
        report["agreement"][region] = round(agreement, 4)
        report["removed"][region] = {
            "components": removed[region].components,
            "volume_ml": round(removed[region].volume_ml, 3),
        }
        report["slices_to_review"][region] = slices_to_review(written["uncertainty"], affine, voxel_ml)
    _write_masks(masks, recipe, affine, folder)
    _write_calibrated(means, segmenter, affine, folder)
    return report


def _masks(
    ensemble: Ensemble, means: Floats, prepared: Prepared, segmenter: Segmenter
) -> tuple[Masks, dict[str, Removed]]:
    """Each region's mask on the case's own grid, inside the outer ones, and what was left out of it."""
    recipe, hierarchy = segmenter.recipe, hierarchy_of(segmenter.recipe.regions)
    fused = means if segmenter.findings.fusion == "mean" else _fused(ensemble, prepared, segmenter)
    voxel_ml = geometry.voxel_ml(prepared.native_affine)
    found, removed = [], {}
    for region, values in zip(recipe.regions, fused, strict=True):
        mask, removed[region] = find_mask(values, segmenter.findings, voxel_ml, threshold=segmenter.thresholds[region])
        found.append(mask)
    inside = [
        np.logical_and.reduce([mask, *(found[place] for place in outer)])
        for mask, outer in zip(found, hierarchy, strict=True)
    ]
    return dict(zip(recipe.regions, inside, strict=True)), removed


def _fused(ensemble: Ensemble, prepared: Prepared, segmenter: Segmenter) -> Floats:
    """What is cut at one half in the mean's stead: the share of the votes, or STAPLE's probability."""
    import torch

    if segmenter.findings.fusion == "vote":
        return brought_back(prepared, segmenter.recipe, vote(ensemble.votes, ensemble.members))
    assert ensemble.masks is not None, "STAPLE needs an ensemble that keeps its masks"
    truths = [staple(ensemble.masks[:, :, number]) for number in range(ensemble.masks.shape[2])]
    return brought_back(prepared, segmenter.recipe, torch.stack(truths, dim=1))


def _write_masks(masks: Masks, recipe: SegmentationRecipe, affine: np.ndarray, folder: Path) -> None:
    """One label map that counts in how many of the nested regions a voxel lies; where they do not nest, a mask for each."""
    if recipe.nested or len(masks) == 1:
        depth = np.stack(list(masks.values())).sum(axis=0, dtype=np.uint8)
        write_volume(folder / "mask.nii.gz", depth, affine)
        return
    for region, mask in masks.items():
        write_volume(folder / f"mask_{region}.nii.gz", mask.astype(np.uint8), affine)


def _write_calibrated(means: Floats, segmenter: Segmenter, affine: np.ndarray, folder: Path) -> None:
    """The mean at the run's temperatures, beside the plain mean, where that was asked for."""
    import torch

    temperatures: Mapping[str, float] = segmenter.temperatures
    if not temperatures:
        return
    recipe = segmenter.recipe
    values = np.stack(
        [tempered(mean, temperatures[region]) for region, mean in zip(recipe.regions, means, strict=True)]
    )
    kept = kept_inside(torch.from_numpy(values), hierarchy_of(recipe.regions), dim=0).numpy()
    for region, calibrated in zip(recipe.regions, kept, strict=True):
        write_volume(folder / f"calibrated{suffix_of(recipe, region)}.nii.gz", calibrated, affine)
