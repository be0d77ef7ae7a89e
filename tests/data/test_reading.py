"""The strict reader: every damaged file is refused with its reason, every doubtful one is read and said."""

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import axes_of, reoriented, same_grid
from medseg_diff.data.reading import count_volumes, read_case, read_labels, read_volume, read_volumes
from medseg_diff.data.tables.manifest import Case, read_manifest
from medseg_diff.errors import ExitCode, ImageError, ManifestError, MedsegError, Problems
from tests.scans import SCANS, needs_scans

real = needs_scans()

RAMP = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
AFFINE = np.array([[-1.0, 0, 0, 3], [0, -1, 0, 4], [0, 0, 2, -5], [0, 0, 0, 1]])


def patched(*changes: tuple[int, str, object], voxels: np.ndarray = RAMP) -> bytes:
    """A sound NIfTI-1 file with some header fields overwritten: (byte offset, struct format, value)."""
    content = bytearray(nibabel.Nifti1Image(voxels, AFFINE).to_bytes())
    for offset, layout, value in changes:
        struct.pack_into(layout, content, offset, value)
    return bytes(content)


def saved(tmp_path: Path, content: bytes, name: str = "t1.nii") -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", ">i2", ">f4"])
@pytest.mark.parametrize("packed", [False, True])
def test_voxels_and_affine_are_nibabels(tmp_path, kind, dtype, packed):
    image = kind(RAMP.astype(dtype), AFFINE, kind.header_class(endianness=">") if dtype[0] == ">" else None)
    image.header.set_data_dtype(dtype)
    content = image.to_bytes()
    volume = read_volume(
        saved(tmp_path, gzip.compress(content) if packed else content, "t1.nii.gz" if packed else "t1.nii")
    )
    np.testing.assert_array_equal(volume.voxels, RAMP)
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.voxels.dtype == np.float32 and volume.voxels.flags.c_contiguous and volume.warnings == ()


def test_slope_and_intercept_apply(tmp_path):
    path = saved(tmp_path, patched((112, "<f", 0.5), (116, "<f", -7.0)))
    np.testing.assert_allclose(read_volume(path).voxels, RAMP * 0.5 - 7.0)


BITS = patched()
DAMAGED = {
    "empty": (b"", "is empty"),
    "text": (b"hello" * 200, "not an image in a known format"),
    "cut in the header": (BITS[:347], "cut off within its header"),
    "cut after the header": (BITS[:352], "is cut off"),
    "cut in the voxels": (BITS[:-1], "is cut off"),
    "analyze": (patched((344, "<4s", b"\0\0\0\0")), "Analyze"),
    "no dimensions": (patched((40, "<h", 0)), "damaged header|impossible dimensions"),
    "eight dimensions": (patched((40, "<h", 8)), "damaged header|impossible dimensions"),
    "negative dimension": (patched((42, "<h", -4)), "impossible dimensions"),
    "zero dimension": (patched((44, "<h", 0)), "impossible dimensions"),
    "absurd dimensions": (
        patched((42, "<h", 32767), (44, "<h", 32767)),
        "too many for a scan of a head",
    ),
    "larger than the file": (patched((42, "<h", 500), (44, "<h", 500)), "is cut off"),
    "unknown type": (patched((70, "<h", 77)), "unknown type 77"),
    "complex": (patched((70, "<h", 32)), "complex"),
    "RGB": (patched((70, "<h", 128)), "RGB"),
    "wrong bits": (patched((72, "<h", 8)), "float32 with 8 bits"),
    "offset inside the header": (patched((108, "<f", 100.0)), "begin at byte 100"),
    "offset not a number": (patched((108, "<f", float("nan"))), "begin at byte nan"),
    "offset beyond the file": (patched((108, "<f", 1e6)), "is cut off"),
    "infinite slope": (patched((112, "<f", float("inf"))), "slope inf"),
    "intercept not a number": (patched((112, "<f", 2.0), (116, "<f", float("nan"))), "intercept nan"),
    "NaN voxel": (patched(voxels=np.where(RAMP == 7, np.nan, RAMP)), "1 voxels are not finite"),
    "infinite voxel": (patched(voxels=np.where(RAMP == 7, np.inf, RAMP)), "not finite"),
    "constant": (patched(voxels=np.full_like(RAMP, 3)), "constant: every voxel is 3"),
    "slope that overflows": (patched((112, "<f", 3e38)), "squares overflow"),
    "5D vector": (nibabel.Nifti1Image(np.tile(RAMP[..., None, None], 3), AFFINE).to_bytes(), "several volumes"),
    "several volumes": (nibabel.Nifti1Image(np.stack([RAMP] * 4, -1), AFFINE).to_bytes(), "several volumes (4×5×6×4)"),
    "damaged gz": (gzip.compress(BITS)[:40] + b"\xff" + gzip.compress(BITS)[41:], "damaged|cut off"),
    "gz cut off": (gzip.compress(BITS)[:-20], "cut off"),
    "gz without its check sum": (gzip.compress(BITS)[:-8], "cut off"),
    "gz with a wrong check sum": (gzip.compress(BITS)[:-8] + b"\0" * 8, "damaged"),
    "gz with far more than promised": (gzip.compress(BITS + bytes(2**20)), "more bytes than its header"),
    "no usable affine": (patched((280, "<f", float("nan"))), "neither sform nor qform"),
    "DICOM slice": (bytes(128) + b"DICM" + bytes(500), "one DICOM slice"),
}


