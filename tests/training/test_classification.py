"""What a step of the classifier draws and teaches, and that its skill is measured as it should be."""

import pytest
import torch
from lightning_fabric import Fabric

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.networks.noisy_classifier import NoisyClassifierSettings
from medseg_diff.spaces import ImageSpace
from medseg_diff.training.classification import NoisyClassification, skill_by_time
from medseg_diff.training.fit import FitSettings, fit

SCHEDULE = NoiseSchedule(kind="linear")
SMALL = NoisyClassifierSettings(
    width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=None, groups=4, pooling="max_mean"
)


def objective(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SMALL.build(dims=2, channels=1)
    return NoisyClassification(network, SCHEDULE, seed=options.pop("seed", 0), **options)


def batch_of(step, size=16):
    """Every other image holds a bright square."""
    generator = torch.Generator().manual_seed(step)
    image = 0.2 * torch.randn(size, 1, 12, 12, generator=generator) - 0.5
    image[::2, :, 4:8, 4:8] += 1.5
    return Batch(image, label=(torch.arange(size) + 1) % 2)


class Listening(torch.nn.Module):
    """Keeps what the classifier would be shown; its logits call everything diseased."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.shown = []

    def forward(self, x_t, t, condition):
        self.shown.append((x_t.detach(), t))
        return self.weight * torch.tensor([[0.0, 10.0]]).repeat(len(x_t), 1)


def test_a_turn_shows_the_scaled_image_at_times_up_to_the_deepest():
    what, listening = objective(space=ImageSpace(scale=0.5), deepest=40), Listening()
    what.adopt("classifier", listening)
    batch = batch_of(0)
    (turn,) = what.turns(batch, 0)
    ((x_t, t),) = listening.shown
    assert t.min() >= 1 and t.max() <= 40 and t.max() > 30
    assert turn.model == "classifier" and turn.numbers["accuracy"] == 0.5
    assert float(turn.loss.detach()) == pytest.approx(5.0, abs=1e-3)  # half of the samples, each wrong by 10
    level = SCHEDULE.level(t, like=x_t)
    noise = (x_t - level.alpha * 0.5 * batch.image) / level.sigma
    assert abs(float(noise.std()) - 1) < 0.05 and abs(float(noise.mean())) < 0.05


def test_draws_depend_on_seed_rank_and_step_alone():
    def shown(step=3, **options):
        what, listening = objective(**options), Listening()
        what.adopt("classifier", listening)
        list(what.turns(batch_of(0), step))
        return listening.shown[0][0]

    first = shown()
    torch.rand(5)
    assert torch.equal(shown(), first)
    assert not any(torch.equal(other, first) for other in (shown(seed=1), shown(rank=1), shown(step=4)))


def test_it_learns_and_its_skill_falls_with_the_noise():
    what = objective()
    settings = FitSettings(steps=60, batch=16, learning_rate=5e-3, warm_up_steps=5, ema=0.5, precision="fp32")
    for progress in fit(what, map(batch_of, range(60)), settings, Fabric(accelerator="cpu", devices=1)):
        average = progress.averages["classifier"]
    test = batch_of(1000, size=64)
    labels = torch.arange(64) % 2 == 0
    skill = skill_by_time(average.eval(), SCHEDULE, test.image, labels.long(), [1, 1000], seed=0, batch=24)
    assert [each.t for each in skill] == [1, 1000]
    assert skill[0].auroc > 0.95 and skill[0].balanced_accuracy > 0.9 and skill[0].cross_entropy < 0.5
    assert abs(skill[1].auroc - 0.5) < 0.2  # nothing is left of the image


def test_skill_is_that_of_its_definition():
    """Scores -1 … 6, the labels 0 0 1 0 1 1 and, among the diseased, one tie with a healthy one."""
    scores = torch.tensor([-1.0, 2.0, 2.0, -3.0, 6.0, -2.0])
    labels = torch.tensor([0, 0, 1, 0, 1, 1])

    def classifier(x_t, t, condition):
        return torch.stack([torch.zeros(len(x_t)), x_t.flatten(1)[:, 0].round()], dim=1)

    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    image = scores.view(-1, 1, 1, 1)
    (skill,) = skill_by_time(classifier, SCHEDULE, image, labels, [1], seed=0, batch=4)
    assert skill.auroc == pytest.approx(roc_auc_score(labels, scores))
    assert skill.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, scores > 0))
    p = torch.sigmoid(torch.where(labels == 1, scores, -scores))
    assert skill.cross_entropy == pytest.approx(float(-p.log().mean()), rel=1e-5)


def test_skill_is_that_of_the_scaled_image():
    shown, image = [], torch.full((2, 1, 40, 40), 6.0)

    def classifier(x_t, t, condition):
        shown.append(x_t)
        return torch.zeros(len(x_t), 2)

    (skill,) = skill_by_time(
        classifier, SCHEDULE, image, torch.tensor([0, 1]), [300], seed=0, space=ImageSpace(scale=0.5), batch=2
    )
    alpha, sigma = SCHEDULE.level(300)
    noise = (shown[0] - alpha * 0.5 * image) / sigma
    assert float(noise.mean()) == pytest.approx(0, abs=0.05) and float(noise.std()) == pytest.approx(1, abs=0.05)
    assert (skill.balanced_accuracy, skill.auroc) == (0.5, 0.5)  # a classifier that says nothing is at chance


def test_the_noise_of_a_slice_does_not_depend_on_the_batch():
    what, image = objective(), batch_of(5).image
    labels = torch.arange(16) % 2
    found = [skill_by_time(what.classifier.eval(), SCHEDULE, image, labels, [300], seed=1, batch=n) for n in (3, 16)]
    assert found[0][0].auroc == found[1][0].auroc
    assert found[0][0].cross_entropy == pytest.approx(found[1][0].cross_entropy, rel=1e-4)
