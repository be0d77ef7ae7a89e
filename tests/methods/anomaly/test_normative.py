"""From a map to findings, on maps whose answer is known."""

import numpy as np
import pytest
import torch

from medseg_diff.methods.anomaly.normative import (
    DEPTHS_MM,
    AnomalyFindings,
    NormativeMean,
    above_normal,
    cleaned,
    depth_of,
    otsu,
    top_mean,
)

PLAIN = AnomalyFindings(smoothing_mm=0, rim_mm=0)


@pytest.fixture
def box():
    """A brain [1, 20, 20, 12] with two voxels around it."""
    brain = torch.zeros(1, 20, 20, 12, dtype=torch.bool)
    brain[:, 2:-2, 2:-2, 2:-2] = True
    return brain


def test_depth_is_in_millimetres_and_the_edge_of_the_volume_is_an_edge(box):
    depth_mm = depth_of(box, (1.0, 1.0, 3.0))
    assert depth_mm[~box[0].numpy()].max() == 0
    assert depth_mm[2, 10, 6] == 1 and depth_mm[10, 10, 2] == 3 and depth_mm[5, 10, 6] == 4
    assert depth_of(torch.ones(1, 9, 9, 9, dtype=torch.bool), (1, 1, 1))[4, 4, 4] == 5


def test_the_normative_mean_of_a_healthy_brain_leaves_nothing_of_it(box):
    depth_mm = depth_of(box, (2.0, 2.0, 2.0))
    healthy = np.where(box[0].numpy(), 1.0 / (1 + depth_mm), 0).astype(np.float32)
    inside = box[0].numpy()
    normal = NormativeMean.measured(healthy[inside], depth_mm[inside])
    left = above_normal(healthy, depth_mm, normal, rim_mm=0)
    assert abs(left[inside]).max() < 0.1 < healthy[inside].max()
    assert normal.score[1] > normal.score[2] > normal.score[3]
    assert len(normal.score) == len(DEPTHS_MM)


def test_a_bin_of_few_voxels_takes_the_mean_of_all():
    scores = np.array([2.0] * 100 + [50.0], dtype=np.float32)
    depth_mm = np.array([1.0] * 100 + [30.0], dtype=np.float32)
    normal = NormativeMean.measured(scores, depth_mm)
    assert normal.score[0] == 2.0 and normal.score[-1] == pytest.approx(scores.mean(), abs=1e-5)


def test_a_scan_that_came_back_worse_everywhere_has_its_gain_taken_off(box):
    depth_mm, inside = depth_of(box, (1.0, 1.0, 1.0)), box[0].numpy()
    scores = np.random.default_rng(0).normal(0.2, 0.02, depth_mm.shape).astype(np.float32)
    normal = NormativeMean.measured(scores[inside], depth_mm[inside])
    gain = normal.gain_of(1.7 * scores[inside], depth_mm[inside])
    assert gain == pytest.approx(1.7, rel=0.02)
    here = above_normal(scores, depth_mm, normal, rim_mm=0)
    there = above_normal(1.7 * scores, depth_mm, normal, rim_mm=0, gain=gain)
    assert abs(here - there)[inside].max() < 0.01


def test_the_gain_is_not_moved_by_a_lesion_nor_by_a_map_that_is_mostly_zero_and_never_raises_a_map(box):
    depth_mm, inside = depth_of(box, (1.0, 1.0, 1.0)), box[0].numpy()
    scores = np.full(int(inside.sum()), 0.2, dtype=np.float32)
    depths = depth_mm[inside]
    normal = NormativeMean.measured(scores, depths)
    lesion = np.where(np.arange(len(scores)) < len(scores) // 3, np.float32(5.0), scores)
    assert normal.gain_of(lesion, depths) == pytest.approx(1.0, abs=1e-5)
    signed = np.random.default_rng(0).normal(0, 1, len(scores)).astype(np.float32).clip(min=0)  # map: positive
    assert NormativeMean.measured(signed, depths).gain_of(signed, depths) == 1.0
    assert normal.gain_of(0.1 * scores, depths) == 1.0
    assert NormativeMean(depth_mm=(0.0,), score=(0.0,)).gain_of(scores, depths) == 1.0


def test_the_rim_says_neither_more_nor_less_than_a_healthy_brain(box):
    depth_mm = depth_of(box, (1, 1, 1))
    found = above_normal(np.full(depth_mm.shape, 5, np.float32), depth_mm, None, rim_mm=2.0)
    assert (found[(depth_mm <= 2)] == 0).all() and (found[depth_mm > 2] == 5).all()


def test_a_median_takes_away_single_voxels_and_leaves_blocks(box):
    score = torch.zeros(box.shape)
    score[0, 5, 5, 5] = 9.0
    score[0, 10:15, 10:15, 4:9] = 1.0
    found = cleaned(score, box, PLAIN.but(median=3), spacing_mm=(1, 1, 1))
    assert found[0, 5, 5, 5] == 0 and found[0, 12, 12, 6] == 1


def test_the_score_of_a_volume_is_the_mean_of_its_highest_hundredth():
    values = np.zeros(1000, dtype=np.float32)
    values[:10] = np.arange(10)
    assert top_mean(values) == 4.5
    assert top_mean(values[:5]) == 4.0 and top_mean(values[:0]) == 0.0


def test_otsu_parts_two_humps_and_marks_nothing_in_a_constant_map():
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(0, 0.1, 900), generator.normal(2, 0.1, 100)]).astype(np.float32)
    assert 0.3 < otsu(values) < 1.8
    assert otsu(np.full(10, 0.3, dtype=np.float32)) == float("inf")
