"""Measures of two sets of images, against answers that can be computed."""

import numpy as np
import pytest

from medseg_diff.metrics.realism import (
    Apart,
    by_place,
    correlation,
    distances,
    frechet_beside_floor,
    frechet_distance,
    frechet_floor,
    jackknife,
    memorised,
    mmd,
    precision_recall,
    score,
)


def normals(count, *, mean=0.0, scale=1.0, features=4, seed=0):
    return mean + scale * np.random.default_rng(seed).standard_normal((count, features))


def with_moments(x, mean, deviation):
    """x [N, F] moved so that its mean and standard deviations (of N - 1) are exactly these, uncorrelated."""
    x = x - x.mean(axis=0)
    root = np.linalg.cholesky(np.linalg.inv(np.cov(x.T)))
    return x @ root * deviation + mean


def test_of_normal_numbers_it_is_the_formula():
    a = with_moments(normals(50), 0.0, np.array([1.0, 2.0, 0.5, 3.0]))
    b = with_moments(normals(80, seed=1), 1.5, np.array([2.0, 1.0, 0.5, 1.0]))
    expected = 4 * 1.5**2 + (1 + 1 + 0 + 4)  # Σ (m - m')² + Σ (s - s')²
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_of_correlated_features_it_is_the_matrix_root():
    from scipy.linalg import sqrtm

    draw = np.random.default_rng(3)
    a, b = (normals(60, seed=s) @ draw.standard_normal((4, 4)) + s for s in (1, 2))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    means = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    expected = means + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_equal_sets_are_no_distance_apart_with_fewer_images_than_features_too():
    few = normals(5, features=40)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, few + 1) == pytest.approx(40, rel=1e-9)
    assert frechet_distance(few[:1], few[:1] + 2) == pytest.approx(160)


