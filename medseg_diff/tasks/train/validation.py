"""How well a denoiser denoises slices that it does not learn from: the loss that stands beside that of the training."""

from lightning_fabric import Fabric

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.diffusion import Denoiser
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.tasks.train.study import ValidationSlices
from medseg_diff.training.denoising import Pair, validation_loss


def loss_on_slices(
    denoiser: Denoiser,
    recipe: SegmentationRecipe | AnomalyRecipe,
    slices: ValidationSlices,
    pair: Pair,
    fabric: Fabric,
    *,
    times: tuple[int, int],
) -> dict[str, float]:
    """`val_loss`: the simple loss at times from the first to the second of `times`, with the same noise every time."""
    size, mask = recipe.training.passes_batch, slices.mask.float() * 2 - 1
    parts = zip(slices.image.split(size), mask.split(size), strict=True)
    batches, seed = (Batch(*part) for part in parts), recipe.training.seed
    return {"val_loss": validation_loss(denoiser, pair, batches, fabric, seed=seed, noise=recipe.noise, times=times)}
