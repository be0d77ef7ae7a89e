"""Inversion where denoiser and classifier are known exactly, and what its engines and their settings promise."""

import pytest
import torch

from medseg_diff.diffusion import DDIM, Denoiser, NoiseSchedule, walk
from medseg_diff.diffusion.exact import GaussianDenoiser, MixtureDenoiser
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.methods.anomaly.inversion import (
    ClassifierFreeInversion,
    Inversion,
    probability,
    saliency,
)
from medseg_diff.spaces import ImageSpace

SCHEDULE = NoiseSchedule(kind="linear")
MIXTURE = MixtureDenoiser(SCHEDULE)  # component 0 (healthy) at -1, component 1 at +1, deviation 0.25
ENGINE = Inversion(depth=500, steps=200, scale=1.0)
HEALTHY, DISEASED = ([centre + MIXTURE.deviation * z for z in (-1.0, 0.0, 1.0)] for centre in MIXTURE.centres)


def samples(values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def score(image, engine=ENGINE, denoiser=MIXTURE, classifier=MIXTURE.classifier, space=ImageSpace(), **options):  # noqa: B008
    networks = Networks(denoiser, classifier, ("flair",), space)
    return engine.score(image, networks, SeededNoise(range(len(image))), **options)


def arrives(engine):
    """Whether diseased samples end within 2 deviations of the healthy centre and healthy ones within 1 of themselves."""
    moved, kept = score(samples(DISEASED), engine).healthy, score(samples(HEALTHY), engine).healthy
    near = (moved - MIXTURE.centres[0]).abs().max() < 2 * MIXTURE.deviation
    return bool(near and (kept - samples(HEALTHY)).abs().max() < MIXTURE.deviation)


def test_a_diseased_sample_becomes_healthy_and_a_healthy_one_stays():
    assert arrives(ENGINE)


def test_with_the_sign_of_the_guidance_flipped_it_does_not():
    assert not arrives(ENGINE.but(scale=-1.0))
    assert score(samples(DISEASED), ENGINE.but(scale=-1.0)).healthy.min() > 1.5  # it runs away from healthy


def test_the_score_is_what_had_to_change():
    evidence = score(samples(HEALTHY + DISEASED))
    torch.testing.assert_close(evidence.score, (samples(HEALTHY + DISEASED) - evidence.healthy).abs())
    assert evidence.score[3:].min() > 4 * evidence.score[:3].max()


def test_without_guidance_everything_comes_back():
    image = samples(HEALTHY + DISEASED)
    unguided = score(image, ENGINE.but(scale=0.0)).healthy
    torch.testing.assert_close(unguided, image, atol=0.01, rtol=0)
    trip = ENGINE.round_trip(image, Networks(MIXTURE))
    torch.testing.assert_close(trip, unguided)


def test_a_scale_means_the_same_for_finer_voxels():
    """A classifier that looks at means over two by two voxels gives each of four a quarter of the gradient."""

    def finer(x_t, t, condition=None):
        return MIXTURE.classifier(torch.nn.functional.avg_pool2d(x_t, 2), t)

    coarse = torch.tensor([[[[0.9, -0.8], [1.1, 0.2]]]], dtype=torch.float64)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    engine = ENGINE.but(steps=20, scale=0.5, scale_at=4)
    pushes = []
    for image, classifier in ((coarse, MIXTURE.classifier), (fine, finer)):
        guided = engine.guided(image, Networks(MIXTURE, classifier))
        pushes.append(guided.scale * guided.gradient(image, 300, None))
    torch.testing.assert_close(pushes[0].repeat_interleave(2, 2).repeat_interleave(2, 3), pushes[1])
    plain = engine.but(scale_at=None).guided(fine, Networks(MIXTURE, finer))
    assert plain.scale == 0.5 and guided.scale == 2.0


def test_p_healthy_is_measured_before_at_the_noise_level_and_after():
    facts = score(samples(DISEASED)).facts
    assert {name: len(value) for name, value in facts.items()} == dict.fromkeys(
        ("p_healthy_before", "p_healthy_noisy", "p_healthy_after"), 3
    )
    assert facts["p_healthy_before"].max() < 1e-6 and facts["p_healthy_after"].min() > 0.999
    noisy = walk(MIXTURE, DDIM(), samples(DISEASED), ENGINE.times(SCHEDULE))
    torch.testing.assert_close(facts["p_healthy_noisy"], MIXTURE.classifier(noisy, 500).softmax(1)[:, 0].float())


class Recording:
    """A Gaussian denoiser that notes what it is asked, and predicts images far outside [-1, 1]."""

    def __init__(self):
        self.schedule, self.times, self.labels = SCHEDULE, [], []
        self.exact = GaussianDenoiser(SCHEDULE, 0.0, 3.0)

    def __call__(self, x_t, t, condition):
        self.times.append(t)
        self.labels.append(None if condition.label is None else condition.label.tolist())
        return self.exact(x_t, max(t, 1))


def undecided(x_t, t, condition=None):
    return torch.zeros(len(x_t), 2) + 0 * x_t.sum()


@pytest.mark.parametrize(("conditioned", "label"), [(True, [0, 0]), (False, None)])
def test_both_ways_take_the_same_times_conditioned_on_healthy_while_decoding_only(conditioned, label):
    denoiser, engine = Recording(), Inversion(depth=40, steps=4, condition_on_healthy=conditioned)
    score(torch.zeros(2, 1, 4, 4), engine, denoiser, undecided)
    assert denoiser.times == [0, 10, 20, 30, 40, 30, 20, 10]
    assert denoiser.labels == [None] * 4 + [label] * 4
    assert engine.needs_labels is conditioned


def test_nothing_is_clipped():
    image = torch.tensor([5.0, -7.0], dtype=torch.float64).view(2, 1, 1)
    engine, networks = Inversion(depth=250, steps=250), Networks(Recording())
    back = engine.round_trip(image, networks)
    torch.testing.assert_close(back, image, rtol=0.02, atol=0)


def test_an_image_is_encoded_into_its_space_and_decoded_out_of_it():
    half = score(samples([-2.0, 2.0]), space=ImageSpace(scale=0.5), baselines=True)
    full = score(samples([-1.0, 1.0]), baselines=True)
    torch.testing.assert_close(half.healthy, 2 * full.healthy)
    torch.testing.assert_close(half.score, 2 * full.score)
    torch.testing.assert_close(half.facts["p_healthy_noisy"], full.facts["p_healthy_noisy"])
    torch.testing.assert_close(half.baselines["saliency"], full.baselines["saliency"])
    torch.testing.assert_close(half.baselines["scale_0"], 2 * full.baselines["scale_0"])


def test_the_condition_is_brought_into_the_space():
    class Turned(ImageSpace):
        def condition(self, condition):
            return condition._replace(label=1 - condition.label)

    denoiser, engine = Recording(), Inversion(depth=40, steps=1, condition_on_healthy=True)
    score(torch.zeros(2, 1, 4, 4), engine, denoiser, undecided, Turned())
    assert denoiser.labels == [None, [1, 1]]


class Labelled:
    """A network of noise with the exact answer of the component that the label names, of the mixture for no label."""

    def __call__(self, x_t, t, condition):
        kept = torch.ones(len(x_t), dtype=torch.bool) if condition.keep is None else condition.keep
        if condition.label is None:
            return MIXTURE(x_t, t).noise
        noises = torch.stack([MIXTURE.component(k)(x_t, t).noise for k in (0, 1)])
        own = noises[condition.label, torch.arange(len(x_t))]
        return torch.where(kept.view(-1, 1, 1), own, MIXTURE(x_t, t).noise)


def test_classifier_free_guidance_arrives_as_exactly_and_needs_no_classifier():
    engine = ClassifierFreeInversion(depth=500, steps=200, scale=1.0)
    image = samples(HEALTHY + DISEASED)
    free = score(image, engine, Denoiser(Labelled(), SCHEDULE, target="noise"), None)
    torch.testing.assert_close(free.healthy, score(image).healthy, atol=0.02, rtol=0)
    assert engine.networks == ("denoiser",) and engine.needs_labels and not free.facts


def test_network_evaluations_are_counted():
    assert Inversion(steps=10).evaluations == {"denoiser": 20, "classifier": 13}
    assert ClassifierFreeInversion(steps=10).evaluations == {"denoiser": 30}


def test_the_baselines_are_the_gradient_and_the_difference_without_guidance():
    image = samples(HEALTHY + DISEASED)
    evidence = score(image, baselines=True)
    assert set(evidence.baselines) == {"saliency", "scale_0"} and not score(image).baselines
    torch.testing.assert_close(evidence.baselines["scale_0"], score(image, ENGINE.but(scale=0.0)).score)


def bright_spot(x_t, t, condition):
    """Logits of a classifier that calls a sample diseased by the brightness of its corner."""
    corner = 4 * x_t[:, :, 0, 0].sum(1)
    return torch.stack([-corner, corner], dim=1)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_saliency_is_the_slope_of_the_classifier_at_the_scaled_image(scale):
    """Logits (0, 2x) of one voxel: d/dx log p(healthy | x) is -2 p(diseased | x)."""

    def classifier(x_t, t, condition):
        return torch.stack([torch.zeros(len(x_t)), 2 * x_t.flatten(1).sum(1)], dim=1)

    image, alpha = torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1, 1), float(SCHEDULE.level(300).alpha)
    found = saliency(classifier, ImageSpace(scale=scale).encode(image), schedule=SCHEDULE, t=300)
    torch.testing.assert_close(found, 2 * torch.sigmoid(2 * alpha * scale * image))


