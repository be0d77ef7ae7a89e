"""Every bad image: refused with exit code 3 in one line that names file, fault and remedy, or read and said."""

import gzip
import io
import os
import struct
import zipfile

import nibabel
import numpy as np
import pytest
import SimpleITK

SHAPE = (6, 7, 8)
AFFINE = np.array([[-1.0, 0, 0, 3], [0, -1, 0, 4], [0, 0, 2, -5], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).random(SHAPE, dtype=np.float32)


def nifti(voxels=VOXELS, kind=nibabel.Nifti1Image, affine=AFFINE) -> bytes:
    return kind(voxels, affine).to_bytes()


SOUND = nifti()
PACKED = gzip.compress(SOUND, mtime=0)


def patched(*changes, content=SOUND) -> bytes:
    """A sound NIfTI-1 file with some header fields overwritten: (byte offset, struct format, value)."""
    out = bytearray(content)
    for offset, layout, value in changes:
        struct.pack_into(layout, out, offset, value)
    return bytes(out)


def with_voxel(value) -> bytes:
    voxels = VOXELS.copy()
    voxels[1, 2, 3] = value
    return nifti(voxels)


def speck() -> bytes:
    voxels = np.zeros((10, 10, 20), np.float32)
    voxels[5, 5, 5] = 1
    return nifti(voxels)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :]


def zipped() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../evil.nii", SOUND)
    return packed.getvalue()


def metaimage(**changes) -> bytes:
    fields = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "DimSize": "6 7 8"}
    fields |= {"ElementSpacing": "1 1 1", "ElementType": "MET_FLOAT", "ElementDataFile": "LOCAL"} | changes
    last = fields.pop("ElementDataFile")
    text = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    return f"{text}ElementDataFile = {last}\n".encode() + VOXELS.tobytes("F")


def nrrd(**changes) -> bytes:
    fields = {"type": "float", "dimension": "3", "sizes": "6 7 8", "encoding": "raw", "endian": "little"}
    fields |= {"space": "left-posterior-superior", "space directions": "(1,0,0) (0,1,0) (0,0,1)"}
    fields |= {name.replace("_", " "): value for name, value in changes.items()}
    text = "".join(f"{name}: {value}\n" for name, value in fields.items() if value is not None)
    return f"NRRD0004\n{text}\n".encode() + VOXELS.tobytes("F")


def mgh(**changes) -> bytes:
    return nibabel.MGHImage(VOXELS, AFFINE).to_bytes()


