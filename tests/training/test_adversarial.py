"""Learning from verdicts: whose turn it is, what each loses, and that what is drawn comes to look like what was shown."""

from math import log

import pytest
import torch
from torch import nn

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.device import make_fabric
from medseg_diff.diffusion import DDIM, Condition, NoiseSchedule, SeededNoise, walk
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.networks.generators import GeneratorSettings, Judged, latent_in
from medseg_diff.training.adversarial import Adversarial, AdversarialSettings, LikenessSettings
from medseg_diff.training.fit import FitSettings, fit

SCHEDULE = NoiseSchedule(length=1)
LATENT = 3
CROSS = AdversarialSettings(verdict="cross_entropy", encoder=LikenessSettings(reconstruction=2.0, price=0.5))


class Level(nn.Module):
    """A generator of images that are the first number of their latent everywhere."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, x_t, t, condition):
        return (self.gain * latent_in(x_t, LATENT)[:, :1, None, None]).expand_as(x_t)


class Verdict(nn.Module):
    """Says the mean, for a map that is twice the image."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, image):
        return Judged(self.gain * image.flatten(1).mean(1), 2 * image)


class Encoder(nn.Module):
    """Latents of mean 0.5, whose deviation is next to nothing."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.5))

    def forward(self, image):
        mean = self.mean.expand(len(image), LATENT)
        return torch.stack([mean, torch.full_like(mean, -40.0)], dim=1)


def objective(settings, seed=0):
    denoiser = DenoiserSettings(target="clean").around(Level(), SCHEDULE)
    encoder = Encoder() if settings.encoder else None
    return Adversarial(denoiser, Verdict(), settings, latent=LATENT, seed=seed, encoder=encoder)


def test_least_squares_compare_verdicts_with_one_and_with_zero():
    image = torch.full((2, 1, 4, 4), 3.0)
    learned = objective(AdversarialSettings())
    drawn = []
    learned.discriminator.register_forward_pre_hook(lambda module, given: drawn.append(given[0].detach()))
    first, second = learned.turns(Batch(image), 0)
    assert [first.model, second.model] == ["denoiser", "discriminator"]
    level = drawn[0][:, 0, 0, 0]  # what was drawn of each latent; no two alike
    assert level[0] != level[1] and torch.equal(drawn[2], drawn[0]) and torch.equal(drawn[1], image)
    assert first.loss.item() == pytest.approx(float(0.5 * (level - 1).square().mean()), abs=1e-6)
    assert second.loss.item() == pytest.approx(float(0.25 * (4 + level.square().mean())), abs=1e-6)


def test_an_encoder_pays_for_its_latents_and_what_they_become_is_compared_by_the_features():
    image = torch.full((2, 1, 4, 4), 1.0)
    first, second, third = objective(CROSS).turns(Batch(image), 0)
    assert [first.model, second.model, third.model] == ["encoder", "denoiser", "discriminator"]
    unlike = 0.5 * (2 * (1.0 - 0.5)) ** 2  # of maps that are twice the image
    divergence = LATENT * 0.5 * (0.25 + 40 - 1)
    assert first.numbers["unlike"].item() == pytest.approx(unlike, abs=1e-5)
    assert first.numbers["divergence"].item() == pytest.approx(divergence, rel=1e-5)
    assert first.loss.item() == pytest.approx(unlike + 0.5 * divergence / 16, rel=1e-5)
    deceived = second.numbers["deceived"].item()
    assert second.loss.item() == pytest.approx(deceived + 2 * unlike, rel=1e-5)
    of_the_scans = log(1 + torch.tensor(-1.0).exp().item())  # their verdicts are 1
    assert third.loss.item() > 0.5 * of_the_scans


@pytest.mark.parametrize("settings", [AdversarialSettings(), CROSS], ids=["GAN", "VAE-GAN"])
def test_what_is_drawn_hangs_on_seed_and_step_alone(settings):
    def losses(seed, step):
        return [turn.loss.item() for turn in objective(settings, seed).turns(Batch(torch.ones(2, 1, 4, 4)), step)]

    torch.manual_seed(1)
    first = losses(0, 5)
    torch.manual_seed(2)
    assert losses(0, 5) == first and losses(0, 6) != first and losses(1, 5) != first


@pytest.mark.parametrize("settings", [AdversarialSettings(), CROSS], ids=["GAN", "VAE-GAN"])
def test_every_turn_moves_its_own_model_alone(settings):
    learned = objective(settings)
    fabric = make_fabric(torch.device("cpu"), "fp32")
    for turn in learned.turns(Batch(torch.ones(2, 1, 4, 4)), 0):
        fabric.backward(turn.loss, inputs=list(learned.models[turn.model].parameters()))
        moved = {name for name, model in learned.models.items() if any(p.grad is not None for p in model.parameters())}
        assert moved == {turn.model}
        learned.models[turn.model].zero_grad()


STEPS = 100


def bars(count, seed):
    """Images [N, 1, 8, 8] that are bright on the left or on the right."""
    left = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    half = torch.where(torch.arange(8) < 4, 0.8, -0.8).expand(count, 1, 8, 8)
    return torch.where(left.view(-1, 1, 1, 1), half, half.flip(3))


@pytest.mark.parametrize("settings", [AdversarialSettings(), CROSS], ids=["GAN", "VAE-GAN"])
def test_what_is_drawn_comes_to_look_like_what_was_shown(settings):
    network = GeneratorSettings(latent=4, widths=(8, 16), groups=4, size=(8, 8))
    torch.manual_seed(0)
    denoiser = DenoiserSettings(target="clean").around(network.build(dims=2, channels=1, outputs=1), SCHEDULE)
    encoder = network.encoder(channels=1) if settings.encoder else None
    learned = Adversarial(denoiser, network.discriminator(channels=1), settings, latent=4, seed=0, encoder=encoder)
    batches = [Batch(bars(16, seed)) for seed in range(STEPS)]
    training = FitSettings(steps=STEPS, batch=16, learning_rate=5e-3, ema=0.9, warm_up_steps=10)
    *_, last = fit(learned, batches, training, make_fabric(torch.device("cpu"), "fp32"))
    drawing = DenoiserSettings(target="clean").around(last.averages["denoiser"].eval(), SCHEDULE)
    noise = SeededNoise(range(32))
    images = walk(drawing, DDIM(), noise(torch.empty(32, 1, 8, 8), 0), SCHEDULE.times(1), Condition(), noise)
    brighter_left = images[..., :4].mean(dim=(1, 2, 3)) - images[..., 4:].mean(dim=(1, 2, 3))
    assert brighter_left.abs().mean() > 0.6  # of what is shown 1.6, of an untrained generator next to nothing
    assert set(brighter_left.sign().tolist()) == {-1.0, 1.0}  # both kinds
