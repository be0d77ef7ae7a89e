"""A volume mapped slice by slice by networks whose answer is known, with the maps that they give for free."""

import itertools
import json
import logging
import math

import numpy as np
import pytest
import torch

from medseg_diff.data.reading import CaseImages
from medseg_diff.data.transforms import prepare_case
from medseg_diff.diffusion import DDIM, Denoiser, walk
from medseg_diff.diffusion.exact import MixtureDenoiser, ddim_gain
from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.methods.anomaly.inpainting import Inpainting
from medseg_diff.methods.anomaly.inversion import Inversion
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.settings import parse_settings
from medseg_diff.tasks.apply.anomaly_volume import AnomalySystem, map_volume, open_system
from medseg_diff.tasks.options import Compute

RECIPE = {
    "paper": "none",
    "channels": ["flair"],
    "preparation": {"margin_mm": 0},
    "view": {"size": [6, 6]},
    "schedule": {"kind": "linear"},
    "denoiser": {"target": "velocity"},
    "network": {"width": 8},
    "engine": {"kind": "inversion", "depth": 400, "steps": 4, "scale": 0.0, "network_batch": 2},
}


CPU = Compute(device="cpu")


@pytest.fixture
def prepared():
    """Three slices of a brain of 4 × 4 voxels."""
    image = np.zeros((1, 6, 6, 5), dtype=np.float32)
    image[0, 1:5, 1:5, 1:4] = np.random.default_rng(0).uniform(1, 2, (4, 4, 3))
    return prepare_case(
        CaseImages("case", ("flair",), image, np.eye(4), None, None, ()), system_of().recipe.preparation
    )


def undecided(x_t, t, condition, slope=0.1):
    """Logits (0, slope Σ x)."""
    return torch.stack([torch.zeros(len(x_t)), slope * x_t.flatten(1).sum(1)], dim=1)


def system_of(classifier=undecided, **changes):
    """A denoiser that says nothing, and a classifier."""
    recipe = parse_settings(AnomalyRecipe, RECIPE | changes, source="known.yaml")
    denoiser = Denoiser(lambda x_t, t, condition: torch.zeros_like(x_t), recipe.schedule, target="velocity")
    networks = Networks(denoiser, classifier, recipe.channels, recipe.space)
    return AnomalySystem(recipe, networks, None, torch.device("cpu"), "fp32", 0, {})


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_saliency_is_the_classifiers_slope_in_the_middle_of_the_way_at_the_images_scale(prepared, scale):
    volume = map_volume(prepared, system_of(space={"scale": scale}), baselines=True)
    framed = torch.nn.functional.pad(prepared.image, (0, 0, 1, 1, 1, 1), value=-1.0)  # to the size of the training
    alpha = float(system_of().recipe.schedule.level(200).alpha)
    expected = 0.1 * torch.sigmoid(0.1 * alpha * scale * framed.sum((0, 1, 2)))
    assert prepared.brain.all() and prepared.image.shape == (1, 4, 4, 3)
    torch.testing.assert_close(volume.baselines["saliency"], expected.expand(1, 4, 4, 3))
    p_healthy = torch.sigmoid(-0.1 * scale * framed.sum((0, 1, 2)))
    torch.testing.assert_close(volume.facts["p_healthy_before"], p_healthy, atol=1e-6, rtol=0)


def test_without_guidance_each_step_of_a_denoiser_that_says_nothing_shrinks_by_a_cosine(prepared):
    """Its clean image is alpha x_t and its noise sigma x_t, so t → s multiplies by a a_s + s s_s; at 0 it is asked at 1."""
    volume = map_volume(prepared, system_of(space={"scale": 0.5}), baselines=True)
    levels = [system_of().recipe.schedule.level(t) for t in (0, 1, 100, 200, 300, 400)]
    image, first, *others = [(float(alpha), float(sigma)) for alpha, sigma in levels]

    def shrunk(path):
        return math.prod(a * b + c * d for (a, c), (b, d) in itertools.pairwise(path))

    start = others[0][0] + others[0][1] * first[1]
    left = start * shrunk(others) * shrunk([*others[::-1], image])
    torch.testing.assert_close(volume.healthy, left * prepared.image)
    torch.testing.assert_close(volume.score, (1 - left) * prepared.image.abs())
    torch.testing.assert_close(volume.baselines["scale_0"], volume.score)
    expected = (1 - left) * prepared.image.square().mean().sqrt() / prepared.image.std()
    assert 0.05 < left < 0.95 and volume.round_trip == pytest.approx(float(expected), rel=1e-4)


def test_numbers_that_run_away_are_named(prepared):
    def steep(x_t, t, condition):
        return undecided(x_t, t, condition, slope=-1e36)

    system = system_of(steep, engine=RECIPE["engine"] | {"scale": 1e6})
    with pytest.raises(UsageError, match=r"the reconstruction is not finite. Fix: lower engine.scale"):
        map_volume(prepared, system)


