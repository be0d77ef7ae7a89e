"""An ensemble's bytes depend on nothing but its seeds; its moments are those of its members."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from medseg_diff.diffusion import DDIM, DDPM, Denoiser, DPMSolverPP, NoiseSchedule, Prediction, SeededNoise
from medseg_diff.diffusion.exact import GaussianDenoiser
from medseg_diff.methods.plan import Plan, Sample
from medseg_diff.methods.sampled_segmentation import Ensemble, sample_masks, uncertainty_maps
from medseg_diff.networks.encoder import EncoderSettings
from medseg_diff.networks.prior import WithPriorSettings
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.seeds import seed_of
from medseg_diff.spaces import PLAIN, ImageSpace

SCHEDULE = NoiseSchedule(kind="cosine", length=1000, input_scale=0.3)
SLICES = (0, 2, 3, 4)  # slice 1 holds no brain


def denoiser_of(device="cpu", width=16, stem=2):
    """A steep random network: a little rounding would show."""
    settings = UNetSettings(
        width=width,
        multipliers=(1, 2),
        blocks=1,
        attention=(1,),
        groups=8,
        time_embedding="adaptive",
        resampling="residual",
        stem=stem,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = settings.build(dims=2, channels=1, outputs=1, image_channels=2)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.15 * torch.randn(parameter.shape)
    network = network.to(device, memory_format=torch.channels_last).eval()
    return Denoiser(network, SCHEDULE, target="logits")


def images_of(slices=5, size=(20, 18)):
    return torch.randn(slices, 2, *size, generator=torch.Generator().manual_seed(7))


def plan_of(*, members=3, network_batch=4, members_at_once=3, solver=None, steps=2):
    times = SCHEDULE.times(steps)
    return Plan(times, solver or DDPM(), members, network_batch, members_at_once)


def own_seed(z, member):
    return seed_of(0, "case", z, member)


def sampled(denoiser, plan, slices=SLICES, *, images=None, device="cpu", precision=torch.float32, seed=own_seed):
    """{place: probability}."""
    images = (images_of() if images is None else images).to(device)
    with torch.autocast(device, torch.bfloat16, enabled=precision == torch.bfloat16):
        return dict(sample_masks(denoiser, images, slices, plan, regions=1, seed_of=seed))


def same_bytes(one, other):
    """Whether the places that both have hold the same bytes."""
    common = one.keys() & other.keys()
    assert common
    return all(torch.equal(one[place], other[place]) for place in common)


def check_bytes(device, precision, width=16):
    """Members at once, order and subsets of slices: the same bytes for every (slice, member)."""
    denoiser = denoiser_of(device, width)
    first = sampled(denoiser, plan_of(), device=device, precision=precision)
    assert set(first) == {Sample(z, member) for z in SLICES for member in range(3)}
    for at_once in (1, 2):
        assert same_bytes(
            first, sampled(denoiser, plan_of(members_at_once=at_once), device=device, precision=precision)
        )
    assert same_bytes(first, sampled(denoiser, plan_of(), SLICES[::-1], device=device, precision=precision))
    assert same_bytes(first, sampled(denoiser, plan_of(), (3,), device=device, precision=precision))
    assert same_bytes(first, sampled(denoiser, plan_of(members=2), device=device, precision=precision))
    return first


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_bytes_do_not_depend_on_order_neighbours_or_members_at_once(precision):
    first = check_bytes("cpu", precision)
    values = torch.stack(list(first.values()))
    assert values.min() >= 0 and values.max() <= 1 and values.std() > 0.1  # the network does say something
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(first.values(), 2))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_so_it_is_with_two_threads(precision, two_threads):
    """Large enough that PyTorch's norms would split their sums between threads."""
    denoiser, images = denoiser_of(stem=1), images_of(size=(40, 36))
    plan, single = (plan_of(members=2, network_batch=5, members_at_once=at_once) for at_once in (2, 1))
    first = sampled(denoiser, plan, (0, 2, 3), images=images, precision=precision)
    other = sampled(denoiser, single, (3, 0), images=images, precision=precision)
    assert same_bytes(first, other)