@pytest.mark.parametrize("content, expected", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused_with_the_reason(tmp_path, content, expected):
    with pytest.raises(ImageError) as caught:
        read_volume(
            saved(tmp_path, content, "x.nii.gz" if content[:2] == b"\x1f\x8b" else "x.nii"), case="p1", channel="t1"
        )
    line = caught.value.line
    assert line.startswith("[p1/t1] x.nii") and "Fix: " in line and str(tmp_path) not in line
    assert any(option in line for option in expected.split("|")), line


def test_every_single_flipped_bit_of_a_gz_is_seen(tmp_path):
    """Either the stream or its check sum tells; bits of the gzip header that mean nothing may change nothing."""
    content = gzip.compress(BITS, mtime=0)
    for place in range(10, len(content), 7):
        broken = bytearray(content)
        broken[place] ^= 0x10
        with pytest.raises(ImageError):
            read_volume(saved(tmp_path, bytes(broken), "x.nii.gz"))


def test_a_bomb_is_refused_before_it_unpacks(tmp_path):
    header = patched((42, "<h", 800), (44, "<h", 800), (46, "<h", 600))[:352]
    content = gzip.compress(header + bytes(2**20))
    tracemalloc.start()
    with pytest.raises(ImageError, match="times its size"):
        read_volume(saved(tmp_path, content, "x.nii.gz"))
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    for path, expected in ((tmp_path / "gone.nii", "No such file"), (tmp_path / "pipe.nii", "not a regular file")):
        with pytest.raises(ImageError, match=expected) as caught:
            read_volume(path)
        assert caught.value.exit_code == ExitCode.IMAGE


QFORM_CODE, SFORM_CODE, QUATERN_B, QOFFSET_X, PIXDIM_X, SROW_X, UNITS = 252, 254, 256, 268, 80, 280, 123


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(QFORM_CODE, "<h", 0), (SFORM_CODE, "<h", 0)], "neither sform nor qform is set"),
        ([(QFORM_CODE, "<h", 1), (QOFFSET_X, "<f", 55.0)], "sform and qform differ by 52 mm"),
        ([(PIXDIM_X, "<f", 1.5)], "spacing 1.5×1×2 mm is stale"),
        ([(SROW_X + 4, "<f", 0.4)], "sheared"),
        ([(SROW_X, "<f", -60.0)], "implausible"),
        ([(QFORM_CODE, "<h", 1), (SROW_X, "<f", float("nan"))], "the sform is not a usable affine"),
        ([(QFORM_CODE, "<h", 1), (QUATERN_B, "<f", 9.0)], "the qform is not a usable affine"),
        ([(UNITS, "<B", 1)], "unit of length is not valid"),
        ([(112, "<f", float("nan")), (116, "<f", float("nan"))], "slope and intercept are not numbers"),
    ],
)
def test_contradictions_are_read_and_said(tmp_path, changes, expected):
    volume = read_volume(saved(tmp_path, patched(*changes)))
    assert any(expected in warning for warning in volume.warnings), volume.warnings


