"""Members that are not needed are not drawn; those that are drawn are those that would have been drawn anyway."""

import dataclasses
import itertools

import pytest
import torch

from medseg_diff.methods.adaptive import Look, Settling, rounds_of, stops_of
from medseg_diff.methods.plan import Course
from medseg_diff.methods.sampled_segmentation import Ensemble, sample_masks
from medseg_diff.methods.tiled import Tiled
from tests.methods.test_sampled_segmentation import SLICES, denoiser_of, images_of, own_seed, plan_of, same_bytes


@pytest.mark.parametrize("views", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("members", [1, 3, 4, 5, 10, 30, 1000])
def test_no_view_counts_more_than_another_and_every_stop_has_a_half(members, views):
    stops, rounds = stops_of(members, views), rounds_of(members, views)
    assert stops[-1] == members and stops == sorted(set(stops))
    assert all(stop % views == 0 and stop >= 4 for stop in stops[:-1])
    ends = [each.stop for each in rounds]
    assert [number for each in rounds for number in each] == list(range(members))
    assert all(2 * (stop // 2) == stop and stop // 2 in ends for stop in stops[:-1]) and len(rounds) < 60


def test_the_stops_of_ten_members():
    assert stops_of(10, 1) == [4, 6, 8, 10] and stops_of(10, 4) == [4, 8, 10] and stops_of(4, 4) == [4]
    assert rounds_of(10, 4) == [range(2), range(2, 4), range(4, 8), range(8, 10)]


def maps_of(*levels):
    """One region of 1000 voxels: so many hundreds of them at each probability."""
    return torch.cat([torch.full((100,), level) for level in levels]).view(1, 1, 10, -1)


def test_what_is_compared_is_half_of_the_members():
    settling = Settling([0.5], voxel_ml=0.1)
    half, whole = maps_of(0.9, 0.9, 0.9, *[0.0] * 7), maps_of(0.9, 0.9, 0.2, *[0.0] * 7)
    assert settling.look(2, half) is None and settling.look(3, half) is None  # of 1 nothing was seen
    found = settling.look(4, whole)
    assert found.members == 4 and found.dice == pytest.approx([2 * 2 / (3 + 2)])
    assert found.uncertainty == [0.0]  # as much above 0.05, and nothing above 0.95
    same = settling.look(6, half)  # against 3, not against 4
    assert same.dice == [1.0] and settling.looks == [found, same]
    assert settling.look(9, half) is None  # 4 is no half of it


def test_a_region_that_is_not_settled_or_a_volume_that_is_not_is_enough_to_go_on():
    assert Look(4, [0.96, 0.95], [0.0, 0.05]).is_settled(0.05)
    assert not Look(4, [0.96, 0.94], [0.0, 0.0]).is_settled(0.05)
    assert not Look(4, [1.0, 1.0], [0.0, 0.06]).is_settled(0.05)
    settling = Settling([0.5], voxel_ml=0.1)
    settling.look(2, maps_of(0.6, 0.0))
    found = settling.look(4, maps_of(0.99, 0.0))  # the same mask, but sure of itself
    assert found.dice == [1.0] and found.uncertainty[0] > 1
    empty = Settling([0.5], voxel_ml=0.1)
    empty.look(2, torch.zeros(1, 1, 4, 4))
    assert empty.look(4, torch.zeros(1, 1, 4, 4)).is_settled(1e-9)


def adaptively(plan, enough=lambda members: False, denoiser=None, slices=SLICES):
    course = Course(enough)
    given = {"regions": 1, "seed_of": own_seed, "course": course}
    return dict(sample_masks(denoiser or denoiser_of(), images_of(), slices, plan, **given)), course


def test_rounds_change_no_byte_and_an_end_leaves_out_the_last_members():
    plan = plan_of(members=8, members_at_once=8)
    whole, _ = adaptively(plan)
    rounds = dataclasses.replace(plan, tolerance=0.1)
    asked = []
    drawn, course = adaptively(rounds, lambda members: asked.append(members))
    assert list(drawn) != list(whole) and drawn.keys() == whole.keys() and same_bytes(drawn, whole)
    assert asked == [2, 3, 4, 6, 8] and course.members == 8
    some, course = adaptively(dataclasses.replace(rounds, members_at_once=1), lambda members: members == 4)
    assert {member for _, member in some} == {0, 1, 2, 3} and same_bytes(some, whole)
    assert course.members == 4 and len(some) == 4 * len(SLICES)


def test_members_of_a_slice_come_in_order_whatever_is_done_at_once():
    for at_once in (1, 3, 8):
        plan = dataclasses.replace(plan_of(members=8, members_at_once=at_once), tolerance=0.1)
        work = [sample for members in plan.rounds for sample in plan.work(SLICES, members)]
        for z in SLICES:
            assert [member for slice_, member in work if slice_ == z] == list(range(8))
        assert sorted(work) == sorted(itertools.product(SLICES, range(8)))


def test_what_is_counted_is_what_the_network_was_asked():
    denoiser, calls = denoiser_of(), []
    denoiser.network.register_forward_hook(lambda *_: calls.append(1))
    plan = dataclasses.replace(plan_of(members=8, steps=2, network_batch=3), tolerance=0.1)
    _, course = adaptively(plan, lambda members: members == 4, denoiser)
    assert course.walks * 2 == len(calls) == 2 * (3 + 2 + 2)  # 4 slices of 2, 1 and 1 members
    calls.clear()
    _, course = adaptively(plan, denoiser=denoiser)
    assert course.walks * 2 == len(calls) == 2 * plan.batches(SLICES)


def test_a_volume_in_tiles_comes_in_rounds_too():
    tiled, plan = Tiled(denoiser_of(), (16, 16), batch=4), plan_of(members=6, members_at_once=6)
    whole, _ = adaptively(plan, denoiser=tiled, slices=(0,))
    some, course = adaptively(
        dataclasses.replace(plan, tolerance=0.1), lambda members: members == 4, denoiser=tiled, slices=(0,)
    )
    assert len(some) == course.members == 4 and same_bytes(some, whole)


def test_an_ensemble_that_ends_early_is_that_of_fewer_members():
    drawn, _ = adaptively(plan_of(members=4, members_at_once=4))
    cut, plain = (Ensemble(5, 1, (20, 18), members, "cpu", keep_masks=True) for members in (8, 4))
    for sample, probability in drawn.items():
        cut.add(sample, probability)
        plain.add(sample, probability)
    assert torch.equal(cut.mean_of(4), plain.mean)
    cut.end_at(4)
    for name in ("mean", "second_moment", "voxels", "masks"):
        assert torch.equal(getattr(cut, name), getattr(plain, name))
    assert cut.agreement() == plain.agreement()
