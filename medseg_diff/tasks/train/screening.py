"""Which slices `segment --screen` may leave out, measured at the end of a training on validation slices."""

from lightning_fabric import Fabric

from medseg_diff.console import log
from medseg_diff.data.views import Patches
from medseg_diff.diffusion import Denoiser
from medseg_diff.evenly import evenly_spaced
from medseg_diff.methods.sampled_segmentation import look_once
from medseg_diff.metrics.screening import MISSED, choose_screening
from medseg_diff.recipes.calibration import ScreeningCalibration
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.train.study import Study, validation_slices

MORE = 8  # times as many slices as are sampled for the calibration: a look costs little, and a rare miss shows in many only


def calibrate_screening(
    denoiser: Denoiser, recipe: SegmentationRecipe, study: Study, fabric: Fabric
) -> ScreeningCalibration | None:
    """The threshold of looks below which no more than a hundredth of the lesions lies; None, and a word why, where nothing
    can be measured.
    """
    if isinstance(recipe.view, Patches):
        return None
    numbers = evenly_spaced(range(len(study.held)), MORE * recipe.validation.calibration_slices)
    plan, regions, patients = recipe.plan(), len(recipe.regions), set[str]()
    largest, lesion = list[float](), list[list[int]]()

    def own_seed(number: int, member: int) -> int:
        return seed_of(recipe.training.seed, "screening", numbers[number], member)

    for start in range(0, len(numbers), plan.network_batch):
        slices = validation_slices(study.held, numbers[start : start + plan.network_batch])
        with fabric.autocast():
            looks = look_once(
                recipe.for_masks(denoiser),
                slices.image.to(fabric.device),
                range(len(slices)),
                plan,
                regions=regions,
                seed_of=lambda z, member, start=start: own_seed(start + z, member),  # type: ignore[misc]
            )
        largest += looks.flatten(1).amax(1).tolist()
        lesion += slices.mask.flatten(2).sum(2).tolist()
        patients |= set(slices.patients)
    chosen = choose_screening(largest, lesion)
    if chosen is None:
        log.info("no lesion of every region in the validation slices: what `segment --screen` would miss is not known")
        return None
    found = ScreeningCalibration(
        threshold=chosen.threshold,
        missed=round(chosen.missed, 6),
        allowed=MISSED,
        left_out=round(chosen.left_out, 6),
        slices=len(numbers),
        patients=len(patients),
    )
    log.info("for `segment --screen`: %s", found.in_words())
    return found
