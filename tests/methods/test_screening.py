"""Slices of which one look says that they are empty are not sampled; the others keep every byte."""

import dataclasses

import pytest
import torch

from medseg_diff.diffusion import Condition, Denoiser, SeededNoise
from medseg_diff.methods.plan import Course
from medseg_diff.methods.sampled_segmentation import look_once, sample_masks
from medseg_diff.networks.encoder import EncoderSettings
from medseg_diff.networks.prior import WithPriorSettings
from medseg_diff.networks.unet import UNetSettings
from tests.methods.test_sampled_segmentation import SCHEDULE, denoiser_of, images_of, own_seed, plan_of, same_bytes

SLICES = (0, 1, 2, 4, 5)


def with_prior():
    small = UNetSettings(width=8, multipliers=(1, 2), blocks=1, attention=(), groups=8, time_embedding="adaptive")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = WithPriorSettings(
            **small.model_dump(include=set(EncoderSettings.model_fields)), correction=small
        ).build(dims=2, channels=1, outputs=1, image_channels=2)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
    return Denoiser(network.to(memory_format=torch.channels_last).eval(), SCHEDULE, target="logits")


@pytest.fixture(params=[with_prior, denoiser_of], ids=["prior", "first step"])
def denoiser(request):
    return request.param()


def drawn(denoiser, plan, slices=SLICES):
    course = Course()
    given = {"regions": 1, "seed_of": own_seed, "course": course}
    return list(sample_masks(denoiser, images_of(6), slices, plan, **given)), course


def plan_between(denoiser, plan, slices=SLICES):
    """The plan with a threshold that two of the slices stay below; and these."""
    looks = look_once(denoiser, images_of(6), slices, plan, regions=1, seed_of=own_seed).flatten(1).amax(1)
    low, _ = looks.sort()
    threshold = float(low[1] + low[2]) / 2
    below = {z for z, largest in zip(slices, looks.tolist(), strict=True) if largest < threshold}
    assert len(below) == 2
    return dataclasses.replace(plan, screen=threshold), below


def test_what_is_sampled_keeps_its_bytes_and_the_rest_is_the_look(denoiser):
    plan = plan_of(members=3, members_at_once=2)
    whole, _ = drawn(denoiser, plan)
    screening, below = plan_between(denoiser, plan)
    found, course = drawn(denoiser, screening)
    assert [sample for sample, _ in found] == [sample for sample, _ in whole] == plan.work(SLICES)
    assert set(course.screened) == below
    found, whole = dict(found), dict(whole)
    looks = dict(zip(SLICES, look_once(denoiser, images_of(6), SLICES, plan, regions=1, seed_of=own_seed), strict=True))
    for (z, member), probability in found.items():
        assert torch.equal(probability, looks[z] if z in below else whole[z, member])
        assert z not in below or not torch.equal(probability, whole[z, member])


def test_which_slices_are_screened_does_not_depend_on_company(denoiser):
    screening, below = plan_between(denoiser, plan_of(members=2))
    found = dict(drawn(denoiser, screening)[0])
    for slices in (SLICES[::-1], tuple(below), SLICES[1:4]):
        other, course = drawn(denoiser, screening, slices)
        assert set(course.screened) == below & set(slices) and same_bytes(found, dict(other))
    single = dataclasses.replace(screening, members_at_once=1)
    assert same_bytes(found, dict(drawn(denoiser, single)[0]))


def test_all_or_none_may_be_screened(denoiser):
    plan = dataclasses.replace(plan_of(members=2), mirrors=(0, 1))
    none, course = drawn(denoiser, dataclasses.replace(plan, screen=0.0))
    assert course.screened == () and same_bytes(dict(none), dict(drawn(denoiser, plan)[0]))
    every, course = drawn(denoiser, dataclasses.replace(plan, screen=2.0))
    assert course.screened == SLICES and course.walks == 0 and len(every) == 10
    assert drawn(denoiser, dataclasses.replace(plan, screen=0.5), ())[0] == []


def test_passes_fall_and_mirrored_slices_are_prepared_of_what_is_left():
    denoiser, seen, walked = with_prior(), [], []
    denoiser.network.prior.register_forward_hook(lambda *_: seen.append(1))
    denoiser.network.correction.register_forward_hook(lambda *_: walked.append(1))
    plan = dataclasses.replace(plan_of(members=3, network_batch=2, steps=2), mirrors=(0,))
    screening, _ = plan_between(denoiser, plan)
    seen.clear()
    _, course = drawn(denoiser, screening)
    assert course.once == len(seen) == 3 + 2  # five slices as they are, three of them mirrored, two at a time
    assert course.walks * 2 == len(walked) == 2 * 5  # nine samples
    other = denoiser_of()
    calls = []
    screening, _ = plan_between(other, plan)
    other.network.register_forward_hook(lambda *_: calls.append(1))
    _, course = drawn(other, screening)
    assert (course.once, course.walks) == (3, 5) and len(calls) == 3 + 2 * 5


def test_the_look_of_a_prior_is_what_it_says_and_another_look_is_the_first_step():
    images, plan = images_of(6), plan_of()
    denoiser = with_prior()
    look = look_once(denoiser, images, (3,), plan, regions=1, seed_of=own_seed)
    with torch.no_grad():
        said = denoiser.prepare(Condition(image=images[3:4])).mask
    torch.testing.assert_close(look, torch.sigmoid(said), atol=1e-5, rtol=0)
    plain = denoiser_of()
    look = look_once(plain, images, (3,), plan, regions=1, seed_of=own_seed)
    noise = SeededNoise([own_seed(3, 0)])(torch.empty(1, 1, 20, 18), 0)
    with torch.no_grad():
        clean = plain(noise, 1000, Condition(image=images[3:4])).clean
    torch.testing.assert_close(look, (clean + 1) / 2, atol=1e-5, rtol=0)
