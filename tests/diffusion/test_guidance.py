"""Guidance by hand: which way it pushes, how far, and which of two answers it keeps."""

import pytest
import torch

from medseg_diff.diffusion import ClassifierFree, ClassifierGuided, Condition, NoiseSchedule, Prediction
from medseg_diff.diffusion.exact import GaussianDenoiser, MixtureDenoiser

SCHEDULE = NoiseSchedule(kind="cosine")
LABELS = Condition(label=torch.zeros(2, dtype=torch.long))


def test_the_noise_falls_by_scale_times_sigma_times_the_gradient():
    """log p(1 | x) of logits (0, 2x) has the gradient 2 (1 - p(1 | x)), which is 1 at x = 0."""

    def classifier(x, t, condition):
        return torch.cat([torch.zeros_like(x), 2 * x], dim=1).flatten(1)

    x, sigma = torch.zeros(1, 1, 1, dtype=torch.float64), float(SCHEDULE.level(500).sigma)
    denoiser = GaussianDenoiser(SCHEDULE, 0.0, 0.5)  # which sees no noise in x = 0
    found = [ClassifierGuided(denoiser, classifier, label, scale=3.0)(x, 500, Condition()) for label in (0, 1)]
    assert [float(each.noise) for each in found] == pytest.approx([3 * sigma, -3 * sigma])
    alpha = float(SCHEDULE.level(500).alpha)
    assert [float(each.clean) for each in found] == pytest.approx([-3 * sigma**2 / alpha, 3 * sigma**2 / alpha])


def test_the_guidance_law_notices_a_flipped_sign():
    mixture = MixtureDenoiser(SCHEDULE)
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).view(-1, 1, 1)
    flipped = ClassifierGuided(mixture, mixture.classifier, 1, scale=-1.0)
    difference = flipped(x, 500, Condition()).noise - mixture.component(1)(x, 500).noise
    assert difference.abs().max() > 0.1


class TwoAnswers:
    """Told a label it sees noise 1 and mixes the variances at 0.25, told nothing 0.5 and 0.75."""

    schedule = SCHEDULE

    def __call__(self, x_t, t, condition):
        kept = condition.keep.view(-1, 1, 1)
        said = [torch.where(kept, known, null).to(x_t) + 0 * x_t for known, null in ((1.0, 0.5), (0.25, 0.75))]
        return Prediction(x_t, *said)


@pytest.mark.parametrize(("scale", "noise"), [(0.0, 0.5), (1.0, 1.0), (3.0, 2.0)])
def test_classifier_free_noise_is_the_blank_one_and_scale_times_the_difference(scale, noise):
    x = torch.ones(2, 1, 3, dtype=torch.float64)
    found = ClassifierFree(TwoAnswers(), scale)(x, 400, LABELS)
    alpha, sigma = (float(part) for part in SCHEDULE.level(400))
    torch.testing.assert_close(found.noise, torch.full_like(x, noise))
    torch.testing.assert_close(found.clean, torch.full_like(x, (1 - sigma * noise) / alpha))


def test_classifier_free_guidance_keeps_the_variance_of_the_answer_that_knows():
    x = torch.zeros(2, 1, 3)
    for scale in (0.0, 1.0, 3.0):
        mix = ClassifierFree(TwoAnswers(), scale)(x, torch.tensor([400, 7]), LABELS).variance_mix
        assert mix.shape == x.shape and mix.unique().tolist() == [0.25]