def test_saliency_shows_where_the_classifier_looks_and_only_in_what_looks_diseased():
    image = torch.full((2, 2, 4, 4), -0.5)
    image[0, :, 0, 0] = 1.0
    shown = saliency(bright_spot, image, schedule=SCHEDULE)
    assert shown.shape == (2, 1, 4, 4) and shown[0, 0, 0, 0] > 15
    assert shown.flatten(1).count_nonzero(1).tolist() == [1, 1]
    assert shown[1].max() < 0.02 * shown[0].max()
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(saliency(bright_spot, image, schedule=SCHEDULE, t=300, noise=noise), shown)


def test_a_clean_image_is_asked_about_at_the_first_time_that_was_learned():
    asked = []

    def classifier(x_t, t, condition):
        asked.append(t.tolist())
        return torch.zeros(len(x_t), 2)

    assert probability(classifier, torch.zeros(3, 1, 2, 2), 0).tolist() == [0.5, 0.5, 0.5]
    assert asked == [[1]]


def facts(before, after, mean_score):
    values = {"p_healthy_before": before, "p_healthy_noisy": [0.5] * len(before), "p_healthy_after": after}
    return {name: torch.tensor(value) for name, value in (values | {"mean_score": mean_score}).items()}


def test_the_checks_of_a_volume_that_came_back_well():
    checks = {
        check.name: check
        for check in ENGINE.checks(
            facts([0.1, 0.2, 0.9], [0.8, 0.9, 0.9], [3, 3, 0.5]), {"drift": 0.4, "called_diseased": 0.1}
        )
    }
    assert not any(check.warning for check in checks.values())
    assert checks["p_healthy"].values["slices"] == 2 and checks["p_healthy"].values["rose"] is True
    assert checks["p_healthy"].values["before"] == pytest.approx(0.15) and checks["p_healthy"].values[
        "after"
    ] == pytest.approx(0.85)
    assert checks["drift"].values == {"slices": 1, "score": 0.5, "healthy": 0.4, "within": True}


def test_the_checks_that_warn():
    odd = ENGINE.checks(facts([0.1, 0.9], [0.05, 0.9], [3.0, 1.0]), {"drift": 0.4, "called_diseased": 0.5})
    warnings = {check.name: check.warning for check in odd}
    assert "did not rise" in warnings["p_healthy"] and "more than anomalies" in warnings["drift"]
    assert "50% of healthy slices" in warnings["classifier"]


def test_without_a_reference_or_diseased_slices_nothing_is_claimed():
    p_healthy, drift, classifier = ENGINE.checks(facts([0.9], [0.9], [1.0]), {})
    assert p_healthy.values["rose"] is None and drift.values["within"] is None
    assert classifier.values == {"healthy_called_diseased": None}
    assert not any(check.warning for check in (p_healthy, drift, classifier))


def test_what_the_calibration_keeps_of_healthy_slices():
    kept = ENGINE.reference(facts([0.9, 0.3], [0.9, 0.9], [1.0, 3.0]))
    assert kept == {"p_healthy": 0.6, "called_diseased": 0.5, "drift": 2.0}
