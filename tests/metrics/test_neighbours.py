"""Neighbours among sets whose answer is known: of one kind, of another, and copied."""

import numpy as np
import pytest

from medseg_diff.metrics.neighbours import density_coverage, nearness
from medseg_diff.metrics.realism import Apart


def normals(count, *, features=4, scale=1.0, seed=0):
    return scale * np.random.default_rng(seed).standard_normal((count, features))


@pytest.mark.parametrize("neighbours", [3, 5])
def test_of_one_kind_density_is_one_and_coverage_what_chance_makes_it(neighbours):
    found = density_coverage(normals(1000), normals(1000, seed=1), neighbours=neighbours)
    assert found.density == pytest.approx(1, abs=0.08)
    assert found.coverage == pytest.approx(1 - 0.5**neighbours, abs=0.04)


def test_a_set_itself_is_dense_and_covers_everything():
    real = normals(50)
    found = density_coverage(real, real)
    assert found.coverage == 1 and found.density == pytest.approx(
        4 / 3
    )  # each in its own ball beside three neighbours'


def test_what_is_missing_is_not_covered_and_what_is_not_real_not_dense():
    real = normals(400)
    narrow, broad = density_coverage(normals(400, scale=0.3, seed=1), real), density_coverage(real * 20, real)
    assert narrow.density > 1.1 and narrow.coverage < 0.4
    assert broad.density < 0.1 and broad.coverage < 0.1
    with pytest.raises(ValueError, match="3 neighbours"):
        density_coverage(real, real[:3])


def test_as_many_of_a_fair_set_are_near_as_the_percentile_says():
    trained, held_out = normals(300, seed=1), normals(200, seed=2)
    shares = [nearness(Apart.of(normals(200, seed=10 + number), trained, held_out)).share for number in range(6)]
    assert np.mean(shares) == pytest.approx(0.05, abs=0.035)
    found = nearness(Apart.of(normals(200, seed=3), trained, held_out))
    assert found.low <= 0.05 <= found.high and found.low <= found.share <= found.high


def test_copies_are_near_and_named():
    trained, held_out = normals(100, seed=1), normals(100, seed=2)
    synthetic = np.concatenate([trained[[7, 3]], normals(38, seed=3)])
    found = nearness(Apart.of(synthetic, trained, held_out))
    assert found.nearest[:2].tolist() == [7, 3] and found.distance[:2].tolist() == [0, 0]
    all_copies = nearness(Apart.of(trained[::-1] + 1e-6, trained, held_out))
    assert (all_copies.share, all_copies.low, all_copies.high) == (1, 1, 1)
    assert all_copies.nearest.tolist() == list(range(99, -1, -1))


def test_the_same_seed_gives_the_same_interval():
    sets = Apart.of(normals(40, seed=1), normals(60, seed=2), normals(30, seed=3))
    once, again = nearness(sets, seed=4), nearness(sets, seed=4)
    assert (once.low, once.high) == (again.low, again.high)