NAN, INF = float("nan"), float("inf")
BAD = {
    # what is no image at all
    "empty.nii": (b"", "is empty"),
    "text.nii.gz": (b"case,t1\n" * 300, "not an image in a known format"),
    "one_byte.nii": (b"\x1f", "not an image in a known format"),
    "zeros.nii": (bytes(5000), "not an image in a known format"),
    "noise.nii": (np.random.default_rng(1).bytes(5000), "not an image in a known format"),
    "error_page.nii.gz": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "lfs_pointer.nii.gz": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "archive.nii": (zipped(), ".zip archive"),
    "picture.nii": (b"\x89PNG\r\n\x1a\n" + bytes(500), "PNG"),
    "pickle.nii": (b"\x80\x04\x95" + b"cos\nsystem\n(S'true'\ntR.", "pickle"),
    "array.nii": (b"\x93NUMPY\x01\x00" + bytes(500), "numpy array"),
    "slice.nii": (bytes(128) + b"DICM" + bytes(500), "one DICOM slice"),
    "analyze.hdr": (patched((344, "<4s", b"\0\0\0\0")), "Analyze"),
    "half_a_pair.img": (VOXELS.tobytes(), "give its .hdr"),
    "other_half.hdr": (patched((344, "<4s", b"ni1\0"))[:352], ".img is missing"),
    # packed and damaged
    "cut.nii.gz": (PACKED[:-30], "cut off"),
    "without_checksum.nii.gz": (PACKED[:-8], "cut off"),
    "wrong_checksum.nii.gz": (PACKED[:-8] + bytes(4) + PACKED[-4:], "damaged"),
    "wrong_length.nii.gz": (PACKED[:-4] + bytes(4), "damaged"),
    "flipped_bit.nii.gz": (flipped(PACKED, 700), ""),
    "flipped_last_bit.nii.gz": (flipped(PACKED, len(PACKED) - 20), ""),
    "garbage_behind.nii.gz": (PACKED + b"garbage", "damaged"),
    "second_file_behind.nii.gz": (PACKED + PACKED, "more bytes"),
    "packed_twice.nii.gz": (gzip.compress(PACKED), ".gz inside a .gz"),
    "gz_of_nothing.nii.gz": (gzip.compress(b""), "not an image in a known format"),
    "gz_header_only.nii.gz": (PACKED[:12], "not an image in a known format"),
    "many_parts.nii.gz": (gzip.compress(b"") * 3000 + PACKED, ""),
    "many_parts_behind.nii.gz": (PACKED + gzip.compress(b"") * 3000, "more bytes"),
    "trailing.nii.gz": (gzip.compress(SOUND + b"x" * 100), "more bytes"),
    "far_more.nii.gz": (gzip.compress(SOUND + bytes(2**21)), "more bytes"),
    # plain and damaged
    "cut_in_header.nii": (SOUND[:300], "cut off within its header"),
    "cut_after_magic.nii": (SOUND[:348], "cut off"),
    "cut_in_voxels.nii": (SOUND[:-1], "cut off"),
    "cut_in_half.nii": (SOUND[: len(SOUND) // 2], "cut off"),
    "trailing.nii": (SOUND + b"x", "more bytes"),
    "two_in_one.nii": (SOUND + SOUND, "more bytes"),
    "wrong_header_length.nii": (patched((0, "<i", 349)), "damaged header"),
    "dim0_zero.nii": (patched((40, "<h", 0)), "impossible dimensions|damaged header"),
    "dim0_one.nii": (patched((40, "<h", 1)), "impossible dimensions"),
    "dim0_eight.nii": (patched((40, "<h", 8)), "impossible dimensions|damaged header"),
    "dim0_negative.nii": (patched((40, "<h", -3)), "impossible dimensions|damaged header"),
    "dim_zero.nii": (patched((44, "<h", 0)), "impossible dimensions"),
    "dim_negative.nii": (patched((46, "<h", -8)), "impossible dimensions"),
    "dims_absurd.nii": (
        patched((42, "<h", 32767), (44, "<h", 32767), (46, "<h", 32767)),
        "too many for a scan of a head",
    ),
    "dims_larger_than_file.nii": (patched((42, "<h", 400), (44, "<h", 400)), "cut off"),
    "dims_smaller_than_file.nii": (patched((46, "<h", 3)), "more bytes"),
    "dims_absurd.nii.gz": (gzip.compress(patched((42, "<h", 900), (44, "<h", 900), (46, "<h", 600))), "times its size"),
    "bits_contradict_type.nii": (patched((72, "<h", 16)), "float32 with 16 bits"),
    "type_unknown.nii": (patched((70, "<h", 99)), "unknown type 99"),
    "type_zero.nii": (patched((70, "<h", 0)), "unknown type 0"),
    "type_binary.nii": (patched((70, "<h", 1)), "one bit"),
    "complex.nii": (nifti(VOXELS.astype(np.complex64)), "complex"),
    "rgb.nii": (patched((70, "<h", 128), (72, "<h", 24)), "RGB"),
    "float128.nii": (patched((70, "<h", 1536), (72, "<h", 128)), "128-bit"),
    "offset_in_header.nii": (patched((108, "<f", 8.0)), "begin at byte 8"),
    "offset_negative.nii": (patched((108, "<f", -352.0)), "begin at byte -352"),
    "offset_nan.nii": (patched((108, "<f", NAN)), "begin at byte nan"),
    "offset_infinite.nii": (patched((108, "<f", INF)), "begin at byte inf"),
    "offset_broken.nii": (patched((108, "<f", 352.5)), "begin at byte 352.5"),
    "offset_huge.nii": (patched((108, "<f", 1e12)), "begin at byte 1e+12"),
    "offset_beyond_end.nii": (patched((108, "<f", 4096.0)), "cut off"),
    "slope_infinite.nii": (patched((112, "<f", INF)), "slope inf"),
    "slope_nan.nii": (patched((112, "<f", NAN), (116, "<f", 0.0)), "slope nan"),
    "intercept_nan.nii": (patched((112, "<f", 1.0), (116, "<f", NAN)), "intercept nan"),
    "slope_overflows.nii": (patched((112, "<f", 3e38)), "squares overflow"),
    # the grid
    "sform_nan.nii": (patched((280, "<f", NAN)), "neither sform nor qform"),
    "sform_zero.nii": (patched(*((280 + 4 * n, "<f", 0.0) for n in range(12))), "neither sform nor qform"),
    "sform_singular.nii": (patched(*((296 + 4 * n, "<f", -1.0 * (n == 0)) for n in range(4))), "neither sform nor"),
    "sform_infinite_origin.nii": (patched((292, "<f", INF)), "neither sform nor qform"),
    "no_spacing.nii": (
        patched((252, "<h", 0), (254, "<h", 0), *((80 + 4 * n, "<f", 0.0) for n in range(3))),
        "no orientation and no spacing",
    ),
    "spacing_nan.nii": (patched((252, "<h", 0), (254, "<h", 0), (80, "<f", NAN)), "no orientation and no spacing"),
    "voxels_of_a_kilometre.nii": (patched((280, "<f", 1e6)), "its voxels measure 1e+06"),
    "voxels_of_a_micron.nii": (patched((280, "<f", 1e-4)), "its voxels measure 0.0001"),
    "a_head_of_five_metres.nii": (
        nifti(np.tile(VOXELS, (6, 1, 1)), affine=np.diag([150.0, 9, 9, 1])),
        "head scan: it measures",
    ),
    "far_away.nii": (patched((292, "<f", 1e7)), "from the origin"),
    "only_qform_mirrored.nii": (
        patched((254, "<h", 0), (252, "<h", 1), (80, "<f", -1.0)),
        "neither sform nor qform",
    ),
    "quaternion_too_long.nii": (patched((254, "<h", 0), (252, "<h", 1), (256, "<f", 9.0)), "neither sform nor qform"),
    # the voxels
    "one_nan.nii": (with_voxel(NAN), "1 voxels are not finite"),
    "one_infinite.nii": (with_voxel(INF), "1 voxels are not finite"),
    "all_nan.nii": (nifti(np.full_like(VOXELS, NAN)), "336 voxels are not finite"),
    "one_absurd.nii": (with_voxel(3e38), "beyond 1e18"),
    "all_zero.nii": (nifti(np.zeros_like(VOXELS)), "constant: every voxel is 0"),
    "all_seven.nii": (nifti(np.full(SHAPE, 7, np.int16)), "constant: every voxel is 7"),
    "one_voxel.nii": (nifti(VOXELS[:1, :1, :1]), "constant"),
    "two_volumes.nii": (nifti(np.stack([VOXELS] * 2, -1)), "several volumes (6×7×8×2)"),
    "five_volumes.nii.gz": (gzip.compress(nifti(np.stack([VOXELS] * 5, -1))), "several volumes"),
    "vector.nii": (nifti(np.stack([VOXELS[..., None]] * 3, -1)), "several volumes (6×7×8×1×3)"),
    # other formats
    "cut.mha": (metaimage()[:-1], "cut off"),
    "garbage_behind.mha": (metaimage() + b"x", "more bytes"),
    "absurd.mha": (metaimage(DimSize="60000 60000 60000"), "too many for a scan of a head"),
    "negative.mha": (metaimage(DimSize="6 -7 8"), "impossible dimensions"),
    "colour.mha": (metaimage(ElementNumberOfChannels="3"), "several numbers per voxel"),
    "no_type.mha": (metaimage(ElementType=None), "ElementType"),
    "odd_type.mha": (metaimage(ElementType="MET_STRING"), "MET_STRING"),
    "text_voxels.mha": (metaimage(BinaryData="False"), "BinaryData"),
    "flat_axes.mha": (metaimage(TransformMatrix="1 0 0 1 0 0 0 0 1"), "no usable orientation"),
    "nan_spacing.mha": (metaimage(ElementSpacing="nan 1 1"), "no usable orientation"),
    "two_fields.mha": (metaimage(NDims="3\nNDims = 4"), "damaged header"),
    "outside.mhd": (metaimage(ElementDataFile="../../../etc/passwd"), "put both files into one folder"),
    "absolute.mhd": (metaimage(ElementDataFile="/dev/zero"), "put both files into one folder"),
    "missing.mhd": (metaimage(ElementDataFile="gone.raw"), "which is not there"),
    "cut_packed.mha": (metaimage(CompressedData="True"), "damaged"),
    "cut.nrrd": (nrrd()[:-5], "cut off"),
    "garbage_behind.nrrd": (nrrd() + b"xyz", "more bytes"),
    "absurd.nrrd": (nrrd(sizes="9999999 9999999 9999999"), "too many for a scan of a head"),
    "detached.nrrd": (nrrd(data_file="../secret.raw"), "not supported"),
    "skipping.nrrd": (nrrd(byte_skip="-1"), "not supported"),
    "no_space.nrrd": (nrrd(space=None), "no usable orientation"),
    "vector.nrrd": (nrrd(space_directions="none (1,0,0) (0,1,0)"), "not three spatial axes"),
    "hex.nrrd": (nrrd(encoding="hex"), "encoding"),
    "no_end.nrrd": (nrrd().split(b"\n\n")[0], "cut off within its header"),
    "cut.mgz": (gzip.compress(mgh())[:-9], "cut off"),
    "cut.mgh": (mgh()[:900], "cut off"),
    "cut_in_header.mgh": (mgh()[:100], "cut off within its header"),
    "absurd.mgh": (
        mgh()[:4] + struct.pack(">4i", 99999, 99999, 99999, 1) + mgh()[20:],
        "too many for a scan of a head",
    ),
    "negative.mgh": (mgh()[:4] + struct.pack(">4i", -1, 7, 8, 1) + mgh()[20:], "impossible dimensions|not a readable"),
    "odd_type.mgh": (mgh()[:20] + struct.pack(">i", 77) + mgh()[24:], "not a readable MGH"),
    "flat_axes.mgh": (mgh()[:42] + bytes(36) + mgh()[78:], "no usable orientation"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused(refused, table, tmp_path, name):
    content, expected = BAD[name]
    (tmp_path / name).write_bytes(content)
    line = refused(3, "validate", "--data", table(f"case,t1\np1,{name}\n"), names=f"[p1/t1] {name}: ")
    assert any(words in line for words in expected.split("|")), line


def test_there_are_many_of_them():
    assert len(BAD) >= 100


DOUBTFUL = {
    "no_orientation.nii": (patched((252, "<h", 0), (254, "<h", 0)), "left and right are a guess"),
    "stale_spacing.nii": (patched((80, "<f", 1.5)), "is stale"),
    "negative_spacing.nii": (patched((80, "<f", -1.0)), "is not valid"),
    "zero_spacing.nii": (patched((84, "<f", 0.0)), "is not valid"),
    "nan_spacing.nii": (patched((88, "<f", NAN)), "is not valid"),
    "sform_against_qform.nii": (patched((252, "<h", 1), (268, "<f", 55.0)), "sform and qform differ by"),
    "sheared.nii": (patched((284, "<f", 0.4)), "sheared"),
    "sform_unusable.nii": (patched((252, "<h", 1), (280, "<f", NAN)), "the sform is not a usable affine"),
    "qform_unusable.nii": (patched((252, "<h", 1), (256, "<f", 9.0)), "the qform is not a usable affine"),
    "qform_mirrored.nii": (patched((252, "<h", 1), (80, "<f", -1.0)), "the qform is not a usable affine"),
    "odd_code.nii": (patched((254, "<h", 77)), "sform_code 77 is not a defined code"),
    "thick.nii": (patched((312 + 8, "<f", 35.0)), "implausible"),
    "metres_that_are_none.nii": (patched((123, "<B", 1)), "unit of length is not valid"),
    "far_away.nii": (patched((292, "<f", 5000.0)), "mm from the scanner's origin"),
    "slope_and_intercept_nan.nii": (patched((112, "<f", NAN), (116, "<f", NAN)), "are ignored"),
    "slope_zero.nii": (patched((112, "<f", 0.0), (116, "<f", 5.0)), "the intercept 5 is ignored"),
    "one_volume_in_4d.nii": (nifti(VOXELS[..., None]), "4D, but with only one volume"),
    "flat.nii": (nifti(VOXELS[..., 0]), "a 2D image"),
    "flat_of_both_forms.nii": (patched((252, "<h", 1), content=nifti(VOXELS[..., 0])), "a 2D image"),
    "mask_as_channel.nii": (nifti((np.tile(VOXELS, (1, 1, 4)) > 0.5).astype(np.uint8)), "2 different values, like a mask"),
    "one_bright_voxel.nii": (speck(), "almost constant: 1 of 2,000 voxels"),
    "seconds_as_gigaseconds.nii": (nifti(VOXELS * 1e-9), "span only"),
    "no_orientation.mgh": (mgh()[:28] + b"\0\0" + mgh()[30:], "default is assumed"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTFUL)
def test_a_doubtful_image_is_read_and_said(warned, table, tmp_path, name):
    content, expected = DOUBTFUL[name]
    (tmp_path / name).write_bytes(content)
    warned(expected, "validate", "--data", table(f"case,t1\np1,{name}\n"))


SOUND_ONES = {
    "nifti2.nii": nifti(kind=nibabel.Nifti2Image),
    "big_endian.nii": nibabel.Nifti1Image(VOXELS, AFFINE, nibabel.Nifti1Header(endianness=">")).to_bytes(),
    "two_members.nii.gz": gzip.compress(SOUND[:400]) + gzip.compress(SOUND[400:]) + bytes(512),
    "padded.nii": SOUND + bytes(100),
    "plain.mha": metaimage(),
    "plain.nrrd": nrrd(),
    "plain.mgz": gzip.compress(mgh()),
}


@pytest.mark.parametrize("name", SOUND_ONES)
def test_what_looks_odd_but_is_sound_goes_through(call, table, tmp_path, name):
    (tmp_path / name).write_bytes(SOUND_ONES[name])
    code, out, err = call("validate", "--data", table(f"case,t1\np1,{name}\n"))
    assert (code, err) == (0, "") and "1 case, no problems" in out


def test_metaimage_and_nrrd_are_read_as_simpleitk_reads_them(tmp_path):
    from medseg_diff.data.formats.dicom_mgh import _from_itk
    from medseg_diff.data.reading import read_volume

    rng = np.random.default_rng(0)
    for number, kind in enumerate(("int8", "uint8", "int16", "uint16", "int32", "float32", "float64")):
        image = SimpleITK.GetImageFromArray((rng.random((6, 5, 4)) * 100).astype(kind))
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        image.SetDirection(turn.ravel().tolist())
        image.SetSpacing((1.1, 0.7, 2.0))
        image.SetOrigin((5.0, -3.0, 9.0))
        voxels, affine = _from_itk(image)
        for suffix in ("mha", "mhd", "nrrd"):
            path = tmp_path / f"{kind}.{suffix}"
            SimpleITK.WriteImage(image, str(path), number % 2 == 0)
            found = read_volume(path)
            np.testing.assert_array_equal(found.voxels, voxels.astype(np.float32))
            np.testing.assert_allclose(found.affine, affine, atol=1e-6)


class TestWhatIsNoFile:
    def line(self, refused, table, name="t1.nii"):
        return refused(3, "validate", "--data", table(f"case,t1\np1,{name}\n"), names="[p1/t1] ")

    def test_a_pipe(self, refused, table, tmp_path):
        os.mkfifo(tmp_path / "t1.nii")
        assert "not a regular file" in self.line(refused, table)

    def test_a_folder_without_images(self, refused, table, tmp_path):
        (tmp_path / "t1.nii").mkdir()
        (tmp_path / "t1.nii" / "note.txt").write_text("hello")
        assert "holds no image and no DICOM series" in self.line(refused, table)

    def test_a_folder_with_a_pipe(self, refused, table, tmp_path):
        (tmp_path / "t1.nii").mkdir()
        os.mkfifo(tmp_path / "t1.nii" / "1.dcm")
        assert "1.dcm is not a regular file" in self.line(refused, table)

    def test_a_link_to_nothing(self, refused, table, tmp_path):
        (tmp_path / "t1.nii").symlink_to("gone.nii")
        assert "no such file" in self.line(refused, table)

    def test_a_link_to_itself(self, refused, table, tmp_path):
        (tmp_path / "t1.nii").symlink_to("t1.nii")
        assert "no such file" in self.line(refused, table) or "links" in self.line(refused, table)

    def test_a_name_that_no_system_takes(self, refused, table):
        assert "cannot be accessed" in self.line(refused, table, "x" * 2000 + ".nii")

    def test_a_folder_in_the_way(self, refused, table, tmp_path):
        (tmp_path / "a").write_bytes(b"file")
        assert "no such file" in self.line(refused, table, "a/t1.nii")

    @pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
    def test_a_file_that_may_not_or_cannot_be_read(self, refused, table, tmp_path, monkeypatch, error):
        def fail(path):
            raise error

        (tmp_path / "t1.nii").write_bytes(SOUND)
        monkeypatch.setattr("medseg_diff.data.formats.dicom_mgh.first_bytes", fail)  # root may read everything
        assert f"cannot be read ({error.strerror})" in self.line(refused, table)


def dicom_slice(folder, number, *, place=None, series="1.2.3", size=8, cut=0, **more):
    """One slice of a made-up series."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, f"1.2.9.{number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = Dataset()
    one.file_meta = meta
    one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    one.SeriesInstanceUID, one.StudyInstanceUID, one.Modality = series, "1.2", "MR"
    one.InstanceNumber = str(number)
    one.ImagePositionPatient = [0, 0, 3 * number if place is None else place]
    one.ImageOrientationPatient, one.PixelSpacing, one.SliceThickness = [1, 0, 0, 0, 1, 0], [1, 1], 3
    one.Rows = one.Columns = size
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
    one.PixelData = np.random.default_rng(number).integers(0, 999, (size, size), np.uint16).tobytes()
    for name, value in more.items():
        setattr(one, name, value)
    path = folder / f"{number}.dcm"
    one.save_as(path, enforce_file_format=True)
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])


class TestDicom:
    @pytest.fixture
    def series(self, tmp_path):
        folder = tmp_path / "t1"
        folder.mkdir()
        for number in range(5):
            dicom_slice(folder, number)
        return folder

    @pytest.fixture
    def data(self, table):
        return table("case,t1\np1,t1\n")

    def test_a_whole_series_goes_through(self, call, series, data):
        assert call("validate", "--data", data)[0] == 0

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda folder: (folder / "2.dcm").unlink(), "find the missing slices"),
            (lambda folder: dicom_slice(folder, 9, place=6), "same position"),
            (lambda folder: dicom_slice(folder, 9, series="1.2.4"), "holds 2 DICOM series"),
            (lambda folder: dicom_slice(folder, 5, size=16), "differ in size"),
            (lambda folder: dicom_slice(folder, 4, cut=40), "DICOM files cannot be read, such as 4.dcm"),
            (lambda folder: (folder / "3.dcm").write_bytes((folder / "3.dcm").read_bytes()[:300]), "3.dcm"),
            (lambda folder: (folder / "3.dcm").write_bytes(b""), "3.dcm is empty"),
            (lambda folder: dicom_slice(folder, 5, place=13), "find the missing slices"),
        ],
        ids=["missing", "double", "mixed", "other size", "cut", "cut in header", "empty", "uneven"],
    )
    def test_a_bad_series_is_refused(self, refused, series, data, change, said):
        change(series)
        assert said in refused(3, "validate", "--data", data, names="[p1/t1] t1: ")

    def test_what_is_no_dicom_is_left_out_and_said(self, warned, series, data):
        (series / "note.txt").write_text("hello")
        warned("1 non-DICOM files are left out, such as note.txt", "validate", "--data", data)
