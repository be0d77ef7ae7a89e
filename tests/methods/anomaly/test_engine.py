"""What all engines have in common: their contract, their times, and how a difference becomes a score."""

from typing import get_args

import pytest
import torch

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.diffusion.exact import MixtureDenoiser
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.errors import UsageError
from medseg_diff.methods.anomaly import AnyEngine
from medseg_diff.methods.anomaly.engine import Comparison, Networks
from medseg_diff.methods.anomaly.inversion import Inversion
from medseg_diff.methods.anomaly.latent import UNLIKELY

SCHEDULE = NoiseSchedule(kind="linear")
KINDS = get_args(get_args(AnyEngine)[0])
ENGINES = [kind(depth=40, steps=4) if issubclass(kind, Comparison) else kind() for kind in KINDS]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.kind)
@pytest.mark.parametrize("size", [(6, 5), (6, 5, 4)], ids=["2D", "3D"])
def test_every_engine_turns_images_into_evidence(engine, size):
    mixture = MixtureDenoiser(SCHEDULE)
    image = torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(0)).double()
    networks = Networks(mixture, mixture.classifier, ("t1",), reference={UNLIKELY: 1.0})
    evidence = engine.score(image, networks, SeededNoise(range(3)))
    assert evidence.score.shape == (3, 1, *size) and evidence.score.min() >= 0
    assert evidence.healthy is None or evidence.healthy.shape == image.shape
    assert all(value.shape == (3,) for value in evidence.facts.values())
    alone = engine.score(image[1:2], networks, SeededNoise([1]))
    torch.testing.assert_close(alone.score, evidence.score[1:2])  # a sample's evidence is its own
    known = dict(evidence.facts) | {"mean_score": evidence.score.flatten(1).mean(1)}
    reference = engine.reference(known)
    assert all(isinstance(value, float) for value in reference.values())
    assert len({check.name for check in engine.checks(known, reference)}) == len(engine.checks(known, reference))
    assert set(engine.evaluations) <= {"denoiser", "classifier"} and engine.networks[0] == "denoiser"
    depth = {"inpainting": 1, "autoencoder": 1, "autoddpm": 50, "latent": 600}.get(engine.kind, 40)  # of their own
    assert engine.deepest(SCHEDULE) == depth
    assert set(engine.swept) <= set(type(engine).model_fields)


def test_times():
    assert Inversion(depth=250, steps=5).times(SCHEDULE) == [0, 50, 100, 150, 200, 250]
    bent = Inversion(depth=250, steps=10, spacing="quadratic").times(SCHEDULE)
    assert bent == [0, 3, 10, 23, 40, 63, 90, 122, 160, 203, 250]
    assert Inversion(depth=10, steps=10, spacing="quadratic").times(SCHEDULE) == list(range(11))
    for wrong in ({"depth": 5, "steps": 6}, {"depth": 1001}):
        with pytest.raises(UsageError, match="do not fit a schedule of 1000"):
            Inversion(**wrong).deepest(SCHEDULE)


@pytest.mark.parametrize("size", [(5, 4), (5, 4, 3)])
def test_differences(size):
    image, other = torch.randn(2, 2, 3, *size, generator=torch.Generator().manual_seed(0))
    engine, change = Inversion(), image - other
    torch.testing.assert_close(engine.difference(image, other), change.abs().sum(1, keepdim=True))
    torch.testing.assert_close(engine.but(map="squared").difference(image, other), change.square().sum(1, keepdim=True))
    one = engine.but(map="positive", map_channels=["flair"]).difference(image, other, ("t1", "t2", "flair"))
    torch.testing.assert_close(one, change[:, 2:].clamp(min=0))
    assert not engine.difference(image, image).any()
