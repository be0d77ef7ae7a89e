"""Learning to compress: what the loss adds up, whose turn it is, and that images come back better."""

import pytest
import torch
from torch import nn

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.device import make_fabric
from medseg_diff.networks.autoencoders import Coded, KLSettings, VQSettings
from medseg_diff.training.compression import (
    Compression,
    CompressionSettings,
    compression_error,
    decoded,
    latents_of,
    perceptual_distance,
)
from medseg_diff.training.fit import FitSettings, fit


class Halving(nn.Module):
    """An autoencoder that gives back half of the image, at a price of 3."""

    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, image):
        return Coded(self.share * image, 3 * torch.ones(()))


class Verdict(nn.Module):
    """A discriminator that says the mean, as MONAI's says all its layers, the verdict last."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, image):
        return [image, self.gain * image.mean().view(1, 1)]


def test_the_loss_is_the_weighted_sum_of_what_is_logged():
    image = torch.full((2, 1, 4, 4), 2.0)
    settings = CompressionSettings(price=0.1, perceptual=2.0, adversarial=0.5)
    objective = Compression(Halving(), settings, features=lambda x: [torch.cat([x, 1 - x], 1)], discriminator=Verdict())
    first, second = objective.turns(Batch(image), 0)
    assert [first.model, second.model] == ["autoencoder", "discriminator"]
    numbers = {name: float(value) for name, value in first.numbers.items()}
    assert numbers["l1"] == pytest.approx(1.0) and numbers["price"] == pytest.approx(3.0)
    assert numbers["adversarial"] == pytest.approx(0.0)  # the mean is 1, which is what a scan is
    ours, theirs = torch.tensor([1.0, 0.0]), torch.tensor([2.0, -1.0]) / 5**0.5
    assert numbers["perceptual"] == pytest.approx(float((ours - theirs).square().sum()), abs=1e-6)
    total = 1.0 + 0.1 * 3 + 2 * numbers["perceptual"]
    assert first.loss.item() == pytest.approx(total, abs=1e-6)
    assert second.loss.item() == pytest.approx(0.5 * ((2 - 1) ** 2 + 1.0))  # least squares


def test_the_discriminator_waits_for_its_update():
    settings = CompressionSettings(adversarial=0.5, adversarial_from=2)
    objective = Compression(Halving(), settings, discriminator=Verdict(), accumulate=2)
    turns = [[turn.model for turn in objective.turns(Batch(torch.ones(1, 1, 2, 2)), step)] for step in (3, 4)]
    assert turns == [["autoencoder"], ["autoencoder", "discriminator"]]


def test_an_adversarial_turn_moves_its_own_model_alone():
    autoencoder, judge = Halving(), Verdict()
    objective = Compression(autoencoder, CompressionSettings(adversarial=1.0), discriminator=judge)
    fabric = make_fabric(torch.device("cpu"), "fp32")
    before = judge.gain.item(), autoencoder.share.item()
    turns = objective.turns(Batch(torch.ones(2, 1, 2, 2)), 0)
    fabric.backward(next(turns).loss, inputs=list(autoencoder.parameters()))
    assert autoencoder.share.grad is not None and judge.gain.grad is None
    next(turns).loss.backward()
    assert judge.gain.grad is not None and (judge.gain.item(), autoencoder.share.item()) == before


def test_equal_images_are_no_distance_apart_and_brightness_alone_is_none():
    image = torch.rand(2, 3, 4, 4)

    def features(x):
        return [x, x[..., ::2]]

    assert float(perceptual_distance(features, image, image)) == 0
    assert float(perceptual_distance(features, image, 2 * image)) == pytest.approx(0, abs=1e-6)
    assert float(perceptual_distance(features, image, image.flip(1))) > 0.01


STEPS = 80


def balls(count, seed):
    """Images [N, 1, 16, 16] of a bright ball somewhere, -1 around it."""
    generator = torch.Generator().manual_seed(seed)
    middle = 4 + 8 * torch.rand(count, 2, 1, 1, generator=generator)
    x, y = torch.arange(16.0).view(1, 16, 1), torch.arange(16.0).view(1, 1, 16)
    return torch.where((x - middle[:, 0]).square() + (y - middle[:, 1]).square() < 36, 1.0, -1.0)[:, None]


@pytest.mark.parametrize(
    ("settings", "psnr"),
    [(KLSettings(widths=(16, 16), latent=4, groups=4), 12), (VQSettings(widths=(16,), latent=8, codes=32, stem=2), 8)],
    ids=["kl", "vq"],
)
def test_images_come_back_better_than_before(settings, psnr):
    torch.manual_seed(0)
    network = settings.build(dims=2, channels=1)
    objective = Compression(network, CompressionSettings(price=1e-3 if settings.kind == "kl" else 0.25))
    batches = [Batch(balls(16, seed)) for seed in range(STEPS)]
    training = FitSettings(steps=STEPS, batch=16, learning_rate=5e-3, ema=0.9)
    *_, last = fit(objective, batches, training, make_fabric(torch.device("cpu"), "fp32"))
    held = balls(8, 1000)
    error = compression_error(decoded(last.averages["autoencoder"], held), held)
    assert error["val_psnr"] > psnr and error["val_l1"] < 0.6  # the mean image: 6 dB, and 1
    raw = latents_of(last.averages["autoencoder"], iter(balls(4, 0).split(1)))
    assert raw.shape == (4, settings.latent, *settings.grid((16, 16)))
