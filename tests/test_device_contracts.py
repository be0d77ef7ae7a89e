"""What holds for every member, on the CPU and on a GPU: shapes, and bytes that hang on nothing but the sample and the seed.

`pytest -m gpu` runs these and what else needs a card; on a CPU the same bodies run in `make test`.
"""

import csv
import itertools
from typing import get_args

import pytest
import torch

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.device import autocast, find_device, make_fabric
from medseg_diff.diffusion import DDIM, DDPM, Condition, DPMSolverPP, SeededNoise, walk
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.diffusion.noise import CoarseNoise, GaussianNoise, SimplexNoise
from medseg_diff.methods.anomaly import AnyEngine
from medseg_diff.methods.sampled_segmentation import Plan, sample_masks
from medseg_diff.methods.tiled import Tiled
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.train.segmentation import train_seg
from medseg_diff.training import runner
from medseg_diff.training.fit import FitSettings, Learners, channels_last, fit
from tests.conftest import TINY, shake
from tests.methods.test_on_a_card import ENGINES, networks_of
from tests.no_sync import NETWORKS, ONE_LEVEL, SCHEDULE, known_to
from tests.training.test_on_a_card import LESSONS, learning

PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def numbers(*shape, seed=0):
    """Normal numbers that are the same whatever the device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steep(network, device):
    """A network that changes its answer with a little rounding."""
    shake(network, torch.Generator().manual_seed(0))
    return channels_last(network.to(device).eval())


@PRECISIONS
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_networks_answer_has_its_shape_and_is_a_samples_own(device, kind, dims, precision):
    size = (13, 10, 6)[:dims]
    outputs = 1 if kind == "with_prior" else 2  # which says everything twice
    network = steep(NETWORKS[kind].build(dims=dims, channels=2, outputs=outputs, image_channels=2), device)
    x, image = numbers(5, 2, *size).to(device), numbers(5, 2, *size, seed=1).to(device)
    t, order = torch.tensor([300], device=device), torch.tensor([3, 0, 3, 3, 4], device=device)
    with torch.no_grad(), autocast(torch.device(device), precision):
        known = known_to(kind, image)
        together, again = network(x, t, known), network(x[order], t, known.take(order))
    assert together.shape == x.shape and together.isfinite().all() and together.float().std() > 0.01
    assert torch.equal(again, together[order])


@pytest.mark.parametrize(
    "noise", [GaussianNoise(), SimplexNoise(octaves=2), CoarseNoise(cells=4)], ids=lambda n: n.kind
)
def test_a_samples_noise_is_its_own(device, noise):
    like = torch.zeros(3, 2, 9, 7, device=device)
    together = SeededNoise([5, 6, 2**40 + 5], noise)(like, 4)
    assert together.device == like.device and len({each.sum().item() for each in together}) == 3
    assert torch.equal(SeededNoise([2**40 + 5, 5], noise)(like[:2], 4), together[[2, 0]])


def drawn(denoiser, device, precision, *, slices=(0, 2, 3), members=4, at_once=4, solver=None):
    """{sample: probability} of an ensemble, with the network always shown four samples."""
    plan = Plan(SCHEDULE.times(2), solver or DDPM(), members, 4, at_once, mirrors=(0,))
    images = numbers(5, 2, 12, 10, seed=7).to(device)
    with autocast(torch.device(device), precision):
        return dict(sample_masks(denoiser, images, slices, plan, regions=2, seed_of=seed_of))


@PRECISIONS
@pytest.mark.parametrize("kind", ["with_prior", "unet"])
def test_an_ensembles_bytes_do_not_hang_on_order_shards_or_members_at_once(device, kind, precision):
    network = steep(NETWORKS[kind].build(dims=2, channels=2, outputs=2, image_channels=2), device)
    denoiser = DenoiserSettings().around(network, SCHEDULE)
    whole = drawn(denoiser, device, precision)
    assert all(each.shape == (2, 12, 10) and 0 <= each.min() <= each.max() <= 1 for each in whole.values())
    for other in ({"slices": (3, 2, 0)}, {"slices": (2,)}, {"at_once": 1}, {"at_once": 3}, {"members": 2}):
        again = drawn(denoiser, device, precision, **other)
        assert again and all(torch.equal(each, whole[sample]) for sample, each in again.items()), other


@PRECISIONS
def test_a_volumes_bytes_do_not_hang_on_how_many_walk_together(device, precision):
    unet = UNetSettings(**ONE_LEVEL).build(dims=3, channels=1, outputs=1, image_channels=1)
    tiled = Tiled(DenoiserSettings().around(steep(unet, device), SCHEDULE), (8, 8, 8), batch=2)
    x, image = numbers(2, 1, 11, 8, 5).to(device), numbers(2, 1, 11, 8, 5, seed=1).to(device)
    with autocast(torch.device(device), precision):
        both = walk(tiled, DDPM(), x, SCHEDULE.times(2), Condition(image=image), SeededNoise([1, 2]))
        second = walk(tiled, DDPM(), x[1:], SCHEDULE.times(2), Condition(image=image[1:]), SeededNoise([2]))
    assert both.isfinite().all() and torch.equal(second, both[1:])


@pytest.mark.parametrize("solver", [DDPM(), DDIM(), DPMSolverPP()], ids=lambda solver: solver.kind)
def test_a_walk_on_a_device_is_that_on_the_cpu_to_rounding(device, solver):
    network = steep(UNetSettings(**ONE_LEVEL).build(dims=2, channels=1, outputs=1), find_device(device))
    x, ends = numbers(3, 1, 12, 10), []
    for place in (device, "cpu"):
        denoiser = DenoiserSettings(target="velocity").around(network.to(place), SCHEDULE)
        ends.append(walk(denoiser, solver, x.to(place), SCHEDULE.times(3), noise=lambda like, step: 0 * like).cpu())
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)


@PRECISIONS
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.kind)
def test_an_engines_evidence_is_a_samples_own(device, engine, precision):
    networks = networks_of(engine, device)
    for network in filter(None, (networks.denoiser.module(), networks.classifier)):
        shake(network.cpu(), torch.Generator().manual_seed(0), 0.05)
        network.to(device)
    image, order = numbers(3, 2, 9, 8).clamp(-1, 1).to(device), torch.tensor([2, 0, 2], device=device)
    with autocast(torch.device(device), precision):
        evidence = engine.score(image, networks, SeededNoise([11, 12, 13]), baselines=True)
        again = engine.score(image[order], networks, SeededNoise([13, 11, 13]), baselines=True)
    assert evidence.score.shape == (3, 1, 9, 8) and evidence.score.isfinite().all()
    assert torch.equal(again.score, evidence.score[order])
    for one, other in ((evidence.facts, again.facts), (evidence.baselines, again.baselines)):
        assert all(torch.equal(other[name], value[order]) for name, value in one.items())


def test_every_engine_is_asked():
    assert {type(engine) for engine in ENGINES} == set(get_args(get_args(AnyEngine)[0]))


def stream():
    """Batches that follow from their number alone."""
    for step in itertools.count():
        image, label = numbers(4, 2, 12, 10, seed=step).clamp(-1, 1), torch.tensor([0, 1, 0, 1])
        yield Batch(image, (image > 0).float() * 2 - 1, label)


def updates(name, device, precision, *, start=0, state=None):
    """{step: a copy of all that training moves} of four updates."""
    objective, settings = learning(name), FitSettings(steps=4, batch=4, warm_up_steps=0, learning_rate=1e-3)
    for model in objective.models.values():
        shake(model, torch.Generator().manual_seed(0), 0.05)
    learners = Learners(objective, settings, make_fabric(find_device(device), precision))
    if state is not None:
        learners.restore(state)
    batches = itertools.islice(stream(), start, None)
    (learner,) = learners.values()
    for progress in fit(objective, batches, settings, learner.fabric, learners=learners, start=start):
        yield progress.step, {name: value.detach().clone() for name, value in learners.state().items()}


@PRECISIONS
@pytest.mark.parametrize("name", LESSONS)
def test_a_training_goes_on_to_the_same_bytes(device, name, precision):
    whole = dict(updates(name, device, precision))
    assert any(not torch.equal(value, whole[1][key]) for key, value in whole[4].items() if ".model." in key)
    resumed = dict(updates(name, device, precision, start=2, state=whole[2]))
    assert list(resumed) == [3, 4]
    odd = [key for key, value in resumed[4].items() if not torch.equal(value, whole[4][key])]
    assert not odd and all(value.isfinite().all() for value in whole[4].values())


FEW_STEPS = ("training.steps=4", "training.validate_every=4", "training.save_every=2", "sampling.steps=1")


def test_a_run_killed_and_gone_on_with_then_used_in_shards(phantoms, device, tmp_path, monkeypatch):
    """The verbs on a device: the weights of a run that was killed, and masks of two shards, are those without either."""

    def train(out, resume=None):
        words = (*TINY, *FEW_STEPS)
        return train_seg(
            phantoms, config="quick/phantom", out=tmp_path / out, overrides=words, device=device, runs=tmp_path,
            mlflow=False, resume=resume,
        ).folder  # fmt: skip

    def killed(*arguments, **named):
        for progress in whole_fit(*arguments, **named):
            if progress.step == 3:
                raise KeyboardInterrupt
            yield progress

    whole, whole_fit = train("whole"), runner.fit
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "fit", killed)
        train("broken")
    broken = train("broken", resume="must")
    for name in ("best", "last"):
        one, other = (folder / "weights" / f"{name}.safetensors" for folder in (whole, broken))
        assert one.read_bytes() == other.read_bytes()

    def masks(out, **options):
        segment(data=phantoms, split="test", out=tmp_path / out, model=whole, device=device, **options)
        return {path.relative_to(tmp_path / out): path.read_bytes() for path in (tmp_path / out).rglob("*.nii.gz")}

    with phantoms.open(newline="") as file:
        cases = [row["case"] for row in csv.DictReader(file) if row["split"] == "test"]
    expected = masks("all")
    assert {name.parts[0] for name in expected} == set(cases) and len(cases) == 2
    masks("shards", shard=(1, 2))
    assert masks("shards", shard=(2, 2)) == expected
