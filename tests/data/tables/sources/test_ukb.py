"""Bulk files of UK Biobank become a table: only what is needed is unpacked, safely, and fields are covariates."""

import logging
import os
import stat
import zipfile

import numpy as np
import pytest

from medseg_diff.data.reading import read_volume
from medseg_diff.data.tables.sources import ukb
from medseg_diff.errors import EnvironmentFault, ImageError, ManifestError, MedsegError, Problems, UsageError
from medseg_diff.tasks.prepare import prepare

T1 = ("T1/T1.nii.gz", "T1/T1_brain.nii.gz", "T1/T1_unbiased_brain.nii.gz", "T1/T1_brain_mask.nii.gz")
FLAIR = ("T2_FLAIR/T2_FLAIR.nii.gz", "T2_FLAIR/T2_FLAIR_brain.nii.gz", "T2_FLAIR/lesions/final_mask.nii.gz")


class Bulk:
    """A folder of downloads."""

    def __init__(self, folder, make, scratch):
        self.folder, self.make, self.scratch = folder, make, scratch
        folder.mkdir()

    def zip(self, name, members, **others):
        """An archive of images, and of `others` with the bytes given."""
        with zipfile.ZipFile(self.folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in members:
                archive.write(self.write(self.scratch / member), member)
            for member, content in others.items():
                archive.writestr(member, content)
        return self.folder / name

    def write(self, path):
        return self.make.mask(path) if "mask" in path.name else self.make.image(path)

    def participants(self, *eids, visit=2):
        for eid in eids:
            self.zip(f"{eid}_20252_{visit}_0.zip", T1, **{"T1/transforms/T1_to_MNI.mat": b"1", "../evil.txt": b"x"})
            self.zip(f"{eid}_20253_{visit}_0.zip", FLAIR)


@pytest.fixture
def bulk(tmp_path, make):
    return Bulk(tmp_path / "bulk", make, tmp_path / "scratch")


@pytest.fixture
def table(bulk, tmp_path, caplog):
    def call(**options):
        with caplog.at_level(logging.INFO):
            options = {"source": "ukb", "out": tmp_path / "lists" / "ukb.csv"} | options
            return prepare(bulk.folder, **options)

    return call


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_brains_are_unpacked_beside_the_table_and_nothing_else(bulk, table, read_all, tmp_path):
    bulk.participants(1000001, 1000002, 1000003, 1000004)
    bulk.participants(1000002, visit=3)
    bulk.make.junk(bulk.folder / "._1000001_20252_2_0.zip", bulk.folder / "ukb.bulk", bulk.folder / "notes.zip")
    cases = read_all(table())
    assert list(cases) == ["1000001_2", "1000002_2", "1000002_3", "1000003_2", "1000004_2"]
    assert cases["1000002_3"].patient == "1000002" and cases["1000002_3"].split == cases["1000002_2"].split
    assert {case.channels for case in cases.values()} == {("t1", "flair")} and not any(c.seg for c in cases.values())
    images = [f"{name}/{channel}.nii.gz" for name in sorted(cases) for channel in ("flair", "t1")]
    assert below(tmp_path / "lists") == sorted(
        ["ukb.csv", "ukb_images/made_by_medseg_diff.txt", *(f"ukb_images/{image}" for image in images)]
    )
    assert not list(tmp_path.rglob("evil.txt"))
    with zipfile.ZipFile(bulk.folder / "1000001_20252_2_0.zip") as archive:
        archive.extract("T1/T1_brain.nii.gz", tmp_path / "by_hand")
    by_hand = read_volume(tmp_path / "by_hand" / "T1" / "T1_brain.nii.gz")
    assert np.array_equal(read_volume(cases["1000001_2"].images["t1"]).voxels, by_hand.voxels)


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "copies"])
def test_unpacked_folders_lesions_and_the_unbiased_image(bulk, table, read_all, links, monkeypatch, caplog):
    if not links:
        monkeypatch.setattr(os, "link", lambda source, target: (_ for _ in ()).throw(OSError("another disk")))
    for member in (*T1, *FLAIR):
        bulk.write(bulk.folder / "1000001" / member)
    bulk.participants(1000002)
    (bulk.folder / "1000003_20252_2_0").mkdir()
    (bulk.folder / "1000003_20252_2_0" / "T1").symlink_to(bulk.folder / "1000001" / "T1")
    with pytest.raises(ImageError, match=r"\[1000003_2\] t1, flair not found"):  # what a link leads to is not looked at
        table()
    cases = read_all(table(seg="final_mask", prefer="unbiased", skip_incomplete=True))
    assert list(cases) == ["1000001_2", "1000002_2"] and all(case.seg for case in cases.values())
    taken, there = cases["1000001_2"].images["t1"], bulk.folder / "1000001" / "T1" / "T1_unbiased_brain.nii.gz"
    assert taken.read_bytes() == there.read_bytes() and not taken.is_symlink() and taken.samefile(there) == links
    read_all(table(seg="manual", overwrite=True, skip_incomplete=True))
    assert "2 visits have no T2_FLAIR/lesions/manual: 1000001_2, 1000002_2" in caplog.text


