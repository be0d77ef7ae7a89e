"""What a denoising step draws, and that it teaches."""

import pytest
import torch
from lightning_fabric import Fabric

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.data.datasets.labelled import UNKNOWN
from medseg_diff.diffusion import Denoiser, NoiseSchedule
from medseg_diff.diffusion.hiding import Patches
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.spaces import ImageSpace
from medseg_diff.training.denoising import (
    Denoising,
    HiddenTissue,
    ImageAndLabel,
    MaskAndImage,
    draw_times_and_noise,
)
from medseg_diff.training.fit import FitSettings, fit

SCHEDULE = NoiseSchedule(kind="cosine", length=1000, input_scale=0.3)
UNET = UNetSettings(width=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, time_embedding="adaptive")


def objective(*, target="logits", learned_variance=False, seed=0, rank=0, **network):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = UNET.but(**network).build(dims=2, channels=1, outputs=1 + learned_variance, image_channels=1)
    denoiser = Denoiser(built, SCHEDULE, target=target, learned_variance=learned_variance)
    return Denoising(denoiser, MaskAndImage(), seed=seed, rank=rank)


def batch_of(step, size=16):
    """Squares that are bright in the image: the mask can be read off it."""
    generator = torch.Generator().manual_seed(step)
    corner = torch.randint(0, 9, (size, 2), generator=generator)
    mask = torch.full((size, 1, 12, 12), -1.0)
    for row, (x, y) in zip(mask, corner.tolist(), strict=True):
        row[:, x : x + 4, y : y + 4] = 1
    image = 0.5 * mask + 0.2 * torch.randn(mask.shape, generator=generator)
    return Batch(image, mask, label=torch.arange(size) % 2)


def trained(steps=60, **options):
    settings = FitSettings(steps=steps, batch=16, learning_rate=3e-3, warm_up_steps=5, ema=0.9, precision="fp32")
    what = objective(**options)
    losses = [
        progress.read()["loss"]
        for progress in fit(what, map(batch_of, range(steps)), settings, Fabric(accelerator="cpu", devices=1))
    ]
    return losses, {name: value.clone() for name, value in what.denoiser.state_dict().items()}


