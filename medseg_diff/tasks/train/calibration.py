"""Threshold, temperature and screening, chosen at the end of a training on validation slices, in the run's calibration.json.

The best weights sample the slices as `segment` would. Where these come from patients that were trained on, as they must
with few patients, the numbers say little about a new one: they are kept, and nothing uses them unless told to.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from lightning_fabric import Fabric
from torch import Tensor

from medseg_diff.console import log
from medseg_diff.diffusion import Denoiser
from medseg_diff.methods.plan import Plan
from medseg_diff.methods.sampled_segmentation import Ensemble, sample_masks
from medseg_diff.metrics import calibration, tuning
from medseg_diff.recipes.calibration import RegionCalibration, SegmentationCalibration, write_calibration
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.trained import load_network
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.train.screening import calibrate_screening
from medseg_diff.tasks.train.study import Study, ValidationSlices


def calibrate(run: Run, recipe: SegmentationRecipe, study: Study, fabric: Fabric) -> SegmentationCalibration | None:
    """Choose both for every region with the run's best weights and write calibration.json, before the run is sealed.

    None, and no file, where `validation.calibration_slices` is 0.
    """
    run.calibration_file.unlink(missing_ok=True)
    if not recipe.validation.calibration_slices:
        return None
    slices = study.validation(recipe.validation.calibration_slices)
    denoiser = recipe.build_denoiser()
    load_network(denoiser.module(), run.weights("best"), fabric.device)
    screening = calibrate_screening(denoiser, recipe, study, fabric)
    plan = recipe.plan()
    if recipe.sampling.screen and screening:
        plan = replace(plan, screen=screening.threshold)
    mean = draw_ensemble(denoiser, recipe, slices, plan, fabric, purpose="calibration").mean.cpu()
    found = SegmentationCalibration(
        slices=len(slices),
        patients=len(set(slices.patients)),
        separate=study.separate,
        members=recipe.sampling.members,
        steps=recipe.sampling.steps,
        regions={
            region: calibrate_region(mean[:, number], slices.mask[:, number], slices.brain[:, 0], slices.patients)
            for number, region in enumerate(recipe.regions)
        },
        screening=screening,
    )
    write_calibration(run, found)
    tell(found)
    return found


def tell(found: SegmentationCalibration) -> None:
    """A line for each region."""
    for region, chosen in found.regions.items():
        log.info(
            "calibrated %s on %d slices of %d %s: threshold %.2f (best %.2f), temperature %.2f, ECE %.4f → %.4f",
            region,
            found.slices,
            found.patients,
            "other patients" if found.separate else "training patients, so by default unused",
            chosen.threshold,
            chosen.best_threshold,
            chosen.temperature,
            chosen.ece_before,
            chosen.ece_after,
        )


def calibrate_region(mean: Tensor, mask: Tensor, brain: Tensor, patients: tuple[str, ...]) -> RegionCalibration:
    """Threshold by patients, temperature over brain voxels: mean [N, *S] in [0, 1], mask and brain [N, *S] booleans."""
    tissue = [z for z in range(len(patients)) if brain[z].any()]  # a patch may lie outside
    groups = {patients[z]: [other for other in tissue if patients[other] == patients[z]] for z in tissue}
    return calibrate_patients(
        [mean[places][brain[places]].numpy() for places in groups.values()],
        [mask[places][brain[places]].numpy() for places in groups.values()],
    )


def calibrate_patients(probability: Sequence[npt.ArrayLike], reference: Sequence[npt.ArrayLike]) -> RegionCalibration:
    """Threshold by patients and temperature over all: of each patient probabilities in [0, 1] and booleans, [N]."""
    threshold = tuning.choose_threshold(probability, reference)
    voxels, truth = np.concatenate(probability), np.concatenate(reference)
    temperature = round(tuning.fit_temperature(voxels, truth), 4)
    after = tuning.tempered(voxels, temperature)
    return RegionCalibration(
        threshold=threshold.chosen,
        best_threshold=threshold.best,
        dice_at_half=round(threshold.dice_at_half, 6),
        dice_at_best=round(threshold.dice_at_best, 6),
        temperature=temperature,
        ece_before=round(calibration.ece(voxels, truth), 6),
        ece_after=round(calibration.ece(after, truth), 6),
        log_loss_before=round(tuning.log_loss(voxels, truth), 6),
        log_loss_after=round(tuning.log_loss(after, truth), 6),
    )


def draw_ensemble(
    denoiser: Denoiser,
    recipe: SegmentationRecipe,
    slices: ValidationSlices,
    plan: Plan,
    fabric: Fabric,
    *,
    purpose: str,
) -> Ensemble:
    """The slices sampled as `segment` would; the noise is that of the purpose."""
    images, regions = slices.image.to(fabric.device), len(recipe.regions)
    ensemble = Ensemble(len(slices), regions, images.shape[2:], plan.members, fabric.device)

    def own_seed(z: int, member: int) -> int:
        return seed_of(recipe.training.seed, purpose, z, member)

    with fabric.autocast():
        for sample, probability in sample_masks(
            recipe.for_masks(denoiser), images, range(len(slices)), plan, regions=regions, seed_of=own_seed
        ):
            ensemble.add(sample, probability)
    return ensemble
