"""The probability of a lesion is one: among scans with it, so many have one."""

import numpy as np
import pytest

from medseg_diff.metrics.presence import FEWEST, presence, score


def test_the_score_is_what_the_most_probable_tenth_of_a_millilitre_reaches():
    probability = np.zeros((8, 8, 8), np.float32)
    probability[0, 0, :4] = (0.9, 0.8, 0.7, 0.6)
    assert score(probability, voxel_ml=0.027) == pytest.approx(0.6)  # four voxels
    assert score(probability, voxel_ml=0.5) == pytest.approx(0.9)  # a voxel is more than that
    assert score(probability, voxel_ml=0.001) == 0
    assert score(probability[:2, :2, :2], voxel_ml=0.0001) == 0  # the whole map is less


@pytest.mark.parametrize(("diseased", "healthy"), [(15, 15), (60, 20), (10, 40)])
def test_it_happens_as_often_as_it_says(diseased, healthy):
    """Scores of both kinds overlap; over many draws the mean of what is said is the share that there is."""
    rng = np.random.default_rng(0)
    share = diseased / (diseased + healthy)
    said, true = [], []
    for _ in range(600):
        with_lesion, without = (rng.beta(*shape, size=n) for shape, n in (((4, 2), diseased), ((2, 4), healthy)))
        there = rng.random() < share
        found = presence(float(rng.beta(*(4, 2) if there else (2, 4))), with_lesion, without)
        assert 0 <= found.low <= found.probability <= found.high <= 1
        said.append(found)
        true.append(there)
    probability, low, high = np.array(said).T
    assert low.mean() - 0.02 < np.mean(true) < high.mean() + 0.02 and abs(probability.mean() - share) < 0.06
    for least, most in ((0.0, 0.5), (0.5, 0.8), (0.8, 1.01)):
        inside = (probability >= least) & (probability < most)
        assert low[inside].mean() - 0.06 < np.array(true)[inside].mean() < high[inside].mean() + 0.06


def test_a_higher_score_is_no_less_likely_and_few_patients_give_none():
    rng = np.random.default_rng(1)
    diseased, healthy = rng.beta(4, 2, size=20), rng.beta(2, 4, size=20)
    found = [presence(value, diseased, healthy).probability for value in np.linspace(0, 1, 21)]
    assert found == sorted(found) and found[0] < 0.2 and found[-1] > 0.8
    assert presence(0.5, diseased[: FEWEST - 1], healthy) is None and presence(0.5, diseased, healthy[:3]) is None
    assert presence(0.5, diseased[:FEWEST], healthy[:FEWEST]) is not None
