"""Threshold and temperature, chosen at the end of a training on validation slices and kept in the run's calibration.json.

The best weights sample the slices as `segment` would. Where these come from patients that were trained on, as they must
with few patients, the numbers say little about a new one: they are kept, and nothing uses them unless told to.
"""

from typing import TYPE_CHECKING

from medseg_diff.console import log
from medseg_diff.errors import CheckpointError
from medseg_diff.files import read_json, write_json
from medseg_diff.metrics import calibration, tuning
from medseg_diff.recipes.segmentation import SegmentationRecipe, for_masks
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.settings import Settings, of_a_run, parse_settings
from medseg_diff.tasks.train.study import Study, ValidationSlices, validation_slices

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor


class RegionCalibration(Settings):
    """One region: `threshold` is one half unless `best_threshold` is clearly better; ECE and log loss (nats) over brain
    voxels, of the plain mean and at the temperature, on the slices that it was fitted on."""

    threshold: float
    best_threshold: float
    dice_at_half: float
    dice_at_best: float
    temperature: float
    ece_before: float
    ece_after: float
    log_loss_before: float
    log_loss_after: float


class Calibration(Settings):
    """What was chosen, on how many slices of how many patients; `separate`: none of them was trained on."""

    slices: int
    patients: int
    separate: bool
    members: int
    steps: int
    regions: dict[str, RegionCalibration]

    def threshold(self, region: str) -> float:
        """What the mean of a region is cut at unless the recipe says otherwise: one half where patients are not separate."""
        return self.regions[region].threshold if self.separate else 0.5


def calibrate(run: Run, recipe: SegmentationRecipe, study: Study, fabric: "Fabric") -> Calibration | None:
    """Choose both for every region with the run's best weights and write calibration.json, before the run is sealed.

    None, and no file, where `validation.calibration_slices` is 0.
    """
    run.calibration_file.unlink(missing_ok=True)
    if not recipe.validation.calibration_slices:
        return None
    slices = validation_slices(study.held, recipe, recipe.validation.calibration_slices)
    mean = _ensemble_mean(run, recipe, slices, fabric)
    found = Calibration(
        slices=len(slices),
        patients=len(set(slices.patients)),
        separate=study.separate,
        members=recipe.sampling.members,
        steps=recipe.sampling.steps,
        regions={
            region: calibrate_region(mean[:, number], slices.mask[:, number], slices.brain[:, 0], slices.patients)
            for number, region in enumerate(recipe.regions)
        },
    )
    write_json(run.calibration_file, found.model_dump(mode="json"))
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
    return found


def calibrate_region(mean: "Tensor", mask: "Tensor", brain: "Tensor", patients: tuple[str, ...]) -> RegionCalibration:
    """Threshold by patients, temperature over brain voxels: mean [N, *S] in [0, 1], mask and brain [N, *S] booleans."""
    tissue = [z for z in range(len(patients)) if brain[z].any()]  # a patch may lie outside
    groups = {patients[z]: [other for other in tissue if patients[other] == patients[z]] for z in tissue}
    threshold = tuning.choose_threshold(
        [mean[places][brain[places]].numpy() for places in groups.values()],
        [mask[places][brain[places]].numpy() for places in groups.values()],
    )
    probability, reference = mean[brain].numpy(), mask[brain].numpy()
    temperature = round(tuning.fit_temperature(probability, reference), 4)
    after = tuning.tempered(probability, temperature)
    return RegionCalibration(
        threshold=threshold.chosen,
        best_threshold=threshold.best,
        dice_at_half=round(threshold.dice_at_half, 6),
        dice_at_best=round(threshold.dice_at_best, 6),
        temperature=temperature,
        ece_before=round(calibration.ece(probability, reference), 6),
        ece_after=round(calibration.ece(after, reference), 6),
        log_loss_before=round(tuning.log_loss(probability, reference), 6),
        log_loss_after=round(tuning.log_loss(after, reference), 6),
    )


def read_calibration(run: Run) -> Calibration | None:
    """What the run's training chose; None for a run without. Raises: CheckpointError where the file was changed."""
    if not run.calibration_file.is_file():
        return None
    run.verify(run.calibration_file)
    try:
        data = read_json(run.calibration_file)
    except ValueError:
        raise CheckpointError("is no JSON", fix="train again", file=f"{run.name}/calibration.json") from None
    with of_a_run():
        return parse_settings(Calibration, data, source=f"{run.name}/calibration.json")


def _ensemble_mean(run: Run, recipe: SegmentationRecipe, slices: ValidationSlices, fabric: "Fabric") -> "Tensor":
    """Probability [N, R, *S] of the slices, as `segment` would draw it."""
    import torch

    from medseg_diff.methods.sampled_segmentation import Ensemble, sample_masks
    from medseg_diff.training.fit import channels_last
    from medseg_diff.training.weights import load_weights

    denoiser, plan = recipe.build_denoiser(), recipe.plan()
    assert isinstance(denoiser.network, torch.nn.Module)
    load_weights(denoiser.network, run.weights("best"))
    channels_last(denoiser.network).to(fabric.device).eval()
    images, regions = slices.image.to(fabric.device), len(recipe.regions)
    ensemble = Ensemble(len(slices), regions, images.shape[2:], plan.members, fabric.device)

    def own_seed(z: int, member: int) -> int:
        return seed_of(recipe.training.seed, "calibration", z, member)

    with torch.no_grad(), fabric.autocast():
        for place, probability in sample_masks(
            for_masks(denoiser), images, range(len(slices)), plan, regions=regions, seed_of=own_seed
        ):
            ensemble.add(place, probability)
    return ensemble.mean.cpu()
