"""Samples that start from a given mask: exact answers of Gaussian denoisers, and that nothing but mask and seed decides."""

import dataclasses

import pytest
import torch

from medseg_diff.diffusion import DDIM, DDPM, SeededNoise
from medseg_diff.diffusion.exact import GaussianDenoiser, ddim_gain
from medseg_diff.methods.plan import Plan
from medseg_diff.methods.sampled_segmentation import sample_masks
from medseg_diff.methods.tiled import Tiled
from medseg_diff.seeds import seed_of
from medseg_diff.spaces import ImageSpace
from tests.methods.test_sampled_segmentation import SCHEDULE, SLICES, denoiser_of, images_of, own_seed, same_bytes

EXACT = GaussianDenoiser(SCHEDULE, mean=-0.4, deviation=0.6)


def masks_of(slices=5, regions=1, size=(20, 18)):
    return torch.rand(slices, regions, *size, generator=torch.Generator().manual_seed(3)) > 0.7


def plan_from(t, *, steps=2, members=3, members_at_once=3, solver=None, network_batch=4):
    times = SCHEDULE.times(steps, start=t) if t else [0]
    return Plan(times, solver or DDPM(), members, network_batch, members_at_once)


def sampled(denoiser, plan, slices=SLICES, *, images=None, start=None):
    given = {"regions": 1, "seed_of": own_seed, "start": masks_of() if start is None else start}
    return dict(sample_masks(denoiser, images_of() if images is None else images, slices, plan, **given))


def begun(z, member, t):
    """x_t of a member: alpha x_0 + sigma noise, the noise that it begins with where no mask is given."""
    noise = SeededNoise([own_seed(z, member)])(torch.empty(1, 1, 20, 18), 0)[0]
    alpha, sigma = SCHEDULE.level(t)
    return alpha * (2 * masks_of()[z].float() - 1) + sigma * noise


@pytest.mark.parametrize("mirrors", [(), (0, 1)], ids=str)
def test_at_time_0_the_mask_itself_comes_out(mirrors):
    plan = dataclasses.replace(plan_from(0), mirrors=mirrors)
    for (z, _), probability in sampled(denoiser_of(), plan).items():
        assert torch.equal(probability, masks_of()[z].float())


@pytest.mark.parametrize("t", [1, 100, 500, 1000])
def test_a_walk_begins_with_the_mask_noised_to_its_first_time(t):
    """DDIM with the exact denoiser of N(m, s²) is one linear map of where it begins."""
    plan = plan_from(t, steps=min(t, 10), solver=DDIM())
    alpha, gain = SCHEDULE.level(t).alpha, ddim_gain(EXACT, list(plan.times))
    for (z, member), probability in sampled(EXACT, plan).items():
        clean = EXACT.mean + gain * (begun(z, member, t) - alpha * EXACT.mean)
        torch.testing.assert_close(probability, ((clean + 1) / 2).clamp(0, 1).float(), atol=1e-5, rtol=0)


def test_the_farther_it_is_noised_the_less_of_the_mask_is_left():
    """One step of the exact denoiser draws the mask towards the mean by alpha² s² / (alpha² s² + sigma²), on average."""
    left = []
    for t in (1, 100, 250, 500, 750, 1000):
        alpha, sigma = SCHEDULE.level(t)
        kept = float(alpha**2 * 0.09 / (alpha**2 * 0.09 + sigma**2))
        exact, plan = GaussianDenoiser(SCHEDULE, mean=0.0, deviation=0.3), plan_from(t, steps=1, members=40)
        found = sampled(exact, dataclasses.replace(plan, members_at_once=40))
        inside = torch.cat([2 * values[masks_of()[z]] - 1 for (z, _), values in found.items()])
        assert float(inside.mean()) == pytest.approx(kept, abs=0.01)
        left.append(kept)
    assert left == sorted(left, reverse=True) and left[0] > 0.9 and left[-1] < 1e-3


def test_a_mask_is_mirrored_as_its_slice_is():
    denoiser, plan = denoiser_of(), dataclasses.replace(plan_from(400, members=4), mirrors=(0, 1))
    found = sampled(denoiser, plan)
    for member, axes in enumerate([[], [-2], [-1], [-2, -1]]):
        turned = {"images": images_of().flip(axes), "start": masks_of().flip(axes)}
        plain = sampled(denoiser, plan_from(400, members=4), **turned)
        for z in SLICES:
            torch.testing.assert_close(found[z, member], plain[z, member].flip(axes), atol=1e-5, rtol=0)


def test_bytes_do_not_depend_on_order_neighbours_or_members_at_once():
    denoiser = denoiser_of()
    first = sampled(denoiser, plan_from(400))
    for at_once in (1, 2):
        assert same_bytes(first, sampled(denoiser, plan_from(400, members_at_once=at_once), SLICES[::-1]))
    assert same_bytes(first, sampled(denoiser, plan_from(400, members=2), (3,)))
    assert not same_bytes(first, sampled(denoiser, plan_from(400), start=~masks_of()))
    assert not same_bytes(first, sampled(denoiser, plan_from(500)))


def test_only_the_mask_of_its_own_slice_counts():
    denoiser, other = denoiser_of(), masks_of()
    other[2] = ~other[2]
    first, changed = sampled(denoiser, plan_from(400)), sampled(denoiser, plan_from(400), start=other)
    assert {place.slice for place in first if not torch.equal(first[place], changed[place])} == {2}


def test_it_is_noised_in_the_space_of_the_recipe():
    space = ImageSpace(scale=0.5, offset=0.5)
    seen = []

    class Watching(GaussianDenoiser):
        def __call__(self, x_t, t, condition=None):
            seen.append(x_t)
            return super().__call__(x_t, t)

    sampled(Watching(SCHEDULE), dataclasses.replace(plan_from(300, steps=1, network_batch=12), space=space))
    (x_t,) = seen
    alpha, sigma = SCHEDULE.level(300)
    noise = SeededNoise([own_seed(z, member) for z in SLICES for member in range(3)])(torch.empty(12, 1, 20, 18), 0)
    x_0 = masks_of()[list(SLICES)].repeat_interleave(3, dim=0).double()  # in {0, 1}
    torch.testing.assert_close(x_t, (alpha * x_0 + sigma * noise).float())


def test_volumes_in_tiles_start_from_whole_masks():
    denoiser = Tiled(denoiser_of(), (12, 12), batch=3)
    given = {"regions": 1, "seed_of": lambda z, member: seed_of(0, "case", "volume", member), "start": masks_of()}

    def walked(at_once, t=400, network_batch=2):
        plan = plan_from(t, members_at_once=at_once, network_batch=network_batch)
        return dict(sample_masks(denoiser, images_of(), [0], plan, **given))

    first = walked(3)
    assert same_bytes(first, walked(1))
    for sample, probability in walked(2, network_batch=1).items():  # another batch changes rounding alone
        torch.testing.assert_close(probability, first[sample], atol=1e-5, rtol=0)
    assert all(torch.equal(probability, masks_of()[0].float()) for probability in walked(3, t=0).values())
