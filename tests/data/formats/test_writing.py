"""What is written comes back: voxels, affine, and nothing of the input's header."""

import gzip
import hashlib

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import corner_distance
from medseg_diff.data.reading import read_volume
from medseg_diff.errors import EnvironmentFault


def rotation(angles):
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [i for i in range(3) if i != axis]
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    return turn


@st.composite
def affines(draw):
    """Any axis order, flips, spacing, obliquity and offset."""
    order = draw(st.permutations(range(3)))
    flips = np.array(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)))
    spacing = np.array(draw(st.tuples(*[st.floats(0.2, 9.0)] * 3)))
    angles = draw(st.tuples(*[st.floats(-0.6, 0.6)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = (rotation(angles) @ np.eye(3)[:, order]) * flips * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return affine


@settings(max_examples=60, deadline=None)
@given(
    affine=affines(),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
def test_voxels_and_affine_come_back(tmp_path_factory, affine, shape, dtype, suffix):
    path = tmp_path_factory.mktemp("written") / f"map{suffix}"
    voxels = (np.arange(np.prod(shape)).reshape(shape) % 200 + 1).astype(dtype)
    voxels.flat[0] = 0
    write_volume(path, voxels, affine)
    stored = nibabel.load(path)
    assert stored.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(stored.dataobj), voxels)
    np.testing.assert_allclose(stored.affine, affine, atol=1e-4)
    if stored.header["qform_code"]:
        assert corner_distance(stored.get_qform(), stored.get_sform(), shape) < 0.011
    if np.prod(shape) > 1:
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.voxels, voxels)
        np.testing.assert_array_equal(volume.affine, affine.astype(np.float32))
        assert volume.warnings == ()


def test_a_sheared_grid_is_kept_by_the_sform_alone(tmp_path):
    affine = np.array([[1, 0.3, 0, 5], [0, 1, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]])
    write_volume(tmp_path / "a.nii", np.ones((3, 4, 5), np.uint8), affine)
    header = nibabel.load(tmp_path / "a.nii").header
    assert int(header["qform_code"]) == 0 and int(header["sform_code"]) == 1
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-6)


@pytest.mark.parametrize("code", range(1, 6))
def test_the_code_of_the_space_stands_in_both_forms(tmp_path, code):
    write_volume(tmp_path / "a.nii", np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4), code=code)
    header = nibabel.load(tmp_path / "a.nii").header
    assert int(header["qform_code"]) == int(header["sform_code"]) == code
    assert read_volume(tmp_path / "a.nii").code == code


def test_both_forms_stand_where_they_agree_and_never_where_they_differ(tmp_path):
    brats = np.array([[-1.0, 0, 0, 120], [0, -1, 0, 120], [0, 0, 1, -60], [0, 0, 0, 1]])
    write_volume(tmp_path / "a.nii", np.ones((240, 240, 3), np.uint8), brats)
    header = nibabel.load(tmp_path / "a.nii").header
    assert int(header["qform_code"]) == 1 == int(header["sform_code"])
    # Half a turn and 0.0001 rad: the quaternion's real part, derived from the three that are stored, is lost.
    turn = np.eye(4)
    turn[:3, :3] = rotation((0, 0, 0.0001)) @ brats[:3, :3]
    write_volume(tmp_path / "b.nii", np.ones((240, 240, 3), np.uint8), turn)
    assert int(nibabel.load(tmp_path / "b.nii").header["qform_code"]) == 0


def test_same_voxels_same_bytes_and_no_text(tmp_path):
    voxels = np.random.default_rng(0).random((9, 8, 7), dtype=np.float32)
    digests = set()
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, voxels, np.eye(4))
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    header = nibabel.Nifti1Header(content[:348])
    assert not any(header[field].item() for field in ("descrip", "db_name", "aux_file", "intent_name"))
    assert header.get_xyzt_units()[0] == "mm" and content[348:352] == b"\0\0\0\0"
    assert len(content) == 352 + voxels.nbytes


def test_a_folder_that_cannot_be_written_is_the_environments_fault(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(EnvironmentFault):
        write_volume(tmp_path / "file" / "map.nii.gz", np.ones((2, 2, 2), np.uint8), np.eye(4))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("background", [0.0, -1.7])
def test_a_background_of_any_value_takes_next_to_no_room(tmp_path, background):
    voxels = np.full((40, 40, 40), background, np.float32)
    voxels[10:20, 10:20, 10:20] = np.random.default_rng(0).random((10, 10, 10))
    write_volume(tmp_path / "map.nii.gz", voxels, np.eye(4))
    assert (tmp_path / "map.nii.gz").stat().st_size < 6000  # 4000 bytes are random numbers
    np.testing.assert_array_equal(read_volume(tmp_path / "map.nii.gz").voxels, voxels)