@pytest.mark.parametrize(
    ("sform", "qform", "code"), [(4, 1, 4), (0, 2, 2), (3, 0, 3), (0, 0, 1), (9, 2, 1), (-1, 5, 5)]
)
def test_the_code_is_that_of_the_form_that_is_used(tmp_path, sform, qform, code):
    image = nibabel.Nifti1Image(RAMP, AFFINE)
    image.header.set_qform(AFFINE, code=1)
    content = bytearray(image.to_bytes())
    struct.pack_into("<h", content, SFORM_CODE, sform)
    struct.pack_into("<h", content, QFORM_CODE, qform)
    volume = read_volume(saved(tmp_path, content))
    assert volume.code == code
    assert read_case(Case("p", "p", images={"t1": tmp_path / "t1.nii"})).code == code


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_qfac_of_0_means_1(tmp_path, mirrored):
    """nifti1.h says so; -1 mirrors the third axis."""
    affine = AFFINE @ np.diag([1, 1, -1 if mirrored else 1, 1])
    image = nibabel.Nifti1Image(RAMP, affine)
    image.header.set_qform(affine, code=1)
    image.header["sform_code"] = 0
    content = bytearray(image.to_bytes())
    assert struct.unpack_from("<f", content, 76) == (-1.0 if mirrored else 1.0,)
    np.testing.assert_allclose(read_volume(saved(tmp_path, content)).affine, affine, atol=1e-6)
    struct.pack_into("<f", content, 76, 0.0)
    volume = read_volume(saved(tmp_path, content))
    np.testing.assert_allclose(volume.affine, affine @ np.diag([1, 1, -1 if mirrored else 1, 1]), atol=1e-6)
    assert volume.warnings == ()


def test_metres_become_millimetres(tmp_path):
    image = nibabel.Nifti1Image(RAMP, np.diag([0.001, 0.001, 0.002, 1]))
    image.header.set_xyzt_units("meter")
    volume = read_volume(saved(tmp_path, image.to_bytes()))
    np.testing.assert_allclose(volume.affine, np.diag([1, 1, 2, 1]), rtol=1e-6)
    assert volume.warnings == ("lengths are in metres and were converted to millimetres",)


def test_4d_of_one_volume_and_2d_become_3d_and_say_so(tmp_path):
    volume = read_volume(saved(tmp_path, nibabel.Nifti1Image(RAMP[..., None], AFFINE).to_bytes()))
    assert volume.shape == RAMP.shape and volume.warnings == ("4D, but with only one volume",)
    flat = read_volume(saved(tmp_path, nibabel.Nifti1Image(RAMP[..., 0], AFFINE).to_bytes()))
    assert flat.shape == (4, 5, 1) and "one slice" in flat.warnings[0]


def test_a_stack_is_read_as_its_volumes(tmp_path):
    path = saved(tmp_path, nibabel.Nifti1Image(np.stack([RAMP, RAMP + 1, RAMP * 2], -1), AFFINE).to_bytes())
    assert count_volumes(path) == 3
    parts = read_volumes(path)
    for part, expected in zip(parts, (RAMP, RAMP + 1, RAMP * 2), strict=True):
        np.testing.assert_array_equal(part.voxels, expected)
    case = Case("p", "p", stack=path, stack_channels=("t1", "t2", "flair"))
    assert read_case(case, ["flair", "t1"]).image.shape == (2, *RAMP.shape)
    with pytest.raises(ImageError, match="holds 3 volumes, but 2 are named"):
        read_case(Case("p", "p", stack=path, stack_channels=("t1", "t2")))


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        (np.full((2, 3, 4), 0.5, np.float32), "not whole numbers (off by up to 0.5)"),
        (np.full((2, 3, 4), -1, np.int16), "labels run from -1 to -1"),
        (np.full((2, 3, 4), 40000, np.int32), "labels run from 40000"),
        (np.full((2, 3, 4), np.nan, np.float32), "not finite"),
    ],
)
def test_what_is_no_mask(tmp_path, voxels, expected):
    image = nibabel.Nifti1Image(voxels, AFFINE)
    with pytest.raises(ImageError) as caught:
        read_labels(saved(tmp_path, image.to_bytes(), "seg.nii"), case="p1")
    assert expected in caught.value.line and caught.value.line.startswith("[p1/seg] seg.nii")


def test_masks_may_be_empty_or_stored_as_floats(tmp_path):
    empty = read_labels(saved(tmp_path, nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), AFFINE).to_bytes()))
    assert empty.voxels.dtype == np.int16 and not empty.voxels.any()
    stored = np.array([0, 1, 2, 3.0000002], np.float32).reshape(2, 2, 1)
    labels = read_labels(saved(tmp_path, nibabel.Nifti1Image(stored, AFFINE).to_bytes()))
    np.testing.assert_array_equal(labels.voxels.ravel(), [0, 1, 2, 3])


