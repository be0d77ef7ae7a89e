"""A known motion of a head is found again, across contrasts and grids, with the same numbers every time."""

import math

import numpy as np
import pytest

from medseg_diff.data.geometry import Volume, resampled
from medseg_diff.data.reading import read_volume
from medseg_diff.data.registration import RADIUS_MM, Alignment, align, moved
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import ImageError

AXIS = np.array([1.0, 2.0, -1.0]) / math.sqrt(6)


def rigid(degrees, shift_mm, about):
    """A turn about AXIS through a point, and a shift: [4, 4]."""
    cross = np.array([[0, -AXIS[2], AXIS[1]], [AXIS[2], 0, -AXIS[0]], [-AXIS[1], AXIS[0], 0]])
    angle = math.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] += math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    matrix[:3, 3] = about + np.array(shift_mm) - matrix[:3, :3] @ about
    return matrix


def error_mm(alignment, motion):
    """The largest error at the surface of the head, of what should undo the motion."""
    points = np.random.default_rng(0).normal(size=(200, 3))
    points = alignment.middle + RADIUS_MM * points / np.linalg.norm(points, axis=1, keepdims=True)
    return np.linalg.norm(moved(alignment.matrix, moved(motion, points)) - points, axis=1).max()


def thinned(volume):
    """Every third voxel along each axis."""
    return Volume(volume.voxels[::3, ::3, ::3], volume.affine @ np.diag([3, 3, 3, 1.0]))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """T1 and FLAIR of one phantom on one grid of 1.75 mm."""
    from medseg_diff.tasks.phantom import phantom

    (case,) = read_manifest(phantom(tmp_path_factory.mktemp("head"), cases=1, shape=(110, 110, 88), healthy=0.0)).cases
    return {channel: read_volume(case.images[channel]) for channel in ("t1", "flair")}


@pytest.fixture(scope="module")
def twisted(head):
    """The FLAIR as another grid shows it after its patient moved by 8° and 12 mm, and that motion."""
    flair = head["flair"]
    motion = rigid(8, (7.0, -6.0, 7.7), np.zeros(3))
    slices = flair.affine @ np.diag([1.2, 1.2, 1.6, 1.0])
    slices[:3, 3] += 3.0
    grid = Volume(np.zeros((100, 100, 60), np.float32), slices)
    return resampled(Volume(flair.voxels, motion @ flair.affine), grid, nearest=False), motion


def test_a_known_motion_comes_back(head, twisted):
    image, motion = twisted
    found = align(image, head["t1"])
    assert error_mm(found, motion) < 0.5
    assert found.is_better and found.after > found.before + 0.1
    assert found.degrees == pytest.approx(8, abs=0.3) and found.surface_mm > 10
    np.testing.assert_allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(found.matrix[:3, :3]) == pytest.approx(1)


def test_the_same_numbers_whatever_the_threads(head, twisted):
    import SimpleITK

    image, fixed = (thinned(each) for each in (twisted[0], head["t1"]))
    before = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        results = []
        for threads in (1, 3):
            SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            found = align(image, fixed)
            results.append((found.matrix.tobytes(), found.before, found.after))
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert results[0] == results[1]


def test_a_head_far_from_where_the_scanner_says_is_found_by_its_middle(head):
    coarse = {name: thinned(each) for name, each in head.items()}
    motion = rigid(0, (400.0, 0.0, -250.0), np.zeros(3))
    found = align(Volume(coarse["flair"].voxels, motion @ coarse["flair"].affine), coarse["t1"])
    assert found.start == "middles" and found.before is None and found.is_better
    assert found.mm == pytest.approx(math.hypot(400, 250), abs=3) and error_mm(found, motion) < 3


def test_what_cannot_be_registered_is_refused(head):
    sheared = head["t1"].affine @ (np.eye(4) + 0.1 * np.eye(4, k=1))
    with pytest.raises(ImageError, match="its axes are sheared"):
        align(Volume(head["t1"].voxels, sheared), head["t1"])
    with pytest.raises(ImageError, match="has only 110×110×2 voxels"):
        align(head["t1"], Volume(head["t1"].voxels[:, :, :2], head["t1"].affine))


def test_motion_is_measured_where_the_head_is():
    turned = Alignment(rigid(10, (0.0, 0.0, 0.0), np.full(3, 50.0)), 0.5, 0.4, "scanner", np.full(3, 50.0))
    assert turned.mm == pytest.approx(0) and turned.degrees == pytest.approx(10) and not turned.is_better
    arms = np.sqrt(1 - AXIS**2)  # how far from the axis each of the six points is
    assert turned.surface_mm == pytest.approx(2 * math.sin(math.radians(5)) * RADIUS_MM * arms.mean())