@pytest.mark.parametrize("solver", [DDIM(), DDIM(eta=0.7), DPMSolverPP()], ids=str)
def test_so_it_is_with_every_solver(solver):
    denoiser = denoiser_of()
    first = sampled(denoiser, plan_of(solver=solver, steps=3, members=2), (0, 2, 3))
    assert same_bytes(first, sampled(denoiser, plan_of(solver=solver, steps=3, members=2, members_at_once=1), (3, 2)))


def test_members_see_mirrored_slices_by_turns_and_are_mirrored_back():
    denoiser, images = denoiser_of(), images_of()
    plan = dataclasses.replace(plan_of(members=6), mirrors=(0, 1))
    assert plan.views == [(), (0,), (1,), (0, 1)] and plan_of().views == [()]
    found = sampled(denoiser, plan)
    for member, axes in enumerate([[], [-2], [-1], [-2, -1], [], [-2]]):
        plain = sampled(denoiser, plan_of(members=6), images=images.flip(axes))
        for z in SLICES:
            torch.testing.assert_close(found[z, member], plain[z, member].flip(axes), atol=1e-5, rtol=0)
    few = dataclasses.replace(plan, members=3, members_at_once=1)
    assert len(few.views) == 3 and same_bytes(found, sampled(denoiser, few, SLICES[::-1]))


def test_another_network_batch_changes_rounding_only():
    denoiser = denoiser_of()
    one, many = (sampled(denoiser, plan_of(network_batch=batch)) for batch in (1, 32))
    assert one.keys() == many.keys()
    assert max(float((one[place] - many[place]).abs().max()) for place in one) < 1e-4


def test_another_seed_or_image_gives_another_mask():
    denoiser = denoiser_of()
    first = sampled(denoiser, plan_of())
    assert not same_bytes(first, sampled(denoiser, plan_of(), seed=lambda z, m: seed_of(1, "case", z, m)))
    assert not same_bytes(first, sampled(denoiser, plan_of(), images=images_of().flip(0)))


def test_the_order_of_work_and_the_number_of_batches():
    plan = plan_of(members=5, members_at_once=2, network_batch=4)
    work = plan.work((7, 3))
    assert work[:4] == [Sample(7, 0), Sample(7, 1), Sample(3, 0), Sample(3, 1)] and work[-2:] == [(7, 4), (3, 4)]
    assert sorted(work) == sorted(itertools.product((7, 3), range(5)))
    assert plan.batches((7, 3)) == 3 and plan.batches(()) == 0
    for z in (7, 3):  # what Ensemble.add relies on: the sums of a slice are taken in one order
        assert [member for slice_, member in work if slice_ == z] == list(range(5))


def watched(denoiser):
    """The shapes that the network is shown, as they come."""
    shapes = []
    denoiser.network.register_forward_pre_hook(lambda _, given: shapes.append((given[0].shape, given[2].image.shape)))
    return shapes


def test_the_network_always_sees_one_shape_and_progress_adds_up():
    denoiser, finished = denoiser_of(), []
    shapes, plan = watched(denoiser), plan_of(network_batch=5)
    list(sample_masks(denoiser, images_of(), SLICES, plan, regions=1, seed_of=own_seed, advance=finished.append))
    assert set(shapes) == {((5, 1, 20, 18), (5, 2, 20, 18))}
    assert finished == [5, 5, 2] and len(finished) == plan.batches(SLICES)


def test_nothing_to_sample_is_nothing():
    assert sampled(denoiser_of(), plan_of(), ()) == {}


