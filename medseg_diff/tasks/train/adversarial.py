"""What `train-synth` gives a generator to learn by, and what is said of it on the way."""

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medseg_diff.diffusion import Condition, Denoiser
from medseg_diff.metrics.likeness import diversity
from medseg_diff.networks.generators import noise_with
from medseg_diff.recipes.synthesis import SynthesisRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.spaces import Space
from medseg_diff.tasks.train.train import averaged
from medseg_diff.training.adversarial import Adversarial
from medseg_diff.training.fit import FitSettings, Progress
from medseg_diff.training.job import seeded


def adversarial(recipe: SynthesisRecipe, denoiser: Denoiser, *, rank: int) -> Adversarial:
    """The generator in `denoiser` beside an untrained discriminator and, where the recipe asks for one, an encoder."""
    network, settings, seed = recipe.generator, recipe.adversarial, recipe.training.seed
    assert network and settings
    discriminator, encoder = seeded(seed, recipe.build_discriminator), seeded(seed, recipe.build_encoder)
    return Adversarial(denoiser, discriminator, settings, latent=network.latent, seed=seed, rank=rank, encoder=encoder)


def rates(recipe: SynthesisRecipe) -> dict[str, FitSettings]:
    """The training of what learns at a rate of its own: a discriminator that is too sure says nothing of use."""
    settings, training = recipe.adversarial, recipe.training
    if not settings:
        return {}
    return {"discriminator": training.but(learning_rate=training.learning_rate * settings.discriminator_rate)}


def alike(progress: Progress, recipe: SynthesisRecipe, space: Space, fabric: Fabric, *, count: int) -> dict[str, float]:
    """How alike so many drawn images are, two at a time; 1 of a generator that makes the same one of all noise."""
    seeds = [seed_of(recipe.training.seed, "validation", number) for number in range(max(count, 2))]
    with fabric.autocast():
        images = recipe.drawing(space).images(averaged(progress, recipe), seeds, None, fabric.device)
    return {"val_ms_ssim_of_pairs": diversity(images, pairs=len(images), seed=recipe.training.seed)}


class EveryPass(nn.Module):
    """All the networks of a step, called about as often as it does, for an estimate of its time."""

    def __init__(self, recipe: SynthesisRecipe) -> None:
        super().__init__()
        self.generator = recipe.build_denoiser().module()
        self.discriminator, self.encoder = recipe.build_discriminator(), recipe.build_encoder()

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        noise = [x]
        if self.encoder is not None:
            coded = noise_with(self.encoder(x)[:, 0], x.shape[1:])
            noise += [coded, coded.detach()]
        drawn = [self.generator(each, t, condition) for each in noise]
        judged = [self.discriminator(image) for image in (x, *drawn, *(image.detach() for image in drawn))]
        return torch.stack([each.verdict.mean() for each in judged])
