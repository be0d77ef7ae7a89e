"""Walks, ensembles and anomaly engines on a card that nobody has: nothing leaves it, and it is never waited for."""

from typing import get_args

import pytest
import torch

from medseg_diff.diffusion import DDIM, DDPM, Condition, DPMSolverPP, SeededNoise, walk
from medseg_diff.diffusion.denoiser import Clipped, DenoiserSettings
from medseg_diff.diffusion.noise import CoarseNoise, GaussianNoise, SimplexNoise
from medseg_diff.methods.anomaly import AnyEngine
from medseg_diff.methods.anomaly.engine import Comparison, Networks
from medseg_diff.methods.sampled_segmentation import Ensemble, Plan, sample_masks, uncertainty_maps
from medseg_diff.methods.tiled import Tiled
from medseg_diff.networks.autoencoders import KLSettings
from medseg_diff.networks.encoded import WithEncoderSettings
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.seeds import seed_of
from medseg_diff.spaces import PLAIN, LatentSpace
from tests.no_sync import CLASSIFIER, NETWORKS, ONE_LEVEL, SCHEDULE, Card, put, sampling

CHANNELS = ("flair", "t1")


@pytest.mark.parametrize("solver", [DDPM(), DDPM(variance="beta"), DDIM(eta=0.5), DPMSolverPP()], ids=str)
@pytest.mark.parametrize(
    "noise", [GaussianNoise(), SimplexNoise(octaves=2), CoarseNoise(cells=4)], ids=lambda n: n.kind
)
def test_walks(card, solver, noise):
    denoiser = DenoiserSettings(target="velocity").around(lambda x_t, t, condition: x_t * t, SCHEDULE)
    x, drawn = torch.zeros(2, 1, 6, 5, device=card.device), SeededNoise([1, 2], noise)
    drawn(x, 0)  # what it keeps from one step to the next is made, and copied, at the first
    with card.watched():
        assert walk(Clipped(denoiser), solver, x, SCHEDULE.times(3), noise=drawn).device == card.device


def test_an_ensemble_of_masks(card):
    network = NETWORKS["with_prior"].build(dims=2, channels=2, outputs=2, image_channels=2)
    denoiser = DenoiserSettings().around(put(network, card.device), SCHEDULE)
    images, start = torch.zeros(4, 2, 8, 6, device=card.device), torch.ones(4, 2, 8, 6, device=card.device) > 0
    plan = Plan(SCHEDULE.times(2), DDPM(), 3, 4, 2, hierarchy=((), (0,)), mirrors=(0,))
    kept = Ensemble(4, 2, (8, 6), 3, card.device)
    with sampling(card):
        drawn = sample_masks(denoiser, images, [0, 1, 3], plan, regions=2, seed_of=seed_of, start=start)
        for sample, probability in drawn:
            assert (probability.device, probability.dtype) == (card.device, torch.float32)
            kept.add(sample, probability)
        kept.end_model(3)
        kept.redraw([0, 1, 3], lambda sample: torch.zeros(1, 1, device=card.device))
        maps = uncertainty_maps(kept.mean, kept.variance_between)
    assert {(each.device, each.dtype) for each in maps.values()} == {(card.device, torch.float32)}


def test_a_volume_in_tiles_that_knows_a_label(card):
    unet = UNetSettings(**ONE_LEVEL, classes=2).build(dims=3, channels=1, outputs=1, image_channels=1)
    tiled = Tiled(DenoiserSettings().around(put(unet, card.device), SCHEDULE), (8, 8, 8), batch=2)
    x, image = torch.zeros(2, 1, 9, 8, 5, device=card.device), torch.zeros(2, 1, 9, 8, 5, device=card.device)
    known = Condition(image=image, label=torch.zeros(2, dtype=torch.long, device=card.device))
    noise = SeededNoise([1, 2])
    walk(tiled, DDPM(), x, [1000, 0], known, noise)  # the weights of the tiles are copied at the first step
    with sampling(card):
        assert walk(tiled, DDPM(), x, SCHEDULE.times(2), known, noise).device == card.device


FEW = {
    "autoddpm": {"seam_steps": 1, "resamplings": 2},
    "conditional_difference": {"noises": 1},
    "autoencoder": {"map_channels": ("t1",)},
    "inpainting": {"looks": 1, "refills": 1, "directions": {"t1": -1, "flair": 1}, "agreeing": CHANNELS},
    "latent": {"first": 30, "last": 40, "depth": 40, "steps": 2},
    "anoddpm": {"draws": 2, "distance": "mahalanobis", "map_channels": ("flair",)},
}
ENGINES = [
    kind(**(FEW.get(name, {}) | ({"depth": 40, "steps": 1} if issubclass(kind, Comparison) else {})))
    for kind in get_args(get_args(AnyEngine)[0])
    for name in [kind.model_fields["kind"].default]
]


def networks_of(engine, device):
    """Those that an engine asks for, as small as they may be."""
    known = {"nothing": 0, "rest": 3, "image": 2}[engine.conditioned_on]
    target = "velocity" if "velocity" in engine.targets and not engine.wants_deviation else "clean"
    said = DenoiserSettings(target=target, learned_deviation=engine.wants_deviation)
    kind, more = UNetSettings, {"classes": 2 if engine.needs_labels else 0}
    if engine.kind == "cddpm":
        kind, more = WithEncoderSettings, {"code": 4, "encoder": CLASSIFIER}
    network = kind(**ONE_LEVEL, **more).build(dims=2, channels=2, outputs=2 * said.outputs, image_channels=known)
    classifier = put(CLASSIFIER.build(dims=2, channels=2), device) if "classifier" in engine.networks else None
    space = LatentSpace(put(KLSettings(widths=(8, 8), latent=2, groups=4).build(dims=2, channels=2), device))
    reference = {"unlikely": 0.0} if engine.in_latent else {}
    denoiser = said.around(put(network, device), SCHEDULE)
    return Networks(denoiser, classifier, CHANNELS, space if engine.in_latent else PLAIN, reference=reference)


def check_engine(engine, card):
    networks, image = networks_of(engine, card.device), torch.zeros(2, 2, 8, 6, device=card.device)
    with sampling(card):
        evidence = engine.score(image, networks, SeededNoise(range(2)), baselines=True)
        back = engine.round_trip(image, networks)
    made = [evidence.score, evidence.healthy, back, *evidence.facts.values(), *evidence.baselines.values()]
    assert {(each.device, each.dtype) for each in made if each is not None} == {(card.device, torch.float32)}


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.kind)
def test_every_engine(card, engine):
    check_engine(engine, card)


@pytest.mark.parametrize("kind", ["inversion", "salient_inversion"])
def test_gradients_that_guide(kind):
    """With autograd, which the fake card has not."""
    with Card("meta") as card:
        check_engine(next(engine for engine in ENGINES if engine.kind == kind), card)