def test_a_member_stays_as_soft_as_its_clean_mask():
    """Where every mask is 0.2 in [-1, 1], every member is 0.6, and so is their mean; cut at one half it would be 1."""
    exact = GaussianDenoiser(SCHEDULE, mean=0.2, deviation=0.0)
    members = sampled(exact, plan_of(solver=DDIM()))
    ensemble = Ensemble(5, 1, (20, 18), 3, "cpu")
    for place, probability in members.items():
        torch.testing.assert_close(probability, torch.full_like(probability, 0.6))
        ensemble.add(place, probability)
    torch.testing.assert_close(ensemble.mean[list(SLICES)], torch.full((4, 1, 20, 18), 0.6))


def test_a_member_begins_with_its_own_noise_which_is_none_of_its_steps():
    class Believing(GaussianDenoiser):
        """Takes what it sees for the clean mask."""

        def __call__(self, x_t, t, condition=None):
            return Prediction(x_t, torch.zeros_like(x_t))

    for (z, member), probability in sampled(Believing(SCHEDULE), plan_of(solver=DDIM(), steps=1)).items():
        begun = SeededNoise([own_seed(z, member)])(torch.empty(1, 1, 20, 18), 0)[0]  # the steps are 1, 2, …
        torch.testing.assert_close(probability, ((begun + 1) / 2).clamp(0, 1))


def members_of(members=6, slices=4, regions=2, size=(5, 7)):
    rng = np.random.default_rng(members)
    return rng.random((members, slices, regions, *size)).astype(np.float32) ** 2


def ensemble_of(values, order=None):
    members, slices, regions, *size = values.shape
    ensemble = Ensemble(slices, regions, size, members, "cpu")
    for member in order or range(members):
        for z in range(slices):
            ensemble.add(Sample(z, member), torch.from_numpy(values[member, z]))
    return ensemble


