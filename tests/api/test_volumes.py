"""Images of nibabel become files that are read as their own would be."""

import nibabel
import numpy as np
import pytest

from medseg_diff.api.volumes import words_of
from medseg_diff.data.reading import read_volume
from medseg_diff.errors import EnvironmentFault, ImageError, UsageError

AFFINE = np.array([[0, -1.5, 0, 4], [2, 0, 0, 5], [0, 0, 3, 6], [0, 0, 0, 1.0]])
VOXELS = np.arange(24).reshape(2, 3, 4)


def written(image, tmp_path, name="case_1"):
    (word,), from_memory = words_of(image, tmp_path / "0", name)
    assert from_memory
    return tmp_path / word


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64, np.bool_])
def test_voxels_of_any_kind_are_kept(kind, tmp_path):
    voxels = VOXELS.astype(kind)
    stored = voxels.astype(np.int16) if kind in (np.int64, np.bool_) else voxels  # what nibabel can make an image of
    image = nibabel.Nifti1Image(stored, AFFINE)
    image._dataobj = voxels
    found = read_volume(written(image, tmp_path))
    assert np.array_equal(found.voxels, voxels.astype(np.float32)) and np.allclose(found.affine, AFFINE)


def test_a_scaled_file_is_read_as_its_path_would_be(tmp_path):
    image = nibabel.Nifti1Image(VOXELS.astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.37, -5)
    image.to_filename(tmp_path / "P7_flair.nii.gz")
    loaded = nibabel.load(tmp_path / "P7_flair.nii.gz")
    copy = written(loaded, tmp_path)
    assert copy.name == "P7_flair.nii" and copy.parent.name == tmp_path.name
    assert np.array_equal(read_volume(copy).voxels, read_volume(tmp_path / "P7_flair.nii.gz").voxels)


def test_changes_in_memory_count(tmp_path):
    nibabel.Nifti1Image(VOXELS.astype(np.int16), AFFINE).to_filename(tmp_path / "flair.nii.gz")
    loaded = nibabel.load(tmp_path / "flair.nii.gz")
    loaded.affine[0, 3] = 40
    assert read_volume(written(loaded, tmp_path)).affine[0, 3] == 40


@pytest.mark.parametrize("kind", [nibabel.Nifti2Image, nibabel.MGHImage, nibabel.Nifti1Pair])
def test_other_images_of_nibabel(kind, tmp_path):
    found = read_volume(written(kind(VOXELS.astype(np.float32), AFFINE), tmp_path))
    assert np.array_equal(found.voxels, VOXELS) and np.allclose(found.affine, AFFINE, atol=1e-5)


def test_an_image_that_does_not_say_where_it_lies_is_read_as_its_file_is(tmp_path):
    nibabel.Nifti1Image(VOXELS.astype(np.float32), None).to_filename(tmp_path / "flair.nii")
    copy = written(nibabel.load(tmp_path / "flair.nii"), tmp_path)
    header = nibabel.load(copy).header
    assert (header["sform_code"], header["qform_code"]) == (0, 0)
    assert np.array_equal(read_volume(copy).affine, read_volume(tmp_path / "flair.nii").affine)
    with pytest.raises(ImageError, match="has no affine"):
        written(nibabel.Nifti1Image(VOXELS.astype(np.float32), None), tmp_path)


def test_a_file_that_went_away_or_is_cut_off(tmp_path):
    path = tmp_path / "flair.nii"
    nibabel.Nifti1Image(VOXELS.astype(np.float32), AFFINE).to_filename(path)
    loaded = nibabel.load(path)
    path.write_bytes(path.read_bytes()[:370])
    with pytest.raises(ImageError, match=r"flair.nii: cannot be read"):
        written(loaded, tmp_path)


def test_a_damaged_archive_is_said(tmp_path):
    path = tmp_path / "flair.nii.gz"
    nibabel.Nifti1Image(np.random.default_rng(0).random((20, 20, 20)), AFFINE).to_filename(path)
    content = bytearray(path.read_bytes())
    content[40_000:40_100] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"flair.nii.gz: cannot be read"):
        written(nibabel.load(path), tmp_path)


def test_no_room_for_a_temporary_file(tmp_path):
    (tmp_path / "0").write_text("where the folder should be")
    with pytest.raises(EnvironmentFault, match=r"case_1.nii: cannot be written .* Fix: set TMPDIR"):
        written(nibabel.Nifti1Image(VOXELS.astype(np.float32), AFFINE), tmp_path)


def test_channels_without_files_share_a_name_and_keep_apart(tmp_path):
    image = nibabel.Nifti1Image(VOXELS.astype(np.float32), AFFINE)
    words, _ = words_of({"t1": image, "flair": image}, tmp_path / "0", "case_3")
    first, second = (word.partition("=")[2] for word in words)
    assert first != second and first.endswith("case_3.nii") and second.endswith("case_3.nii")
    words, from_memory = words_of({"t1": "a.nii.gz", "flair": tmp_path}, tmp_path / "0", "case_3")
    assert words == ("t1=a.nii.gz", f"flair={tmp_path}") and not from_memory


@pytest.mark.parametrize("volume", [7, None, np.zeros((2, 2, 2)), {"t1": b"x"}])
def test_what_is_no_volume(volume, tmp_path):
    with pytest.raises(UsageError, match="a volume is of type"):
        words_of(volume, tmp_path, "case_1")
