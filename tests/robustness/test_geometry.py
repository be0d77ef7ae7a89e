"""Whatever grid a scan lies on: file → case → network's grid → slices → back → file, and voxels and affine are as before."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import corner_distance
from medseg_diff.data.reading import read_case, read_labels, read_volume
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Preparation, prepare_case, restore
from medseg_diff.data.views import AxialSlices, Patches

SCANNED_MM = 1e-3  # float32 in a header, a thousand millimetres from the origin


def turned(angles) -> np.ndarray:
    """A rotation about the three axes in turn."""
    whole = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [n for n in range(3) if n != axis]
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        whole = whole @ one
    return whole


@st.composite
def grids(draw):
    """(shape, affine): any order and direction of the axes, spacing, obliquity and offset."""
    order, flips = draw(st.permutations(range(3))), draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    spacing = draw(st.tuples(*[st.floats(0.2, 9.0)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = turned(draw(st.tuples(*[st.floats(-0.7, 0.7)] * 3)))[:, order] * flips * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-800, 800)] * 3))
    return draw(st.tuples(*[st.integers(4, 9)] * 3)), affine


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """That files survive a power cut is not what is looked at here."""
    monkeypatch.setattr("medseg_diff.files.flush", lambda path: None)


def check_round_trip(folder, shape, affine, packed, view, orientation, seed) -> None:
    rng = np.random.default_rng(seed)
    inside = tuple(slice(1, -1) for _ in shape)
    scan, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    scan[inside] = rng.random(scan[inside].shape, dtype=np.float32) + 1
    labels[inside] = rng.integers(0, 4, labels[inside].shape)
    labels[1, 1, 1] = 1
    suffix = ".nii.gz" if packed else ".nii"
    paths = {name: folder / f"{name}{suffix}" for name in ("t1", "seg", "back")}
    write_volume(paths["t1"], scan, affine)
    write_volume(paths["seg"], labels, affine)

    images = read_case(Case("p", "p", images={"t1": paths["t1"]}, seg=paths["seg"]))
    prepared = prepare_case(images, Preparation(orientation=orientation, margin_mm=0))
    assert corner_distance(images.affine, affine, shape) < SCANNED_MM
    pieces = view.cut(torch.cat([prepared.reference.float(), prepared.brain.float()]))
    back, brain = restore(prepared, view.join(pieces))
    np.testing.assert_array_equal(back, labels)
    np.testing.assert_array_equal(brain > 0.5, scan > 0)

    write_volume(paths["back"], back.astype(np.uint8), prepared.native_affine)
    found = read_labels(paths["back"])
    np.testing.assert_array_equal(found.voxels, labels)
    assert corner_distance(found.affine, affine, shape) < 2 * SCANNED_MM
    np.testing.assert_array_equal(read_volume(paths["t1"]).voxels, scan)


ARGUMENTS = {
    "grid": grids(),
    "packed": st.booleans(),
    "view": st.sampled_from([AxialSlices(), Patches()]),
    "orientation": st.sampled_from(["RAS", "LPS", "PIR", "SLA"]),
    "seed": st.integers(0, 2**32 - 1),
}
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=500, derandomize=True, **COMMON)
@given(**ARGUMENTS)
def test_voxels_and_affine_come_back(tmp_path_factory, grid, packed, view, orientation, seed):
    check_round_trip(tmp_path_factory.getbasetemp(), *grid, packed, view, orientation, seed)


@pytest.mark.soak
@settings(max_examples=5000, **COMMON)
@given(**ARGUMENTS)
def test_voxels_and_affine_come_back_from_thousands_of_grids(tmp_path_factory, grid, packed, view, orientation, seed):
    check_round_trip(tmp_path_factory.getbasetemp(), *grid, packed, view, orientation, seed)
