"""From a map to findings, on maps whose answer is known."""

import numpy as np
import pytest
import torch

from medseg_diff.methods.anomaly.normative import (
    DEPTHS_MM,
    AnomalyFindings,
    Floor,
    above_floor,
    cleaned,
    depth_of,
    otsu,
    top_mean,
)
from medseg_diff.methods.components import LESION_COLUMNS, find_lesions

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


def test_the_floor_of_a_healthy_brain_leaves_nothing_of_it(box):
    depth_mm = depth_of(box, (2.0, 2.0, 2.0))
    healthy = np.where(box[0].numpy(), 1.0 / (1 + depth_mm), 0).astype(np.float32)
    inside = box[0].numpy()
    floor = Floor.measured(healthy[inside], depth_mm[inside])
    left = above_floor(torch.from_numpy(healthy)[None], depth_mm, PLAIN, floor)[0].numpy()
    assert abs(left[inside]).max() < 0.1 < healthy[inside].max()
    assert floor.score[1] > floor.score[2] > floor.score[3]
    assert Floor.from_facts(floor.facts) == floor and len(floor.score) == len(DEPTHS_MM)


def test_a_bin_of_few_voxels_takes_the_mean_of_all():
    scores = np.array([2.0] * 100 + [50.0], dtype=np.float32)
    depth_mm = np.array([1.0] * 100 + [30.0], dtype=np.float32)
    floor = Floor.measured(scores, depth_mm)
    assert floor.score[0] == 2.0 and floor.score[-1] == pytest.approx(scores.mean(), abs=1e-5)


def test_a_scan_that_came_back_worse_everywhere_is_brought_to_the_level_of_the_others(box):
    depth_mm, inside = depth_of(box, (1.0, 1.0, 1.0)), box[0].numpy()
    scores = np.random.default_rng(0).normal(0.2, 0.02, depth_mm.shape).astype(np.float32)
    floor = Floor.measured(scores[inside], depth_mm[inside])
    level = floor.level_of(1.7 * scores[inside], depth_mm[inside])
    assert level == pytest.approx(1.7, rel=0.02)
    here = above_floor(torch.from_numpy(scores)[None], depth_mm, PLAIN, floor)
    there = above_floor(torch.from_numpy(1.7 * scores)[None], depth_mm, PLAIN, floor, level=level)
    assert abs(here - there)[0].numpy()[inside].max() < 0.01


def test_the_level_is_not_moved_by_a_lesion_nor_by_what_was_not_healed_and_never_raises_a_map(box):
    depth_mm, inside = depth_of(box, (1.0, 1.0, 1.0)), box[0].numpy()
    scores = np.full(int(inside.sum()), 0.2, dtype=np.float32)
    depths = depth_mm[inside]
    floor = Floor.measured(scores, depths)
    lesion = np.where(np.arange(len(scores)) < len(scores) // 3, np.float32(5.0), scores)
    assert floor.level_of(lesion, depths) == pytest.approx(1.0, abs=1e-5)
    half = np.where(np.arange(len(scores)) % 3 > 0, 0, 2 * scores)  # two slices in three were left out
    assert floor.level_of(half, depths) == pytest.approx(2.0, abs=1e-5)
    assert floor.level_of(0.1 * scores, depths) == 1.0
    assert Floor((0.0,), (0.0,)).level_of(scores, depths) == 1.0


def test_the_rim_says_neither_more_nor_less_than_a_healthy_brain(box):
    score, depth_mm = torch.full(box.shape, 5.0), depth_of(box, (1, 1, 1))
    found = above_floor(score, depth_mm, PLAIN.but(rim_mm=2.0), None)[0].numpy()
    assert (found[(depth_mm <= 2)] == 0).all() and (found[depth_mm > 2] == 5).all()


def test_a_median_takes_away_single_voxels_and_leaves_blocks(box):
    score = torch.zeros(box.shape)
    score[0, 5, 5, 5] = 9.0
    score[0, 10:15, 10:15, 4:9] = 1.0
    found = cleaned(score, box, PLAIN.but(median=3), spacing_mm=(1, 1, 1))
    assert found[0, 5, 5, 5] == 0 and found[0, 12, 12, 6] == 1


def test_lesions_are_found_measured_and_placed():
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = [90, -60, 10]
    score = np.zeros((20, 20, 12), dtype=np.float32)
    score[2:6, 3:7, 4:8] = 1.0  # 64 voxels of 12 mm³
    score[4, 4, 5] = 3.0
    score[12:14, 12:14, 2:4] = 2.0  # 8 voxels
    score[18, 18, 10] = 9.0  # one voxel: too small
    score[10, 2, 2] = 9.0  # outside the brain
    brain = np.ones(score.shape, dtype=bool)
    brain[10, 2, 2] = False
    found = find_lesions(score, brain, threshold=0.5, smallest_ml=0.05, affine=affine)
    assert found.mask.sum() == 72 and found.removed == 1
    rows = [dict(zip(LESION_COLUMNS, row, strict=True)) for row in found.rows]
    assert [row["volume_ml"] for row in rows] == [0.768, 0.096] and found.volume_ml == 0.864
    assert (rows[0]["x_mm"], rows[0]["y_mm"], rows[0]["z_mm"]) == (83.0, -51.0, 26.5)  # the middle, in RAS
    assert rows[0]["peak"] == 3.0 and rows[0]["mean"] == pytest.approx(1 + 2 / 64, abs=1e-4)
    assert not find_lesions(score, brain, threshold=10.0, smallest_ml=0, affine=affine).mask.any()


def test_lesions_of_one_size_keep_their_order_however_the_voxels_lie():
    score, affine = np.zeros((20, 20, 20), np.float32), np.diag([2.0, 2.0, 2.0, 1.0])
    for number, corner in enumerate([(2, 12, 3), (12, 3, 12), (4, 4, 14)]):
        score[tuple(slice(start, start + 3) for start in corner)] = 1 + number
    turned = affine @ np.array([[-1, 0, 0, 19], [0, -1, 0, 19], [0, 0, -1, 19], [0, 0, 0, 1]])
    tables = [
        find_lesions(each, each > -1, threshold=0.5, smallest_ml=0.1, affine=space).rows
        for each, space in ((score, affine), (score[::-1, ::-1, ::-1].copy(), turned))
    ]
    assert tables[0] == tables[1] and [row[0] for row in tables[0]] == [1, 2, 3]


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
