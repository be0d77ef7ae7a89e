"""How well a denoiser denoises what it does not learn from: the loss that stands beside that of the training."""

import torch
from lightning_fabric import Fabric

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.diffusion import Denoiser
from medseg_diff.diffusion.losses import denoising_loss
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.train.study import ValidationSlices
from medseg_diff.training.denoising import Pair, draw_times_and_noise


def validation_loss(
    denoiser: Denoiser,
    recipe: SegmentationRecipe | AnomalyRecipe,
    slices: ValidationSlices,
    pair: Pair,
    fabric: Fabric,
    *,
    times: tuple[int, int],
) -> dict[str, float]:
    """`val_loss`: the simple loss at times from the first to the second of `times`, with the same noise every time."""
    image, mask = slices.image, slices.mask.float() * 2 - 1
    batch, losses = recipe.training.passes_batch, []
    with torch.no_grad(), fabric.autocast():
        for start in range(0, len(image), batch):
            part = Batch(image[start : start + batch], mask[start : start + batch]).to(fabric.device)
            clean, condition, weight = pair(part, start)
            own = seed_of(recipe.training.seed, "validation", start)
            t, noise = draw_times_and_noise(clean, own, earliest=times[0], deepest=times[1], kind=recipe.noise)
            losses.append(denoising_loss(denoiser, clean, t, noise, condition, weight)["simple"].float())
    return {"val_loss": float(torch.cat(losses).mean())}
