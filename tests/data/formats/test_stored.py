"""Voxels read in pieces are those read at once, to the byte, whatever they are stored as."""

import gzip
import zlib

import numpy as np
import pytest

from medseg_diff.data.formats import stored
from medseg_diff.data.formats.stored import Stored, in_file, in_memory, unlike_a_scan, values_in
from medseg_diff.data.formats.stream import content_of
from medseg_diff.errors import ImageError

SHAPE = (5, 4, 23)
TYPES = ("u1", "<i2", ">i2", "<i4", ">f4", "<f8", ">f8", "<i8", "<u8")


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    """Three slices each; the last one alone."""
    monkeypatch.setattr(stored, "SLAB", 60)


def numbers(dtype, *, quiet=0):
    """Voxels of a type, the first slices of them all 7."""
    voxels = np.random.default_rng(0).integers(0, 90, SHAPE).astype(dtype)
    voxels[..., :quiet] = 7
    return voxels


def images(voxels, tmp_path, **facts):
    """The same image in memory, in a file and in packed ones, behind 13 bytes of something else."""
    raw = b"h" * 13 + voxels.tobytes("F")
    yield Stored(in_memory(voxels), voxels.shape, np.eye(4), **facts)
    for packing, content in (("", raw), ("gzip", gzip.compress(raw)), ("zlib", zlib.compress(raw))):
        path = tmp_path / f"a.{packing}"
        path.write_bytes(b"ab" + content + bytes(20) * (packing != "zlib"))
        read = content_of(path, len(raw), start=2, skip=13, packing=packing)
        yield Stored(in_file(read, voxels.dtype), voxels.shape, np.eye(4), **facts)


@pytest.mark.parametrize("quiet", [0, 1, 3, 7, 22])
@pytest.mark.parametrize("slope", [(1.0, 0.0), (0.37, -11.5)])
@pytest.mark.parametrize("dtype", TYPES)
def test_an_image_is_what_it_is_at_once(tmp_path, dtype, slope, quiet):
    voxels = numbers(dtype, quiet=quiet)
    expected = (voxels.astype(np.float64) * slope[0] + slope[1]).astype(np.float32)
    for image in images(voxels, tmp_path, slope=slope[0], intercept=slope[1]):
        found = image.image()
        assert found.dtype == np.float32 and found.flags.c_contiguous and np.array_equal(found, expected)
        assert np.array_equal(image.image(), expected)  # and a second time


@pytest.mark.parametrize("dtype", TYPES)
def test_so_are_labels_and_the_volumes_of_a_stack(tmp_path, dtype):
    voxels = numbers(dtype)
    for image in images(voxels, tmp_path):
        assert np.array_equal(image.labels(), voxels.astype(np.int16))
    stack = np.stack([voxels, voxels + 1], axis=3)
    for image in images(stack, tmp_path):
        assert [np.array_equal(each.image(), voxels + n) for n, each in enumerate(image.volumes())] == [True, True]


def test_a_zero_keeps_its_sign(tmp_path):
    voxels = np.zeros(SHAPE, np.float32)
    voxels[::2, 0, :10] = -0.0
    voxels[0, 0, 15] = 1
    for image in images(voxels, tmp_path):
        assert image.image().tobytes() == voxels.tobytes()


def test_a_constant_map_is_one_only_where_that_is_allowed(tmp_path):
    for image in images(numbers("<f8", quiet=23), tmp_path):
        assert np.array_equal(image.image(constant=True), np.full(SHAPE, 7, np.float32))
        with pytest.raises(ImageError, match="is constant: every voxel is 7"):
            image.image()


def test_what_is_wrong_is_counted_over_all_slabs(tmp_path):
    voxels = numbers("<f8", quiet=4)
    voxels[0, 0, [0, 9, 22]] = np.nan, np.inf, -np.inf
    for image in images(voxels, tmp_path):
        for read in (image.image, image.labels):
            with pytest.raises(ImageError, match="3 voxels are not finite"):
                read()
    voxels[0, 0, [0, 9, 22]] = 1, 2e18, 3
    for image in images(voxels, tmp_path):
        with pytest.raises(ImageError, match="beyond 1e18"):
            image.image()


def test_a_damaged_file_is_told_before_what_its_voxels_are(tmp_path):
    """Were the numbers told first, the remedy would be to mend them."""
    raw = np.full(SHAPE, np.nan).tobytes("F")
    content = bytearray(gzip.compress(raw))
    content[-6] ^= 1  # of the check sum
    (tmp_path / "a.gz").write_bytes(content)
    image = Stored(in_file(content_of(tmp_path / "a.gz", len(raw), packing="gzip"), np.dtype("<f8")), SHAPE, np.eye(4))
    for read in (image.image, image.labels):
        with pytest.raises(ImageError, match="damaged"):
            read()


def test_values_are_counted_as_far_as_they_matter():
    voxels = numbers("<f4")
    assert values_in(voxels) == set(np.unique(voxels).tolist())
    assert 8 < len(values_in(voxels, most=8)) < len(values_in(voxels))


def test_what_is_no_scan_is_said():
    many = np.random.default_rng(0).random((20, 20, 20), dtype=np.float32)
    assert unlike_a_scan(many) == []
    assert unlike_a_scan((many > 0.5).astype(np.float32)) == ["holds only 2 different values, like a mask"]
    assert "is almost constant: 1 of 8,000 voxels differ" in unlike_a_scan(np.float32(np.arange(8000) == 7))[0]
    assert "span only" in unlike_a_scan(many * np.float32(1e-6))[0]
