"""Where a member's mask ends: as often inside as the probability says, smooth, and decided by the seed alone."""

import numpy as np
import pytest
import torch

from medseg_diff.methods.cuts import SmoothNoise, SpreadCut, recentred
from medseg_diff.methods.plan import Sample
from medseg_diff.methods.sampled_segmentation import Ensemble

SIZE, SPACING = (40, 36, 30), (2.0, 2.0, 1.5)


def thresholds(cut, members=10, seed=3):
    surfaces = cut.surfaces(members, SIZE, SPACING, seed)
    return torch.stack([surfaces.whole(member) for member in range(members)])


def test_alone_the_members_share_the_levels_evenly():
    dealt = thresholds(SpreadCut(own=1.0), 5).flatten()
    assert sorted(dealt.tolist()) == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert thresholds(SpreadCut(own=1.0), 1).item() == 0.5
    assert len({tuple(thresholds(SpreadCut(own=1.0), 5, seed).flatten().tolist()) for seed in range(20)}) > 10


@pytest.mark.parametrize("own", [0.0, 0.25, 1.0])
def test_a_voxel_is_inside_as_often_as_its_probability_says(own):
    cut = SpreadCut(own=own, length_mm=4.0)
    surfaces = torch.cat([thresholds(cut, 10, seed) for seed in range(6)])
    for probability in (0.1, 0.5, 0.8):
        assert float((surfaces < probability).float().mean()) == pytest.approx(probability, abs=0.03)


def test_surfaces_are_smooth_over_their_length_and_differ_between_members():
    near, far = (thresholds(SpreadCut(own=0.0, length_mm=length), 2)[0] for length in (4.0, 16.0))
    assert far.diff(dim=0).abs().mean() < 0.5 * near.diff(dim=0).abs().mean()
    one, other = thresholds(SpreadCut(), 2)
    assert not torch.equal(one, other) and torch.equal(one, thresholds(SpreadCut(), 2)[0])
    assert not torch.equal(one, thresholds(SpreadCut(), 2, seed=4)[0])


@pytest.mark.parametrize("cut", [SpreadCut(own=1.0), SpreadCut(), SpreadCut(length_mm=1.0)])
def test_a_plane_is_that_of_the_whole(cut):
    surfaces = cut.surfaces(2, SIZE, SPACING, 3)
    for z in (0, 7, SIZE[2] - 1):
        plane, whole = surfaces.plane(1, z), surfaces.whole(1)
        torch.testing.assert_close(plane, whole[..., z if whole.shape[2] > 1 else 0])


@pytest.mark.parametrize("deviations", [(0.4, 0.4), (3.0, 1.0), (4.0, 5.0, 2.0), (9.0,)])
def test_smooth_noise_has_mean_0_and_variance_1_and_its_own_length(deviations):
    """Neighbours at a distance d are correlated by exp(-d² / 4 s²), edges no less than the middle."""
    size = (60, 50, 20)[: len(deviations)]
    drawn = torch.stack([SmoothNoise.drawn(size, deviations, seed).whole() for seed in range(150)])
    assert drawn.shape[1:] == size and float(drawn.mean()) == pytest.approx(0, abs=0.1)
    assert float(drawn.var()) == pytest.approx(1, abs=0.12)
    assert float(drawn[:, 0].var()) == pytest.approx(1, abs=0.3)
    distance = max(2, round(deviations[0]))
    along = (drawn[:, distance:] * drawn[:, :-distance]).mean()
    assert float(along) == pytest.approx(np.exp(-(distance**2) / (4 * deviations[0] ** 2)), abs=0.12)


def test_members_are_redrawn_from_the_mean_of_all_at_their_surfaces():
    random = torch.Generator().manual_seed(0)
    drawn, surfaces = torch.rand(2, 1, 1, 50, generator=random), torch.rand(2, 1, 50, generator=random)
    ensemble = Ensemble(2, 1, (1, 50), 2, "cpu", keep_masks=True)
    for member in range(2):
        ensemble.add(Sample(0, member), drawn[member])
    mean = drawn.mean(0)
    assert torch.equal(ensemble.masks[0, 0].bool(), drawn[0] > 0.5)
    ensemble.redraw([0], lambda sample: surfaces[sample.member])
    for member in range(2):
        mask = ensemble.masks[member, 0].bool()
        assert torch.equal(mask, mean > surfaces[member]) and int(ensemble.voxels[member]) == int(mask.sum())
        assert torch.equal(recentred(mean, surfaces[member]) > 0.5, mask)
    assert torch.equal(ensemble.votes[0], ensemble.masks[:, 0].sum(0, dtype=torch.int16))
    assert torch.equal(ensemble.mean[0], mean)  # wherever it is cut, the probability is what it was
    half = torch.tensor(0.5)
    torch.testing.assert_close(recentred(mean, half), mean)
    assert recentred(torch.tensor([0.0, 1.0]), torch.tensor(0.9)).tolist() == [0, 1]
