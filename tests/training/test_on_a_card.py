"""Training steps on a card that nobody has: it is never waited for, and what they measure lies on it."""

from itertools import repeat

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import SingleDeviceStrategy

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.diffusion.hiding import Box, Patches
from medseg_diff.diffusion.schedule import NoiseSchedule
from medseg_diff.networks.generators import GeneratorSettings
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.training.adversarial import Adversarial, AdversarialSettings, LikenessSettings
from medseg_diff.training.classification import NoisyClassification
from medseg_diff.training.denoising import Denoising, HiddenTissue, ImageAndLabel, ImageOnItself, MaskAndImage
from medseg_diff.training.fit import FitSettings, fit
from tests.no_sync import CLASSIFIER, NETWORKS, ONE_LEVEL, SCHEDULE, Card, put


def learning(name):
    """An objective, small."""
    unet = UNetSettings(**ONE_LEVEL)

    def denoising(pair, network=unet, *, shown=0, **settings):
        said = DenoiserSettings(**settings)
        made = network.build(dims=2, channels=2, outputs=2 * said.outputs, image_channels=shown)
        return Denoising(said.around(made, SCHEDULE), pair, seed=0)

    def adversarial(settings):
        network = GeneratorSettings(latent=3, widths=(8, 8), groups=4, size=(8, 6))
        made = DenoiserSettings(target="clean").around(network.build(dims=2, channels=2, outputs=2), ONE_STEP)
        encoder = network.encoder(channels=2) if settings.encoder else None
        return Adversarial(made, network.discriminator(channels=2), settings, latent=3, seed=0, encoder=encoder)

    return {
        "masks with a prior": lambda: denoising(
            MaskAndImage(), NETWORKS["with_prior"], shown=2, target="logits", dice=0.5
        ),
        "masks, learned variance": lambda: denoising(
            MaskAndImage(), NETWORKS["unet"], shown=2, target="noise", learned_variance=True
        ),
        "images and labels": lambda: denoising(
            ImageAndLabel(dropout=0.2), unet.but(classes=2, dropout=0.1), target="velocity"
        ),
        "images and their code": lambda: denoising(
            ImageOnItself(), NETWORKS["with_encoder"], shown=2, target="velocity"
        ),
        "hidden patches": lambda: denoising(
            HiddenTissue(Patches(4.0)), shown=3, target="clean", learned_deviation=True
        ),
        "a hidden box": lambda: denoising(HiddenTissue(Box(0.5)), shown=3, target="noise"),
        "a generator": lambda: adversarial(AdversarialSettings()),
        "a generator and an encoder": lambda: adversarial(AdversarialSettings(encoder=LikenessSettings())),
        "noisy classifier": lambda: NoisyClassification(CLASSIFIER.build(dims=2, channels=2), SCHEDULE, seed=0),
    }[name]()


ONE_STEP = NoiseSchedule(length=1)
LESSONS = (
    "masks with a prior", "masks, learned variance", "images and labels", "images and their code", "hidden patches",
    "a hidden box", "noisy classifier",
)  # fmt: skip
IN_TURNS = ("a generator", "a generator and an encoder")
BATCH = Batch(torch.zeros(4, 2, 8, 6), torch.ones(4, 2, 8, 6), torch.tensor([0, 1, 0, 1]))


class AnyPlace(CPUAccelerator):
    """An accelerator that sets nothing up."""

    def setup_device(self, device):
        pass


def bring_levels(card):
    """The table of levels is copied once in a training, when a time is first looked up."""
    for schedule in (SCHEDULE, ONE_STEP):
        schedule.level(torch.ones(1, dtype=torch.long, device=card.device))


@pytest.mark.parametrize("name", (*LESSONS, *IN_TURNS))
def test_a_training_step_never_waits(card, name):
    """Loss, optimiser, clipping and moving average, two updates; the batch comes from the host."""
    objective = learning(name)
    for model in objective.models.values():
        put(model, card.device)
    precision = MixedPrecision("bf16-mixed", card.device.type)
    fabric = Fabric(strategy=SingleDeviceStrategy(card.device, AnyPlace(), precision=precision))
    bring_levels(card)
    with card.watched():
        *_, progress = fit(objective, repeat(BATCH), FitSettings(steps=2, batch=4), fabric)
    assert {(each.device, each.dtype) for each in progress.numbers.values()} == {(card.device, torch.float32)}
    assert progress.skipped.device == card.device
    assert all(each.device == card.device for model in progress.averages.values() for each in model.parameters())


@pytest.mark.parametrize("name", LESSONS)
def test_gradients_of_a_training_step_never_wait(name):
    """The way back alone, by autograd itself."""
    with Card("meta") as card:
        objective, batch = learning(name), BATCH.to(card.device)
        for model in objective.models.values():
            put(model, card.device).train()
        bring_levels(card)
        with card.watched():
            (turn,) = objective.turns(batch, 1)
            turn.loss.backward()
        (model,) = objective.models.values()
        gradients = {name: each.grad for name, each in model.named_parameters() if "null" not in name}
        assert all(gradient is not None and gradient.device == card.device for gradient in gradients.values())
