"""Rankings of voxels against scikit-learn, and what must hold at the edges."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from medseg_diff.metrics.anomaly import Pool, counts, rank


def scores_and_lesion(seed, voxels=4000, steps=None):
    generator = np.random.default_rng(seed)
    lesion = generator.random(voxels) < 0.1
    scores = (generator.normal(size=voxels) + 1.2 * lesion).astype(np.float32)
    return (np.round(scores * steps) / steps if steps else scores), lesion


@pytest.mark.parametrize("steps", [None, 1, 3])
def test_auroc_and_average_precision_are_scikit_learns_with_and_without_ties(steps):
    scores, lesion = scores_and_lesion(0, steps=steps)
    found = rank(scores, lesion)
    assert found.auroc() == pytest.approx(roc_auc_score(lesion, scores), abs=1e-12)
    assert found.average_precision() == pytest.approx(average_precision_score(lesion, scores), abs=1e-12)


def test_the_order_of_voxels_does_not_matter():
    scores, lesion = scores_and_lesion(1, steps=4)
    order = np.random.default_rng(2).permutation(len(scores))
    one, other = rank(scores, lesion), rank(scores[order], lesion[order])
    assert one.auroc() == other.auroc() and one.average_precision() == other.average_precision()


def test_dice_at_a_threshold_counts_what_is_above_it():
    scores, lesion = scores_and_lesion(3, steps=5)
    thresholds = [-9.0, -0.2, 0.0, 0.6, 1.0, 99.0]
    expected = []
    for threshold in thresholds:
        mask = scores > threshold
        expected.append(2 * (mask & lesion).sum() / (mask.sum() + lesion.sum()))
    np.testing.assert_allclose(rank(scores, lesion).dice_at(thresholds), expected)


def test_without_a_lesion_only_dice_is_defined():
    found = rank(np.array([0.1, 0.4]), np.array([False, False]))
    assert found.auroc() is None and found.average_precision() is None
    assert found.dice_at([0.2, 0.5]).tolist() == [0.0, 1.0]
    assert rank(np.array([0.1, 0.4]), np.array([True, True])).auroc() is None


def test_a_pool_of_volumes_ranks_like_all_voxels_at_once():
    pool = Pool()
    parts = [scores_and_lesion(seed, voxels=3000) for seed in range(4)]
    for scores, lesion in parts:
        pool.add(counts(scores * 1e-3, lesion))  # a pool needs no range beforehand
    scores, lesion = (np.concatenate(part) for part in zip(*parts, strict=True))
    found = pool.ranking()
    assert found.auroc() == pytest.approx(roc_auc_score(lesion, scores), abs=1e-3)
    assert found.average_precision() == pytest.approx(average_precision_score(lesion, scores), abs=2e-3)
    assert found.voxels[-1] == len(scores) and found.hits[-1] == lesion.sum()


def test_a_pool_orders_negative_numbers_and_both_zeros():
    pool = Pool()
    pool.add(counts(np.array([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0]), np.array([False, True, False, False, False, True])))
    assert len(pool.ranking().scores) == 5
    assert pool.ranking().auroc() == pytest.approx(5 / 8)
    assert Pool().ranking() is None