def test_times_cover_one_to_the_end_evenly():
    def draw(clean, step):
        return draw_times_and_noise(clean, step, deepest=1000)

    for step in range(20):
        t, noise = draw(torch.zeros(50, 1, 4, 4), step)
        assert t.shape == (50,) and noise.shape == (50, 1, 4, 4)
        assert t.min() >= 1 and t.max() <= 1000
        assert ((t - 1) // 20).unique().numel() == 50  # one in each fiftieth
    times = torch.cat([draw(torch.zeros(50, 1, 1, 1), step)[0] for step in range(200)])
    assert abs(times.float().mean() - 500.5) < 2 and times.min() <= 3 and times.max() >= 998
    assert draw(torch.zeros(50, 1, 1, 1), 0)[0].diff().sign().unique().numel() > 1  # not in the batch's order


def test_the_noise_is_standard_normal_and_new_with_every_seed():
    clean = torch.zeros(10, 1, 100, 100)
    (_, first), (_, second) = (draw_times_and_noise(clean, seed, deepest=1000) for seed in (1, 2))
    assert float(first.mean()) == pytest.approx(0, abs=0.01) and float(first.std()) == pytest.approx(1, abs=0.01)
    assert float(first.pow(4).mean()) == pytest.approx(3, abs=0.1)
    assert float((first * second).mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("kind", ["mask", "image"])
def test_draws_depend_on_seed_rank_and_step_alone(kind):
    def drawn(step=5, **options):
        what = objective(**options) if kind == "mask" else image_objective(**options)
        listening = Listening()
        what.adopt("denoiser", listening)
        list(what.turns(batch_of(0), step))
        ((x_t, t, _),) = listening.shown
        return x_t, t

    first = drawn()
    torch.rand(7)  # the global generator has no say
    assert all(map(torch.equal, first, drawn()))
    for other in (drawn(seed=1), drawn(rank=1), drawn(step=6)):
        assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


def test_it_learns_and_the_same_seed_gives_the_same_weights_to_the_last_byte():
    losses, weights = trained()
    assert losses[0] == pytest.approx(0.6931, abs=0.02)  # untrained: log 2
    assert sum(losses[-10:]) / 10 < 0.35
    again, same = trained()
    assert again == losses
    assert all(torch.equal(value, same[name]) for name, value in weights.items())
    assert trained(steps=2, seed=1)[0] != losses[:2]


def test_dropout_follows_the_seed_too():
    first = trained(steps=3, dropout=0.5)
    torch.rand(3)
    again = trained(steps=3, dropout=0.5)
    assert first[0] == again[0] and all(torch.equal(value, again[1][name]) for name, value in first[1].items())


@pytest.mark.parametrize("target", ["noise", "velocity", "clean", "logits"])
def test_every_target_has_a_finite_gradient_with_learned_variance(target):
    what = objective(target=target, learned_variance=True)
    (turn,) = what.turns(batch_of(0), 0)
    assert set(turn.numbers) == {"loss_simple", "loss_vlb"} and turn.model == "denoiser"
    turn.loss.backward()
    gradients = [p.grad for name, p in what.denoiser.named_parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def image_objective(*, classes=0, scale=1.0, dropout=None, seed=0, rank=0, deepest=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = UNET.but(classes=classes).build(dims=2, channels=1, outputs=1)
    pair = ImageAndLabel(ImageSpace(scale=scale), dropout, seed, rank)
    return Denoising(Denoiser(built, SCHEDULE, target="velocity"), pair, seed=seed, rank=rank, deepest=deepest)


class Listening(torch.nn.Module):
    """Keeps what the denoiser's network would be shown, and says nothing."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, x_t, t, condition):
        self.shown.append((x_t, t, condition))
        return torch.zeros_like(x_t)


def test_an_image_denoiser_is_shown_the_scaled_image_at_times_up_to_the_deepest():
    what, listening = image_objective(scale=0.5, deepest=60), Listening()
    what.adopt("denoiser", listening)
    list(what.turns(batch_of(0), 0))
    ((x_t, t, condition),) = listening.shown
    assert condition.label is None and t.min() >= 1 and 50 < t.max() <= 60
    noise = (x_t - SCHEDULE.level(t, like=x_t).alpha * 0.5 * batch_of(0).image) / SCHEDULE.level(t, like=x_t).sigma
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_network_that_knows_the_scaled_image_has_nothing_to_learn(scale):
    """Its velocity is (alpha x_t - x_0) / sigma; an image of another scale would be off by that over sigma."""
    what, batch = image_objective(scale=scale), batch_of(0)

    class Knowing(torch.nn.Module):
        def forward(self, x_t, t, condition):
            alpha, sigma = SCHEDULE.level(t, like=x_t)
            return (alpha * x_t - scale * batch.image) / sigma

    what.adopt("denoiser", Knowing())
    (turn,) = what.turns(batch, 0)
    assert float(turn.loss) < 1e-6


def test_labels_are_told_but_for_a_share_and_those_that_are_not_known():
    label = torch.tensor([0, 1, UNKNOWN, 0]).repeat_interleave(100)
    batch = Batch(torch.zeros(400, 1, 4, 4), label=label)
    pair = ImageAndLabel(dropout=0.25)
    condition = pair(batch, 7).condition
    assert condition.label[:100].eq(0).all() and condition.label[100:200].eq(1).all()
    assert not condition.keep[200:300].any()
    assert 0.65 < torch.cat([condition.keep[:200], condition.keep[300:]]).float().mean() < 0.85
    assert torch.equal(pair(batch, 7)[1].keep, condition.keep)
    for other in (
        pair(batch, 8),
        ImageAndLabel(dropout=0.25, seed=1)(batch, 7),
        ImageAndLabel(dropout=0.25, rank=1)(batch, 7),
    ):
        assert not torch.equal(other[1].keep, condition.keep)


def test_an_image_denoiser_learns_and_so_does_its_blank():
    what = image_objective(classes=2, dropout=0.2)
    blank = what.denoiser.network.embed_known.label.weight[2].detach().clone()
    settings = FitSettings(steps=30, batch=16, learning_rate=3e-3, warm_up_steps=5, ema=0.9, precision="fp32")
    settings = settings.but(weight_decay=0.0)  # which would move what nothing is learned from
    fabric = Fabric(accelerator="cpu", devices=1)
    losses = [progress.read()["loss"] for progress in fit(what, map(batch_of, range(30)), settings, fabric)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not torch.equal(what.denoiser.network.embed_known.label.weight[2], blank)


def tissue_of(seed=0, *, lesion=True):
    """A brain of 1s in a frame of background, with 0.5 where the lesion is."""
    image = torch.full((16, 2, 24, 24), -1.0)
    image[..., 2:-2, 2:-2] = 1.0
    mask = torch.full((16, 1, 24, 24), -1.0)
    if lesion:
        mask[..., 8:14, 8:14] = 1
        image[..., 8:14, 8:14] = 0.5
    return Batch(image, mask)


def test_of_a_hidden_part_of_the_brain_the_healthy_voxels_teach():
    batch = tissue_of()
    clean, condition, weight = HiddenTissue(Patches(3.0), space=ImageSpace(scale=0.5))(batch, 3)
    hidden, brain, lesion = condition.image[:, 2:] > 0, batch.image[:, :1] > -1, batch.mask > 0
    assert torch.equal(clean, 0.5 * batch.image)
    assert torch.equal(condition.image[:, :2], torch.where(hidden, 0, clean)) and not (hidden & ~brain).any()
    assert torch.equal(weight > 0, hidden & ~lesion)
    covered = (hidden | ~lesion).flatten(1).all(1)  # the lesion and some of what surrounds it, in about half of them
    assert 3 <= int(covered.sum()) <= 13
    shares = (hidden & ~lesion).flatten(1).sum(1) / (brain & ~lesion).flatten(1).sum(1)
    assert shares.min() > 0.05 and shares.max() < 0.75 and shares.std() > 0.05


def test_what_is_hidden_belongs_to_seed_step_and_rank():
    hidden = HiddenTissue(Patches(3.0))(tissue_of(), 7).condition.image
    assert torch.equal(hidden, HiddenTissue(Patches(3.0))(tissue_of(), 7).condition.image)
    for other, step in (({}, 8), ({"seed": 1}, 7), ({"rank": 1}, 7)):
        assert not torch.equal(hidden, HiddenTissue(Patches(3.0), **other)(tissue_of(), step).condition.image)


def test_an_image_without_a_lesion_or_a_mask_is_healthy():
    plain = HiddenTissue(Patches(3.0))(tissue_of(lesion=False), 1)
    assert torch.equal(plain.weight, plain.condition.image[:, 2:])
    unmasked = HiddenTissue(Patches(3.0))(Batch(tissue_of(lesion=False).image), 1)
    assert torch.equal(unmasked.weight, plain.weight)


def test_times_may_begin_late():
    clean = torch.zeros(64, 1, 2, 2)
    t, _ = draw_times_and_noise(clean, 0, earliest=990, deepest=1000)
    assert int(t.min()) == 990 and int(t.max()) == 1000
    assert draw_times_and_noise(clean, 0, earliest=1000, deepest=1000)[0].unique().tolist() == [1000]
