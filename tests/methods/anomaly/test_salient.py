"""Guidance inside a saliency mask where everything is known: what lies outside comes back as it does without guidance."""

import torch

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.diffusion.denoiser import Prediction
from medseg_diff.diffusion.exact import MixtureDenoiser
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.methods.anomaly.inversion import Inversion
from medseg_diff.methods.anomaly.salient import SalientInversion

SCHEDULE = NoiseSchedule(kind="linear")
MIXTURE = MixtureDenoiser(SCHEDULE, centres=(-0.5, 0.5), weights=(0.9, 0.1))
SETTINGS = {"depth": 500, "steps": 40, "scale": 1.0}
SIZE = (2, 1, 12, 12)


class Voxels:
    """Each voxel by itself is of the mixture."""

    schedule = SCHEDULE

    def __call__(self, x_t, t, condition):
        exact = MIXTURE(x_t.reshape(-1, 1, 1), t)
        return Prediction(exact.clean.view(x_t.shape), exact.noise.view(x_t.shape))


def classifier(x_t, t, condition):
    """A slice is healthy where all of its voxels are."""
    healthy = MIXTURE.classifier(x_t.reshape(-1, 1, 1), t).log_softmax(1)[:, 0].view(len(x_t), -1).sum(1)
    return torch.stack([healthy, torch.log(-torch.expm1(healthy.clamp(max=-1e-9)))], dim=1)


def image_of():
    image = torch.full(SIZE, -0.5, dtype=torch.float64)
    image[:, :, 3:7, 4:8] = 0.5
    return image


def score(engine, image):
    return engine.score(image, Networks(Voxels(), classifier, ("flair",)), SeededNoise(range(len(image))))


def test_the_mask_lies_where_the_classifier_looks_and_has_its_share():
    image = image_of()
    mask = SalientInversion(**SETTINGS, share=0.2, blur=0.5).guided_where(image, Networks(Voxels(), classifier))
    assert mask.flatten(1).sum(1).tolist() == [29, 29]  # a fifth of 144, rounded up
    assert mask[image > 0].all()


def test_inside_it_is_guided_outside_it_is_not():
    image = image_of()
    engine = SalientInversion(**SETTINGS, share=0.05, blur=0.5)
    mask = engine.guided_where(image, Networks(Voxels(), classifier))
    found, guided, plain = (score(each, image).healthy for each in (engine, Inversion(**SETTINGS), engine.but(scale=0)))
    torch.testing.assert_close(found[mask], guided[mask])
    torch.testing.assert_close(found[~mask], plain[~mask])
    assert (mask & (image > 0)).any() and found[mask & (image > 0)].max() < 0 < found[~mask & (image > 0)].min()


def test_of_the_whole_brain_it_is_the_inversion():
    image = image_of()
    whole = score(SalientInversion(**SETTINGS, share=1.0), image)
    torch.testing.assert_close(whole.score, score(Inversion(**SETTINGS), image).score)


def test_its_gradients_are_counted():
    asked = []

    def counting(x_t, t, condition):
        asked.append(x_t.requires_grad)
        return classifier(x_t, t, condition)

    engine = SalientInversion(depth=100, steps=5)
    engine.score(image_of(), Networks(Voxels(), counting, ("flair",)), SeededNoise(range(2)))
    assert len(asked) == engine.evaluations["classifier"] == 5 + 3 + 1
    assert engine.but(scale=0).evaluations["classifier"] == 3