@pytest.mark.parametrize(("count", "features"), [(3, 40), (40, 40), (300, 7), (500, 64)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_equal_sets_are_exactly_no_distance_apart(count, features, scale):
    x = normals(count, features=features, scale=scale, mean=scale)
    assert frechet_distance(x, x) == 0
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-20 * scale**2)


def test_in_one_dimension_it_is_the_closed_form():
    a, b = normals(30, features=1), normals(50, features=1, mean=2.0, scale=3.0, seed=1)
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_the_floor_falls_with_the_number_of_images():
    real = normals(400, features=16)
    few, many = frechet_floor(real, count=20), frechet_floor(real)
    assert 0 < many < few / 3
    assert frechet_distance(normals(200, mean=1.0, features=16, seed=9), real) > 10 * many


def test_the_jackknife_covers_the_distance_of_many_images():
    """Of a shift of 1 in one of two features, 60 images of each: the distance of all there are is 1, plus a small bias."""
    inside = 0
    for seed in range(60):
        a, b = normals(60, features=2, seed=2 * seed), normals(60, features=2, seed=2 * seed + 1)
        b[:, 0] += 1.0
        found = jackknife(frechet_distance, a, b)
        assert found.low < found.value < found.high
        inside += found.low <= 1.03 <= found.high
    assert 0.85 <= inside / 60 <= 1.0


@pytest.mark.parametrize(("count", "synthetic"), [(100, 80), (60, 40)])
def test_the_corrected_jackknife_covers_the_distance_of_endlessly_many_images(count, synthetic):
    """Of means 0.2 apart and deviations 1 and 0.7 … 1.5 in 16 features: Σ 0.2² + Σ (1 - s)², far below what so few give."""
    deviations, draw, found, biased = np.linspace(0.7, 1.5, 16), np.random.default_rng(0), [], []
    truth = 16 * 0.2**2 + ((1 - deviations) ** 2).sum()
    for _ in range(40):
        a, b = draw.standard_normal((synthetic, 16)) * deviations + 0.2, draw.standard_normal((count, 16))
        found.append(jackknife(frechet_distance, a, b, corrected=True))
        biased += [jackknife(frechet_distance, a, b)] if len(biased) < 15 else []
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.85
    assert np.mean([each.value for each in found]) == pytest.approx(truth, rel=0.1)
    assert np.mean([each.low <= truth <= each.high for each in biased]) < 0.3


def test_a_set_of_the_same_kind_is_as_far_as_the_floor():
    real = normals(160, features=16)
    same = frechet_beside_floor(normals(300, features=16, seed=1), real)
    assert same.images == 80 and same.distance == pytest.approx(same.floor, rel=0.15)
    few = frechet_beside_floor(normals(40, features=16, seed=1), real)
    assert few.images == 40 and few.distance == pytest.approx(few.floor, rel=0.25) and few.floor > 1.5 * same.floor
    other = frechet_beside_floor(normals(300, mean=0.5, features=16, seed=1), real)
    assert other.distance > other.floor + 0.8 * 16 * 0.5**2


def test_places_count_where_means_are_equal():
    left, right = np.zeros((10, 1, 8, 6)), np.zeros((10, 1, 8, 6))
    left[:, :, :4], right[:, :, 4:] = 1, 1
    assert np.allclose(left.mean(axis=(2, 3)), right.mean(axis=(2, 3)))
    assert by_place(left).shape == (10, 4) and by_place(left)[0].tolist() == [1, 1, 0, 0]
    assert frechet_distance(by_place(left), by_place(right)) == pytest.approx(4)
    assert by_place(np.ones((2, 3, 5, 1, 7))).shape == (2, 3 * 2 * 1 * 2)


def test_precision_is_lost_by_what_is_not_real_and_recall_by_what_is_missing():
    real = normals(200, features=2)
    both = precision_recall(normals(200, features=2, seed=5), real)
    assert both.precision > 0.9 and both.recall > 0.9
    narrow = precision_recall(normals(200, features=2, scale=0.05, seed=5), real)
    assert narrow.precision == 1 and narrow.recall < 0.2
    broad = precision_recall(normals(200, features=2, scale=20.0, seed=5), real)
    assert broad.precision < 0.2 and broad.recall > 0.9


def test_the_discrepancy_of_one_kind_is_about_nothing():
    same = [mmd(normals(50, seed=s), normals(50, seed=s + 100)) for s in range(20)]
    assert abs(np.mean(same)) < 0.05 and min(same) < 0 < max(same)  # unbiased
    assert mmd(normals(50), normals(50, mean=1.0, seed=7)) > 1


def test_the_score_counts_classes_that_are_sure():
    sure = np.eye(4)[np.arange(40) % 4]
    assert score(sure) == pytest.approx(4) and score(np.full((40, 4), 0.25)) == pytest.approx(1)
    assert score(np.eye(4)[np.zeros(40, int)]) == pytest.approx(1)


def test_copies_are_noticed():
    trained, held = normals(300, features=8), normals(100, features=8, seed=1)
    fresh = memorised(Apart.of(normals(200, features=8, seed=2), trained, held))
    copies = memorised(Apart.of(trained[:200] + 0.01, trained, held))
    assert 0.35 < fresh.favoured < 0.65 and fresh.copies < 0.05
    assert fresh.synthetic == pytest.approx(fresh.real, rel=0.15)
    assert copies.copies > 0.95 and copies.synthetic < 0.1
    smooth = memorised(Apart.of(0.1 * normals(200, features=8, seed=2), trained, held))  # near to all, and no copies
    assert smooth.synthetic < fresh.real and smooth.copies < 0.05


def test_distances_are_euclids():
    a, b = normals(5), normals(7, seed=1)
    assert np.allclose(distances(a, b), np.linalg.norm(a[:, None] - b[None], axis=2))


def test_a_correlation_and_its_interval():
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        x = draw.standard_normal(40)
        found = correlation(x, 0.8 * x + 0.6 * draw.standard_normal(40))
        inside += found.low <= 0.8 <= found.high
    assert 0.91 <= inside / 200 <= 0.99
    assert correlation(np.arange(9.0), 2 * np.arange(9.0)).value == pytest.approx(1)
    assert np.isnan(correlation(np.ones(9), np.arange(9.0)).value) and np.isnan(correlation(np.ones(2), np.ones(2)).low)