def case_of(tmp_path: Path, **volumes: tuple[np.ndarray, np.ndarray]) -> Case:
    """A case whose channels, seg and raters are given as (voxels, affine)."""
    paths = {}
    for name, (voxels, affine) in volumes.items():
        paths[name] = tmp_path / f"{name}.nii.gz"
        write_volume(paths[name], np.ascontiguousarray(voxels), affine)
    images = {name: path for name, path in paths.items() if not name.startswith("seg")}
    raters = tuple(path for name, path in paths.items() if name.startswith("seg_"))
    return Case("p1", "p1", images=images, seg=paths.get("seg"), raters=raters)


def test_a_case_is_read_whole(tmp_path):
    mask = (RAMP > 60).astype(np.uint8)
    volumes = {"t1": RAMP, "t2": RAMP * 2, "seg": mask, "seg_1": mask, "seg_2": 1 - mask}
    case = case_of(tmp_path, **{name: (voxels, AFFINE) for name, voxels in volumes.items()})
    images = read_case(case)
    assert images.channels == ("t1", "t2") and images.image.dtype == np.float32
    np.testing.assert_array_equal(images.image, np.stack([RAMP, RAMP * 2]))
    np.testing.assert_array_equal(images.reference, mask)
    np.testing.assert_array_equal(images.raters, np.stack([mask, 1 - mask]))
    assert images.voxel_ml == pytest.approx(0.002) and images.warnings == ()
    assert read_case(case, ["t2"], reference=False).reference is None


def test_another_order_of_the_axes_is_turned_and_said(tmp_path):
    turned = np.ascontiguousarray(RAMP.transpose(2, 0, 1)[::-1])
    affine = AFFINE @ np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 5], [0, 0, 0, 1.0]])
    images = read_case(case_of(tmp_path, t1=(-RAMP, AFFINE), t2=(turned, affine)))
    np.testing.assert_array_equal(images.image[1], RAMP)
    assert images.warnings == (f"t2: reoriented from {axes_of(affine)} to LPS, like t1",)


def test_a_case_has_the_code_of_the_grid_that_it_is_brought_onto(tmp_path):
    case = case_of(tmp_path, t1=(RAMP, AFFINE), t2=(RAMP, AFFINE @ np.diag([2, 2, 2, 1])))
    write_volume(case.images["t2"], RAMP, AFFINE @ np.diag([2, 2, 2, 1]), code=4)
    assert read_case(case, resample_to="t2").code == 4 and read_case(case, resample_to="t1").code == 1


def test_another_grid_is_refused_with_the_distance_and_handled_on_request(tmp_path):
    smooth = np.indices((8, 9, 10)).sum(0).astype(np.float32)
    moved = AFFINE.copy()
    moved[0, 3] += 1.0
    case = case_of(tmp_path, t1=(smooth, AFFINE), t2=(smooth, moved), seg=((smooth > 9).astype(np.uint8), moved))
    with pytest.raises(Problems) as caught:
        read_case(case)
    for line, channel in zip(caught.value.lines, ("t2", "seg"), strict=True):
        assert line == (
            f"[p1/{channel}] not on the grid of t1: corners up to 1 mm apart. "
            "Fix: pass --resample-to t1, or resample it yourself."
        )
    images = read_case(case, resample_to="t1")
    # One voxel along an axis that runs from left to right is -1 mm, so every voxel reads its neighbour.
    np.testing.assert_allclose(images.image[1][:-1], smooth[1:], atol=1e-4)
    np.testing.assert_array_equal(images.reference[:-1], smooth[1:] > 9)
    assert len(images.warnings) == 2 and "resampled onto the grid of t1" in images.warnings[0]
    assert len(read_case(case, resample_to="t2").warnings) == 1
    with pytest.raises(ManifestError, match="no channel flair"):
        read_case(case, resample_to="flair")


def test_all_faults_of_a_case_are_named_at_once(tmp_path):
    case = case_of(tmp_path, t1=(RAMP, AFFINE), t2=(RAMP, AFFINE), seg=(RAMP, AFFINE))
    (tmp_path / "t1.nii.gz").write_bytes(b"")
    (tmp_path / "t2.nii.gz").unlink()
    with pytest.raises(Problems) as caught:
        read_case(case)
    assert [problem.channel for problem in caught.value.problems] == ["t1", "t2"]
    with pytest.raises(ManifestError, match=r"\[p1\] has no flair \(its channels: t1, t2\)"):
        read_case(case, ["t1", "flair"])


def test_an_image_off_by_rounding_is_on_the_same_grid(tmp_path):
    nudged = AFFINE.copy()
    nudged[:3, 3] += 1e-4
    assert read_case(case_of(tmp_path, t1=(RAMP, AFFINE), t2=(-RAMP, nudged))).warnings == ()