def test_a_visit_without_flair_is_a_choice(bulk, table, read_all, tmp_path, caplog):
    bulk.participants(1000001)
    bulk.zip("1000002_20252_2_0.zip", ("T1/T1_brain.nii.gz",))
    with pytest.raises(ImageError, match=r"\[1000002_2\] flair not found. Fix: do without it: --channels t1 "):
        table()
    assert not (tmp_path / "lists" / "ukb_images").exists()
    assert list(read_all(table(skip_incomplete=True))) == ["1000001_2"]
    assert not (tmp_path / "lists" / "ukb_images" / "1000002_2").exists()
    assert len(read_all(table(channels="t1", overwrite=True))) == 2
    assert below(tmp_path / "lists" / "ukb_images" / "1000001_2") == ["t1.nii.gz"]
    with pytest.raises(UsageError, match="UK Biobank has no t2"):
        table(channels="t1,t2", overwrite=True)


FIELDS = {
    "downloads": "eid,31-0.0,21003-0.0,21003-2.0,25781-2.0,21001-0.0,site",
    "in R": "f.eid\tf.31.0.0\tf.21003.0.0\tf.21003.2.0\tf.25781.2.0\tf.21001.0.0\tsite",
    "on the platform": "participant.eid;participant.p31;p21003_i0;p21003_i2;p25781_i2;p21001_i0;Site",
}


@pytest.mark.parametrize("header", FIELDS.values(), ids=FIELDS)
def test_fields_are_covariates_of_their_visit(bulk, table, read_all, tmp_path, header, caplog):
    bulk.participants(1000001)
    bulk.participants(1000001, visit=3)
    delimiter = max(",;\t", key=header.count)
    lines = [header, "1000001,1,55,63.5,812,27.1,=cmd", "9999999,0,1,2,3,4,x"]
    path = tmp_path / "fields.csv"
    path.write_text("\n".join([lines[0], *(line.replace(",", delimiter) for line in lines[1:])]))
    cases = read_all(table(covariates=path))
    assert dict(cases["1000001_2"].covariates) == {
        "sex": "M",
        "age_years": 63.5,
        "field_25781": 812,
        "field_21001": 27.1,
    }
    assert dict(cases["1000001_3"].covariates) == {"sex": "M", "field_21001": 27.1}
    assert "measured at the first visit only, long before the scan: field_21001" in caplog.text


def test_tables_of_fields_that_are_none(bulk, table, tmp_path):
    bulk.participants(1000001)
    path = tmp_path / "fields.csv"
    with pytest.raises(UsageError, match="no such table"):
        table(covariates=path)
    path.write_text("id,age\n1000001,3\n")
    with pytest.raises(ManifestError, match="has no column eid"):
        table(covariates=path)
    path.write_text("eid,split\n1000001,train\n")
    with pytest.raises(ManifestError, match="column `split` already means something else"):
        table(covariates=path)
    assert not (tmp_path / "lists" / "ukb_images").exists()


def test_archives_that_cannot_be_trusted(bulk, table, tmp_path, monkeypatch):
    bulk.participants(1000001)
    whole = (bulk.folder / "1000001_20252_2_0.zip").read_bytes()
    (bulk.folder / "1000001_20252_2_0.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MedsegError) as caught:
        table()
    assert "1000001_20252_2_0.zip: is not an intact .zip archive. Fix: download it again." in caught.value.lines
    damaged = bytearray(whole)
    start = whole.index(b"T1/T1_brain.nii.gz") + 200
    damaged[start : start + 50] = bytes(50)
    (bulk.folder / "1000001_20252_2_0.zip").write_bytes(damaged)
    with pytest.raises(
        ImageError, match=r"1000001_20252_2_0.zip: T1/T1_brain.nii.gz is damaged. Fix: download it again"
    ):
        table()
    (bulk.folder / "1000001_20252_2_0.zip").write_bytes(whole)
    monkeypatch.setattr(ukb, "LARGEST", 1000)
    with pytest.raises(ImageError, match="unpacks to"):
        table()
    monkeypatch.undo()
    link = zipfile.ZipInfo("T1/T1_brain.nii.gz")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(bulk.folder / "1000001_20252_2_0.zip", "w") as archive:
        archive.writestr(link, "../../../secret")
    with pytest.raises(ImageError, match="encrypted or is a link"):
        table()
    assert below(tmp_path / "lists") == []


def test_a_scan_found_twice_and_a_folder_in_the_way(bulk, table, tmp_path):
    bulk.participants(1000001)
    bulk.zip("1000001_20252_2_1.zip", T1)
    with pytest.raises((ImageError, Problems), match="holds its t1 too"):
        table()
    (bulk.folder / "1000001_20252_2_1.zip").unlink()
    (tmp_path / "lists" / "ukb_images").mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(ManifestError, match=r"ukb_images: the folder for its images already exists"):
            table(overwrite=overwrite)
    (tmp_path / "lists" / "ukb_images").rmdir()
    table()
    with pytest.raises(ManifestError, match="exists already"):
        table()
    assert table(overwrite=True).is_file()


def test_a_full_disk_leaves_nothing(bulk, table, tmp_path, monkeypatch):
    bulk.participants(1000001)
    monkeypatch.setattr(ukb.files, "check_room", lambda folder, needed: (_ for _ in ()).throw(EnvironmentFault("full")))
    with pytest.raises(EnvironmentFault):
        table()
    assert below(tmp_path / "lists") == []
