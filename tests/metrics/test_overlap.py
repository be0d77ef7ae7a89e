"""Overlap measures against spheres, whose answers are known, and against their stated conventions."""

import math

import numpy as np
import pytest

from medseg_diff.metrics import overlap


def sphere(centre_mm, radius_mm, *, shape=(64, 64, 64), spacing_mm=(1.0, 1.0, 1.0)):
    grids = np.ogrid[tuple(slice(0, size) for size in shape)]
    squared = sum((grid * step - middle) ** 2 for grid, step, middle in zip(grids, spacing_mm, centre_mm, strict=True))
    return squared <= radius_mm**2


def lens_dice(radius, distance):
    """Dice of two balls of one radius: volume of the lens π(2r-d)²(d²+4dr)/(12d) by that of one ball."""
    lens = math.pi * (2 * radius - distance) ** 2 * (distance**2 + 4 * distance * radius) / (12 * distance)
    return lens / (4 / 3 * math.pi * radius**3)


@pytest.mark.parametrize("distance", [4.0, 10.0, 20.0])
def test_dice_and_iou_of_two_spheres_match_the_lens_formula(distance):
    first, second = sphere((24, 32, 32), 18), sphere((24 + distance, 32, 32), 18)
    expected = lens_dice(18, distance)
    assert overlap.dice(first, second) == pytest.approx(expected, abs=0.005)
    assert overlap.iou(first, second) == pytest.approx(expected / (2 - expected), abs=0.005)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
def test_surface_measures_of_concentric_spheres_are_the_difference_of_radii(spacing_mm):
    shape = tuple(int(64 / step) for step in spacing_mm)
    outer = sphere((32, 32, 32), 24, shape=shape, spacing_mm=spacing_mm)
    inner = sphere((32, 32, 32), 20, shape=shape, spacing_mm=spacing_mm)
    voxel = max(spacing_mm)
    assert overlap.hd95_mm(outer, inner, spacing_mm=spacing_mm) == pytest.approx(4.0, abs=0.75 * voxel)
    assert overlap.surface_dice(outer, inner, spacing_mm=spacing_mm) == pytest.approx(0.0, abs=0.01)
    assert overlap.surface_dice(outer, inner, spacing_mm=spacing_mm, tolerance_mm=4.0 + voxel) == pytest.approx(1.0)


def test_surface_dice_of_shifted_spheres_approaches_the_area_within_tolerance():
    # A surface point at angle θ to a small shift s lies |s cos θ| from the other sphere; |cos θ| ≤ 1/s is 1/s of it.
    shift_mm, excess = 4.0, {}
    for step in (1.0, 0.5):
        grid = {"shape": (int(60 / step),) * 3, "spacing_mm": (step,) * 3}
        first, second = sphere((28, 30, 30), 20, **grid), sphere((28 + shift_mm, 30, 30), 20, **grid)
        excess[step] = overlap.surface_dice(first, second, spacing_mm=(step,) * 3) - 1 / shift_mm
    # Distances between lattice points read low by a part of a voxel, so the share reads high: half as much at half.
    assert 0 < excess[0.5] < 0.6 * excess[1.0] < 0.1


def test_one_remote_voxel_blob_moves_hd95_but_hardly_the_dice():
    reference = sphere((32, 32, 32), 4)
    mask = reference | sphere((60, 60, 60), 3)
    assert overlap.dice(mask, reference) > 0.8
    assert overlap.hd95_mm(mask, reference, spacing_mm=(1, 1, 1)) > 30


def test_masks_that_touch_the_border_of_the_volume_are_measured_whole():
    first, second = np.zeros((20, 20, 20), bool), np.zeros((20, 20, 20), bool)
    first[:10], second[:13] = True, True
    # 4 of the 6 faces and more are shared; the shifted face lies 3 mm away.
    assert overlap.hd95_mm(first, second, spacing_mm=(1, 1, 1)) == pytest.approx(3.0)
    assert 0.5 < overlap.surface_dice(first, second, spacing_mm=(1, 1, 1)) < 1.0


def test_spacing_scales_distances_and_volumes():
    first, second = np.zeros((30, 10, 10), bool), np.zeros((30, 10, 10), bool)
    first[2, 5, 5], second[12, 5, 5] = True, True
    assert overlap.hd95_mm(first, second, spacing_mm=(3.0, 1.0, 1.0)) == pytest.approx(30.0)
    assert overlap.volume_ml(first | second, voxel_ml=0.006) == pytest.approx(0.012)
    assert overlap.volume_error_ml(first, first | second, voxel_ml=1.0) == pytest.approx(-1.0)
    assert overlap.volume_error_ml(first | second, first, voxel_ml=1.0) == pytest.approx(1.0)


def test_empty_masks_follow_the_stated_conventions():
    nothing, something = np.zeros((8, 8, 8), bool), sphere((4, 4, 4), 2, shape=(8, 8, 8))
    spaced = {"spacing_mm": (1, 1, 1)}
    measured = {
        name: (
            measure(nothing, nothing, **extra),
            measure(something, nothing, **extra),
            measure(nothing, something, **extra),
        )
        for name, measure, extra in [
            ("dice", overlap.dice, {}),
            ("iou", overlap.iou, {}),
            ("hd95_mm", overlap.hd95_mm, spaced),
            ("surface_dice", overlap.surface_dice, spaced),
        ]
    }
    assert measured == {name: (empty.both, empty.one, empty.one) for name, empty in overlap.CONVENTIONS.items()}
    assert overlap.CONVENTIONS["dice"] == (1.0, 0.0)
    assert overlap.CONVENTIONS["hd95_mm"] == (0.0, None)


@pytest.mark.parametrize("measure", [overlap.dice, overlap.iou])
def test_a_probability_is_not_taken_for_a_mask(measure):
    with pytest.raises(ValueError, match="boolean"):
        measure(np.full((4, 4), 0.3), np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="one shape"):
        measure(np.ones((4, 4), bool), np.ones((4, 5), bool))


@pytest.mark.timeout(120)  # seconds, unless it grows faster than the grid
def test_a_whole_brats_grid():
    shape = (240, 240, 155)
    mask, reference = sphere((120, 120, 70), 30, shape=shape), sphere((124, 118, 72), 32, shape=shape)
    farthest = np.linalg.norm((4, 2, 2)) + 2  # of two spheres: their centres' distance and the difference of radii
    assert 2 < overlap.hd95_mm(mask, reference, spacing_mm=(1, 1, 1)) < farthest
    assert 0 < overlap.surface_dice(mask, reference, spacing_mm=(1, 1, 1)) < 1


def test_the_surface_of_a_single_slice_is_its_outline():
    y, x = np.mgrid[:64, :64]
    small, large = ((x - 32) ** 2 + (y - 32) ** 2 <= radius**2 for radius in (12, 16))
    moved = (x - 35) ** 2 + (y - 32) ** 2 <= 144
    for axis in range(3):
        one, other, shifted = (np.expand_dims(mask, axis) for mask in (small, large, moved))
        spacing = tuple(np.insert([1.0, 1.0], axis, 5.0))
        assert overlap.hd95_mm(one, shifted, spacing_mm=spacing) == 3
        assert overlap.hd95_mm(small, moved, spacing_mm=(1, 1)) == 3
        assert overlap.surface_dice(one, other, spacing_mm=spacing) == 0
