"""Which scan a case is: another file is another scan unless its voxels are the same, in every format of several files."""

import gzip
import hashlib
import os
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from medseg_diff.data import digests
from medseg_diff.data.datasets import cache
from medseg_diff.data.digests import is_same_scan, read_inputs
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Preparation
from medseg_diff.errors import ImageError

VOXELS = np.random.default_rng(0).integers(0, 999, (6, 7, 8)).astype(np.int16)
AFFINE = np.array([[-1.0, 0, 0, 3.3], [0, -1, 0, 4.1], [0, 0, 2, -5], [0, 0, 0, 1]])
META = (
    "ObjectType = Image\nNDims = 3\nDimSize = 6 7 8\nElementType = MET_SHORT\nElementSpacing = 1 1 2\n"
    "ElementDataFile = t1.raw\n"
)


def nifti(voxels=VOXELS, affine=AFFINE):
    return nibabel.Nifti1Image(voxels, affine).to_bytes()


def case_of(**images):
    return Case("a", patient="a", images=images)


@pytest.fixture
def known(tmp_path):
    """The case of one channel in `t1.nii`, and what is known of it."""
    (tmp_path / "t1.nii").write_bytes(nifti())
    return read_inputs(case_of(t1=tmp_path / "t1.nii"), ["t1"])[1]


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path, known):
    assert known["t1"]["file_sha256"] == hashlib.sha256((tmp_path / "t1.nii").read_bytes()).hexdigest()


def test_the_same_bytes_are_the_same_scan_and_nothing_is_decoded(tmp_path, known, monkeypatch):
    monkeypatch.setattr(digests, "read_case", lambda *_, **__: pytest.fail("decoded"))
    (tmp_path / "copy.nii").write_bytes((tmp_path / "t1.nii").read_bytes())
    assert is_same_scan(case_of(t1=tmp_path / "copy.nii"), ["t1"], known)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(nifti()), nifti(VOXELS.astype(np.float64)), nifti(affine=AFFINE.astype(np.float32) + 1e-6)],
    ids=["packed", "other type", "rounded affine"],
)
def test_a_scan_that_was_saved_anew_is_the_same(tmp_path, known, content):
    (tmp_path / "again.nii.gz").write_bytes(content)
    assert is_same_scan(case_of(t1=tmp_path / "again.nii.gz"), ["t1"], known)


@pytest.mark.parametrize(
    "content",
    [nifti(VOXELS + (VOXELS.max() == VOXELS)), nifti(affine=AFFINE + np.eye(4, k=3)), nifti(VOXELS.reshape(7, 6, 8))],
    ids=["one voxel", "moved by a millimetre", "another shape"],
)
def test_another_is_not(tmp_path, known, content):
    (tmp_path / "other.nii").write_bytes(content)
    assert not is_same_scan(case_of(t1=tmp_path / "other.nii"), ["t1"], known)


def test_one_with_another_channel_is_not(tmp_path, known):
    case = case_of(t1=tmp_path / "t1.nii", t2=tmp_path / "t1.nii")
    assert not is_same_scan(case, ["t1", "t2"], known) and not is_same_scan(case, ["t2"], known)
    assert not is_same_scan(case, [], known) and not is_same_scan(case, ["t1"], {"t1": 3})


def test_one_that_cannot_be_read_is_told(tmp_path, known):
    (tmp_path / "t1.nii").write_bytes(nifti()[:-9])
    with pytest.raises(ImageError, match="cut off"):
        is_same_scan(case_of(t1=tmp_path / "t1.nii"), ["t1"], known)
    (tmp_path / "t1.nii").unlink()
    with pytest.raises(ImageError, match="cannot be read"):
        is_same_scan(case_of(t1=tmp_path / "t1.nii"), ["t1"], known)


def pair(folder):
    nibabel.save(nibabel.Nifti1Pair(VOXELS, AFFINE), folder / "t1.hdr")
    return folder / "t1.hdr", folder / "t1.img"


def metaimage(folder):
    (folder / "t1.mhd").write_text(META)
    (folder / "t1.raw").write_bytes(VOXELS.tobytes("F"))
    return folder / "t1.mhd", folder / "t1.raw"


def dicom(folder):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, storage = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.MRImageStorage
    for number in range(3):
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = storage, f"1.2.9.{number}"
        one = pydicom.dataset.Dataset()
        one.file_meta, one.SOPClassUID, one.SOPInstanceUID = meta, storage, meta.MediaStorageSOPInstanceUID
        one.SeriesInstanceUID, one.StudyInstanceUID, one.Modality, one.InstanceNumber = "1.2.3", "1.2", "MR", number
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness, one.Rows, one.Columns = [1, 1], 1, 6, 7
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.PixelData = VOXELS[:, :, number].astype(np.uint16).tobytes()
        one.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder, folder / "1.dcm"


@pytest.mark.parametrize("write", [pair, metaimage, dicom])
def test_every_file_of_an_image_counts(tmp_path, write):
    folder = tmp_path / "t1"
    folder.mkdir()
    path, part = write(folder)
    case = case_of(t1=path)
    _, known = read_inputs(case, ["t1"])
    assert is_same_scan(case, ["t1"], known)
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    cached = cache._key(case, ["t1"], Preparation())
    assert cache._key(case, ["t1"], Preparation()) == cached
    part.write_bytes(content)
    os.utime(part, ns=(0, 0))
    assert not is_same_scan(case, ["t1"], known)
    assert cache._key(case, ["t1"], Preparation()) != cached  # what was prepared for training is prepared again


def test_the_volumes_of_one_file_are_told_apart(tmp_path):
    path = tmp_path / "stack.nii"
    path.write_bytes(nifti(np.stack([VOXELS, VOXELS + 1], -1)))
    case = Case("a", patient="a", stack=path, stack_channels=("t1", "t2"))
    _, known = read_inputs(case, ["t1", "t2"])
    assert is_same_scan(case, ["t1", "t2"], known)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert is_same_scan(case, ["t1", "t2"], known)
    assert not is_same_scan(replace(case, stack_channels=("t2", "t1")), ["t1", "t2"], known)