class TestReal:
    pytestmark = real

    def test_nine_orientations_are_one_head(self):
        heads = [reoriented(read_volume(path), "RAS") for path in sorted((SCANS / "awkward/nifti_space").iterdir())]
        assert len(heads) == 9
        for head in heads[1:]:
            np.testing.assert_array_equal(head.voxels, heads[0].voxels)
            assert same_grid(head, heads[0])

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("6_ax_asc_35sl.nii", "several volumes (64×64×35×2)"),
            ("V1.nii.gz", "several volumes (84×92×56×3)"),
            ("papaya_series.nii.gz", "several volumes"),
            ("complex.nii.gz", "complex"),
            ("ct_perfusion.nii.gz", "RGB"),
            ("ras.img", "give its .hdr"),
        ],
    )
    def test_what_is_not_one_volume_is_refused(self, name, expected):
        with pytest.raises(ImageError) as caught:
            read_volume(SCANS / "awkward" / name)
        assert expected in caught.value.line

    @pytest.mark.parametrize(
        ("name", "axes", "warnings"),
        [
            ("minimal.nii.gz", "LAS", 1),
            ("papaya_zstat1.nii.gz", "RAS", 1),
            ("ras.hdr", "RAS", 0),
            ("shear.nii.gz", "RAS", 2),
            ("strokez.nii.gz", "LAS", 0),
            ("brainmask.mgz", "LIA", 0),
            ("mha.mha", "LAS", 0),
        ],
    )
    def test_what_is_awkward_but_whole_is_read(self, name, axes, warnings):
        volume = read_volume(SCANS / "awkward" / name)
        assert axes_of(volume.affine) == axes and len(volume.warnings) == warnings
        if not name.endswith(".mha"):  # nibabel reads all the others
            expected = nibabel.load(SCANS / "awkward" / name)
            np.testing.assert_allclose(volume.voxels, expected.get_fdata().reshape(volume.shape), rtol=1e-6)
            np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)

    def test_a_dicom_series(self, tmp_path):
        for number in (4, 5, 6, 7):  # all 20 take SimpleITK many seconds
            (tmp_path / f"{number}.dcm").symlink_to((SCANS / f"dicom/papaya_brain/brain_{number:03}.dcm").resolve())
        volume = read_volume(tmp_path)
        assert volume.shape == (256, 256, 4) and axes_of(volume.affine) == "LPS"
        assert "even spacing is assumed" in volume.warnings[0]
        (tmp_path / "5.dcm").unlink()
        (tmp_path / "8.dcm").symlink_to((SCANS / "dicom/papaya_brain/brain_008.dcm").resolve())
        with pytest.raises(ImageError, match="find the missing slices"):
            read_volume(tmp_path)

    def test_a_2d_slice_is_one_slice(self):
        path = next((SCANS / "slices2d").rglob("t1.nii.gz"))
        assert read_volume(path).shape == (240, 240, 1)

    def test_both_label_conventions_of_brats(self):
        labels = {case.name: set(np.unique(read_labels(case.seg).voxels)) for case in brats().cases}
        assert labels["BraTS2021_00006"] == {0, 1, 2, 4} and labels["BraTS-GLI-00000-000"] == {0, 1, 2, 3}

    def test_three_oblique_grids(self):
        folder = SCANS / "ms/patient03_study2_raw"
        case = Case("p03", "p03", images={channel: folder / f"{channel}.nii.gz" for channel in ("t1", "t2", "flair")})
        with pytest.raises(MedsegError) as caught:
            read_case(case)
        assert len(caught.value.lines) == 2 and all("mm apart" in line for line in caught.value.lines)
        images = read_case(case, resample_to="t1")
        assert images.image.shape == (3, 256, 256, 48)
        # SimpleITK reads these sound files well, and resamples by code that is not ours.
        onto, flair = (
            SimpleITK.ReadImage(str(case.images[channel]), SimpleITK.sitkFloat32) for channel in ("t1", "flair")
        )
        expected = SimpleITK.GetArrayFromImage(SimpleITK.Resample(flair, onto)).T
        inside = expected > 0  # at the very border of the field of view the two may round differently
        assert inside.mean() > 0.3
        apart = np.abs(images.image[2] - expected)[inside]
        assert np.quantile(apart, 0.99) < 0.01


def brats():
    return read_manifest(SCANS / "brats/cases.csv")