def test_moments_votes_and_volumes_are_those_of_numpy():
    values = members_of()
    ensemble = ensemble_of(values)
    np.testing.assert_allclose(ensemble.mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(ensemble.second_moment, (values**2).mean(0), rtol=1e-5)
    np.testing.assert_array_equal(ensemble.votes, (values > 0.5).sum(0))
    np.testing.assert_array_equal(ensemble.voxels, (values > 0.5).sum((1, 3, 4)))


def test_the_three_maps():
    values = members_of()
    ensemble = ensemble_of(values)
    maps = uncertainty_maps(ensemble.mean, ensemble.variance_between)
    np.testing.assert_allclose(maps["variance_between"], values.var(0), atol=1e-6)  # divided by n
    np.testing.assert_allclose(maps["variance_within"], (values * (1 - values)).mean(0), atol=1e-6)
    np.testing.assert_allclose(maps["variance_between"] + maps["variance_within"], maps["uncertainty"], atol=1e-7)
    m = values.mean(0)
    np.testing.assert_allclose(maps["uncertainty"], m * (1 - m), atol=1e-6)
    assert min(float(part.min()) for part in maps.values()) >= 0


def test_members_that_agree_have_no_spread_and_hard_ones_no_ambiguity():
    soft, hard = np.full((3, 1, 1, 2, 2), 0.3, np.float32), (members_of() > 0.5).astype(np.float32)
    agreed, certain = ensemble_of(soft), ensemble_of(hard)
    assert uncertainty_maps(agreed.mean, agreed.variance_between)["variance_between"].max() < 1e-6
    assert uncertainty_maps(certain.mean, certain.variance_between)["variance_within"].max() < 1e-6


def test_agreement_is_the_pooled_dice_of_all_pairs():
    values = members_of()
    inside = values > 0.5
    for region, found in enumerate(ensemble_of(values).agreement()):
        pairs = list(itertools.combinations(inside[:, :, region], 2))
        shared = sum(np.count_nonzero(one & other) for one, other in pairs)
        sizes = sum(np.count_nonzero(one) + np.count_nonzero(other) for one, other in pairs)
        assert found == pytest.approx(2 * shared / sizes)
    same = np.repeat(values[:1], 4, axis=0)
    assert ensemble_of(same).agreement() == pytest.approx([1.0, 1.0])
    assert ensemble_of(np.zeros_like(values)).agreement() == [1.0, 1.0]
    assert ensemble_of(values[:1]).agreement() == [1.0, 1.0]  # one member agrees with itself


def test_the_maps_kept_do_not_grow_with_the_members():
    def kept(members):
        parts = vars(ensemble_of(members_of(members=members))).values()
        return sum(part.numel() for part in parts if isinstance(part, torch.Tensor) and part.ndim > 2)

    assert kept(2) == kept(40) == 3 * 4 * 2 * 5 * 7
    denoiser = denoiser_of()
    shapes = watched(denoiser)
    next(sample_masks(denoiser, images_of(), SLICES, plan_of(network_batch=2), regions=1, seed_of=own_seed))
    assert len(shapes) == 2  # streamed: the first member comes after the two steps of the first batch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_on_a_gpu_bytes_do_not_depend_on_order_neighbours_or_members_at_once(precision):
    check_bytes("cuda", precision, width=64)


def test_what_a_network_need_see_once_it_sees_once_for_all_members():
    """The prior runs once a slice, in padded batches like everything else, and no byte depends on the members."""
    small = UNetSettings(width=8, multipliers=(1, 2), blocks=1, attention=(), groups=8, time_embedding="adaptive")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = WithPriorSettings(
            **small.model_dump(include=set(EncoderSettings.model_fields)), correction=small
        ).build(dims=2, channels=1, outputs=1, image_channels=2)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
    denoiser = Denoiser(network.to(memory_format=torch.channels_last).eval(), SCHEDULE, target="logits")
    seen = []
    network.prior.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    first = sampled(denoiser, plan_of(members=3), images=images_of(6), slices=(0, 1, 2, 4, 5))
    assert seen == [4, 4]  # five slices in batches of four, the second one padded
    assert same_bytes(first, sampled(denoiser, plan_of(members=2), images=images_of(6), slices=(5, 2)))


def test_masks_of_another_space_are_probabilities_all_the_same():
    """A denoiser that knows the mask, in [0, 1] and in [-1, 1]: the same probabilities come out."""
    truth = (images_of()[:, :1] > 0.3).float()

    class Knows:
        schedule = SCHEDULE

        def __init__(self, space):
            self.space, self.shown = space, []

        def __call__(self, x_t, t, condition):
            self.shown.append(condition.image)
            clean = self.space.encode(2 * truth[list(SLICES)] - 1)
            level = SCHEDULE.level(t)
            return Prediction(clean, (x_t - level.alpha * clean) / level.sigma)

    for space in (PLAIN, ImageSpace(scale=0.5, offset=0.5)):
        knows, plan = Knows(space), dataclasses.replace(plan_of(members=1), space=space)
        found = sampled(knows, plan)
        assert torch.equal(knows.shown[0], space.encode(images_of()[list(SLICES)]))
        for (z, _), probability in found.items():
            torch.testing.assert_close(probability, truth[z])


def test_the_variance_between_models_is_a_part_of_that_between_members():
    members = torch.rand(6, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))  # three models of two
    ensemble = Ensemble(2, 1, (4, 4), 6, "cpu")
    for model in range(3):
        for member in (2 * model, 2 * model + 1):
            for z in range(2):
                ensemble.add(Sample(z, member), members[member, z])
        ensemble.end_model(2)
    of_models = ensemble.variance_of_models
    assert of_models is not None
    maps = uncertainty_maps(ensemble.mean, ensemble.variance_between, of_models)
    expected = members.unflatten(0, (3, 2)).mean(1).var(0, correction=0)
    torch.testing.assert_close(maps["variance_models"], expected, atol=1e-6, rtol=0)
    assert (maps["variance_models"] <= maps["variance_between"]).all()
    assert Ensemble(2, 1, (4, 4), 6, "cpu").variance_of_models is None
