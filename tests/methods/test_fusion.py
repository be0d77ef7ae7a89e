"""Fusing members: majority by count, STAPLE against a known truth, and the cases where there is nothing to weigh."""

import pytest
import torch

from medseg_diff.methods.fusion import staple, vote


def ball(radius, shape=(16, 15, 14)):
    axes = torch.meshgrid(*(torch.arange(n) - n // 2 for n in shape), indexing="ij")
    return sum(axis**2 for axis in axes) <= radius**2


def test_a_majority_is_more_than_half():
    votes = torch.tensor([0, 1, 2, 3, 4], dtype=torch.int16)
    assert (vote(votes, 4) > 0.5).tolist() == [False, False, False, True, True]
    assert (vote(votes, 3) > 0.5).tolist() == [False, False, True, True, True]


def noisy(truth, share, seed):
    return truth ^ (torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed)) < share)


def test_staple_trusts_the_members_that_agree():
    truth = ball(5)
    good = [noisy(truth, 0.02, seed) for seed in range(3)]
    bad = [noisy(truth, 0.45, seed) for seed in range(3, 7)]
    masks = torch.stack(good + bad)
    wrong = ((staple(masks) > 0.5) != truth).float().mean()
    assert wrong < 0.01
    assert wrong < 0.2 * ((vote(masks.sum(0), len(masks)) > 0.5) != truth).float().mean()  # the majority is bad


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32])
def test_members_of_one_mind_are_right(kind):
    truth = ball(4)
    found = staple(truth.to(kind).repeat(3, 1, 1, 1))
    assert found.dtype == torch.float32 and torch.equal(found > 0.5, truth)


def test_with_nothing_to_weigh_the_answer_is_plain():
    truth, nothing = ball(4), torch.zeros(16, 15, 14, dtype=torch.bool)
    assert torch.equal(staple(truth[None]), truth.float())
    assert not staple(nothing.repeat(3, 1, 1, 1)).any()
    box = nothing.clone()
    box[2:5, 3:6, 4:7] = True
    assert torch.equal(staple(box.repeat(3, 1, 1, 1)) > 0.5, box)  # every voxel of the joint box is marked
    two = staple(torch.stack([nothing, truth]))
    assert two.isfinite().all() and two.min() >= 0 and two.max() <= 1


def test_two_dimensions_and_large_shifts():
    masks = torch.zeros(3, 12, 12, dtype=torch.uint8)
    masks[:2, 2:8, 2:8] = 1
    masks[2, 4:8, 2:8] = 1
    found = staple(masks) > 0.5
    assert found[4:8, 2:8].all() and not found[9:].any()