EXACT = {
    "paper": "none",
    "channels": ["flair"],
    "schedule": {"kind": "linear"},
    "network": {"width": 8, "classes": 2},
}


def exact_system(image_scale, **engine):
    """Networks that know a mixture of healthy, at -1, and diseased, at 1; conditioned on a label, its component alone."""
    changes = {
        "space": {"scale": image_scale},
        "engine": {"kind": "inversion", "depth": 400, "steps": 8, "scale": 1.0} | engine,
    }
    recipe = parse_settings(AnomalyRecipe, EXACT | changes, source="exact.yaml")
    mixture = MixtureDenoiser(recipe.schedule)

    def network(x_t, t, condition):
        if condition.label is None:
            return mixture(x_t, t).noise
        (label,) = condition.label.unique().tolist()
        return mixture.component(label)(x_t, t).noise

    networks = Networks(
        Denoiser(network, recipe.schedule, target="noise"), mixture.classifier, recipe.channels, recipe.space
    )
    return AnomalySystem(recipe, networks, None, torch.device("cpu"), "fp32", 0, {}), mixture


def images(mixture, *, scale):
    """Voxels of both components, in the units of the image."""
    deviations = mixture.deviation * torch.linspace(-1, 1, 5, dtype=torch.float64)
    return torch.cat([centre + deviations for centre in mixture.centres]).view(-1, 1, 1) / scale


def evidence_of(system, image):
    return system.evidence(image, [("case", z) for z in range(len(image))])


def through_component_0(system, mixture, image, scale):
    """By hand: up with the mixture, back along the linear map of the healthy component."""
    times = system.engine.times(system.recipe.schedule)
    noisy, back = walk(mixture, DDIM(), image * scale, [1, *times[1:]]), times[::-1]
    healthy = mixture.component(0)
    gain, alpha = ddim_gain(healthy, back), mixture.schedule.level(back[0]).alpha
    return (healthy.mean + gain * (noisy - alpha * healthy.mean)) / scale


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(
    "engine",
    [
        {},  # guidance at scale 1 is the healthy component's own denoiser
        {"scale": 0.0, "condition_on_healthy": True},  # and so is what is conditioned on `healthy`
    ],
    ids=["guided", "conditioned"],
)
def test_what_is_guided_or_conditioned_goes_back_along_the_healthy_component(engine, scale):
    system, mixture = exact_system(scale, **engine)
    image = images(mixture, scale=scale)
    found = evidence_of(system, image)
    torch.testing.assert_close(found.healthy, through_component_0(system, mixture, image, scale), atol=0.02, rtol=0)
    assert (found.healthy * scale - mixture.centres[0]).abs().max() < 2 * mixture.deviation
    assert found.facts["p_healthy_before"].tolist() == pytest.approx([1.0] * 5 + [0.0] * 5, abs=1e-6)


def test_neither_guided_nor_conditioned_it_comes_back_as_it_was():
    system, mixture = exact_system(0.5, scale=0.0, steps=400)
    image = images(mixture, scale=0.5)
    found = evidence_of(system, image)
    torch.testing.assert_close(found.healthy, image, atol=0.02, rtol=0)
    torch.testing.assert_close(system.engine.round_trip(image, system.networks), found.healthy)


def test_a_classifier_at_chance_is_refused(recalibrated):
    run = recalibrated(classifier={"balanced_accuracy": 0.51, "auroc": 0.53, "by_time": []})
    run.seal()
    with pytest.raises(CheckpointError, match=r"no better than by chance \(balanced accuracy 0.51, AUROC 0.53\)"):
        open_system(run, compute=CPU)


def test_a_classifier_at_chance_that_nothing_follows_is_said(recalibrated, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    monkeypatch.setattr(Inversion, "follows_classifier", Inpainting.follows_classifier)
    run = recalibrated(classifier={"balanced_accuracy": 0.51, "auroc": 0.53, "by_time": []})
    run.seal()
    open_system(run, compute=CPU)
    assert "is no better than chance: do not rely on" in caplog.text


def test_a_classifier_of_which_nothing_is_known_is_said(recalibrated, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    run = recalibrated(classifier={"balanced_accuracy": None, "auroc": None, "by_time": []})
    run.seal()
    open_system(run, compute=CPU)
    assert "it may be no better than chance" in caplog.text


def test_a_changed_or_missing_calibration_is_refused(recalibrated):
    run = recalibrated()
    known = json.loads(run.calibration_file.read_text())
    known["maps"]["anomaly"]["threshold"] = 9.0
    run.calibration_file.write_text(json.dumps(known))
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        open_system(run, compute=CPU)
    run.calibration_file.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        open_system(run, compute=CPU)
