"""The cache of prepared cases is used until a file, channel or setting changes."""

import os
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from medseg_diff.data.datasets import cache
from medseg_diff.data.datasets.cache import prepare_training_case
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_volume
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Preparation
from medseg_diff.errors import ImageError, ManifestError, MedsegError


@pytest.fixture
def case(tmp_path):
    """A case of two channels with its reference, on disk."""
    rng = np.random.default_rng(0)
    inside = np.zeros((14, 12, 8), bool)
    inside[3:-3, 3:-3, 2:-1] = True
    for channel in ("t1", "flair"):
        values = np.where(inside, 50 + 20 * rng.random(inside.shape), 0)
        write_volume(tmp_path / f"{channel}.nii.gz", values.astype(np.float32), np.eye(4))
    seg = np.zeros(inside.shape, np.uint8)
    seg[5:8, 5:7, 4] = 4
    write_volume(tmp_path / "seg.nii.gz", seg, np.eye(4))
    images = {channel: tmp_path / f"{channel}.nii.gz" for channel in ("t1", "flair")}
    return Case("a", "a", images=images, seg=tmp_path / "seg.nii.gz")


def prepared(case, tmp_path, channels=("t1", "flair"), preparation=None):
    return prepare_training_case(case, channels, preparation or Preparation(), tmp_path / "cache")


def test_the_prepared_case_is_a_stack_of_slices(case, tmp_path):
    found = prepared(case, tmp_path)
    assert found.image.shape[1] == 2 and found.image.dtype == np.float16 and isinstance(found.image, np.memmap)
    assert found.labels.shape[1] == found.brain.shape[1] == 1
    assert found.image.shape[0] == found.labels.shape[0] == found.brain.shape[0] == 8  # 5 of brain and the margin
    assert (found.labels == 4).sum() == 6
    np.testing.assert_array_equal(found.image[:, 0][found.brain[:, 0] == 0], -1)


def test_the_cache_is_used_until_something_changes(case, tmp_path, monkeypatch):
    reads = []
    read = cache.read_case
    monkeypatch.setattr(cache, "read_case", lambda *args, **options: reads.append(1) or read(*args, **options))
    first = prepared(case, tmp_path)
    again = prepared(case, tmp_path)
    assert len(reads) == 1 and np.array_equal(first.image, again.image)
    prepared(case, tmp_path, channels=("flair", "t1"))
    prepared(case, tmp_path, preparation=Preparation(intensity="robust", background=-5.0))
    assert len(reads) == 3
    prepared(case, tmp_path, preparation=Preparation(resample_to="flair"))
    assert len(reads) == 4
    stamp = case.images["t1"].stat()
    os.utime(case.images["t1"], ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    prepared(case, tmp_path)
    assert len(reads) == 5
    for half in (tmp_path / "cache").rglob("labels.npy"):
        half.unlink()
    assert np.array_equal(prepared(case, tmp_path).image, prepared(case, tmp_path).image)
    assert len(reads) == 6  # made whole again, once
    assert not list((tmp_path / "cache").rglob(".*"))  # nothing half-written is left


def test_a_case_on_several_grids_lies_on_the_one_asked_for(case, tmp_path):
    write_volume(tmp_path / "t1.nii.gz", read_volume(case.images["t1"]).voxels[:, :, ::2], np.diag([1, 1, 2, 1.0]))
    with pytest.raises(MedsegError, match="not on the grid of t1"):
        prepared(case, tmp_path)
    coarse = prepared(case, tmp_path, preparation=Preparation(resample_to="t1"))
    fine = prepared(case, tmp_path, preparation=Preparation(resample_to="flair"))
    assert (len(coarse.image), len(fine.image)) == (4, 8)
    assert "t1: resampled onto the grid of flair" in fine.warnings[0]
    assert (fine.labels == 4).sum() == 6 and (coarse.labels == 4).sum() == 6  # of the slice that it kept


def test_a_case_without_a_reference_cannot_be_learned_from(case, tmp_path):
    with pytest.raises(ImageError, match=r"\[a\] the case has no reference. Fix: fill the column seg"):
        prepared(replace(case, seg=None), tmp_path)


def flipped(at):
    return lambda content: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGE = {
    "empty": lambda content: b"",
    "within the header": lambda content: content[:60],
    "within the voxels": lambda content: content[:300],
    "longer": lambda content: content + b"\0",
    "a bit of the header": flipped(23),
    "a bit": flipped(-200),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", cache.CACHED)
def test_a_damaged_cache_is_made_again(case, tmp_path, name, how):
    prepared(case, tmp_path)
    (file,) = (tmp_path / "cache").rglob(f"{name}.npy")
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[how](whole))
    assert file.read_bytes() != whole
    prepared(case, tmp_path)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("facts", ["", "[]", "4", '{"crc32": 4}', '{"warnings": []}', "gone", "no warnings"])
def test_what_is_said_of_the_cache_may_be_damaged_too(case, tmp_path, facts):
    expected = prepared(case, tmp_path)
    (file,) = (tmp_path / "cache").rglob("prepared.json")
    whole = file.read_text()
    if facts == "gone":
        file.unlink()
    else:
        file.write_text(whole.replace("warnings", "warning") if facts == "no warnings" else facts)
    assert prepared(case, tmp_path).warnings == expected.warnings and file.read_text() == whole


def test_what_was_doubtful_is_kept(case, tmp_path):
    write_volume(case.seg, np.zeros(read_volume(case.images["t1"]).voxels.shape, np.uint8), np.eye(4))
    for _ in range(2):
        assert "seg is empty: no voxel is marked" in prepared(case, tmp_path).warnings


def test_large_labels_keep_their_value(case, tmp_path):
    seg = np.zeros(read_volume(case.images["t1"]).voxels.shape, np.int16)
    seg[5:8, 5:7, 4] = 257  # one byte would make it 1
    write_volume(case.seg, seg, np.eye(4))
    assert (prepared(case, tmp_path).labels == 257).sum() == 6


def test_a_case_may_lack_a_channel_where_that_is_allowed(case, tmp_path):
    lacking = replace(case, images={"t1": case.images["t1"]})
    with pytest.raises(ManifestError, match="has no flair"):
        prepared(lacking, tmp_path)
    found = prepare_training_case(lacking, ("flair", "t1"), Preparation(), tmp_path / "cache", fill_missing=True)
    whole = prepared(case, tmp_path, channels=("flair", "t1"))
    assert (found.image[:, 0] == -1).all() and np.array_equal(found.image[:, 1], whole.image[:, 1])
    assert np.array_equal(found.labels, whole.labels)


def test_other_names_of_the_volumes_of_a_4d_file_make_another_case(case, tmp_path):
    volumes = [read_volume(case.images[channel]).voxels for channel in ("t1", "flair")]
    nibabel.save(nibabel.Nifti1Image(np.stack(volumes, axis=-1), np.eye(4)), tmp_path / "both.nii.gz")
    stacked = replace(case, images={}, stack=tmp_path / "both.nii.gz", stack_channels=("t1", "flair"))
    found, plain = prepared(stacked, tmp_path), prepared(case, tmp_path)
    assert np.array_equal(found.image, plain.image) and np.array_equal(found.labels, plain.labels)
    swapped = prepared(replace(stacked, stack_channels=("flair", "t1")), tmp_path)
    assert np.array_equal(swapped.image, plain.image[:, ::-1])
