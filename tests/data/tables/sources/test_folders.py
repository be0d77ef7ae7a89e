"""Any folder of folders becomes a table, by the words at the ends of its files' names."""

import logging

import pytest

from medseg_diff.errors import ImageError, UsageError
from medseg_diff.tasks.prepare import prepare


def fill(make, folder, names=("T1", "FLAIR", "lesion"), prefix=""):
    for name in names:
        make.mask(folder / f"{prefix}{name}.nii.gz") if name == "lesion" else make.image(
            folder / f"{prefix}{name}.nii.gz"
        )


@pytest.fixture
def told(caplog):
    """`folders` on a dataset, with what was said."""

    def call(folder, **options):
        with caplog.at_level(logging.INFO):
            options = {"channels": "t1,flair", "seg": "lesion"} | options
            return prepare(folder, source="folders", out=folder / "cases.csv", overwrite=True, **options)

    return call


def test_a_folder_is_a_case(tmp_path, make, read_all, told):
    for number in range(5):
        fill(make, tmp_path / f"P{number}", prefix="scan_" if number else "")
        make.junk(tmp_path / f"P{number}" / "._T1.nii.gz", tmp_path / f"P{number}" / ".DS_Store")
        make.mask(tmp_path / f"P{number}" / "brain_mask.nii.gz")
    make.image(tmp_path / "P4" / "other_modality.nii.gz")
    make.junk(tmp_path / "__MACOSX" / "P0" / "T1.nii.gz", tmp_path / "readme.txt")
    cases = read_all(told(tmp_path))
    assert sorted(cases) == ["P0", "P1", "P2", "P3", "P4"] and all(case.patient == name for name, case in cases.items())
    assert {case.channels for case in cases.values()} == {("t1", "flair")}
    assert cases["P1"].seg == tmp_path / "P1" / "scan_lesion.nii.gz"
    assert sorted(case.split for case in cases.values()) == ["test", "train", "train", "train", "val"]


def test_visits_in_the_folder_of_a_patient_stay_together(tmp_path, make, read_all, told, caplog):
    for patient in range(4):
        for visit in ("2019-01-01", "2020-02-02"):
            fill(make, tmp_path / f"P{patient}" / visit)
    cases = read_all(told(tmp_path))
    assert cases["P0_2019-01-01"].patient == cases["P0_2020-02-02"].patient == "P0"
    assert cases["P3_2019-01-01"].split == cases["P3_2020-02-02"].split
    assert "4 folders are taken as patients: P0, P1, P2, P3" in caplog.text


def test_several_cases_in_one_folder_are_told_apart_by_the_beginnings_of_names(tmp_path, make, read_all, told):
    for name in ("sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1"):
        fill(make, tmp_path, names=("t1w", "t2-flair", "lesion"), prefix=f"{name}_")
    cases = read_all(told(tmp_path))
    assert {name: case.patient for name, case in cases.items()} == {
        "sub-1_ses-1": "sub-1",
        "sub-1_ses-2": "sub-1",
        "sub-2_ses-1": "sub-2",
    }
    fill(make, tmp_path / "more", prefix="a_")
    fill(make, tmp_path / "more", prefix="b_")
    assert {"more_a", "more_b"} <= set(read_all(told(tmp_path)))


def test_two_images_of_one_channel_are_refused_or_chosen(tmp_path, make, read_all, told):
    fill(make, tmp_path / "P0")
    make.image(tmp_path / "P0" / "registered_FLAIR.nii.gz")
    with pytest.raises(
        ImageError, match=r"\[P0\] FLAIR.nii.gz and registered_FLAIR.nii.gz both look like flair.*--prefer"
    ):
        told(tmp_path)
    assert read_all(told(tmp_path, prefer="REGISTERED"))["P0"].images["flair"].name == "registered_FLAIR.nii.gz"


def test_a_channel_of_any_name_and_a_table_without_masks(tmp_path, make, read_all, told, caplog):
    make.image(tmp_path / "P0" / "x_swi_mag.nii.gz")
    make.mask(tmp_path / "P0" / "x_seg.nii.gz")
    cases = read_all(told(tmp_path, channels="SWI_mag"))
    assert cases["P0"].channels == ("swi_mag",) and cases["P0"].seg is None
    assert "no file is called lesion: the table has no references" in caplog.text
    assert read_all(told(tmp_path, channels="SWI_mag", seg=None))["P0"].seg == tmp_path / "P0" / "x_seg.nii.gz"


def test_what_is_refused(tmp_path, make, told):
    fill(make, tmp_path / "P0", names=("T1",))
    with pytest.raises(UsageError, match="as in --channels t1,flair"):
        told(tmp_path, channels=())
    with pytest.raises(ImageError, match=r"\[P0\] flair not found. Fix: do without it: --channels t1 "):
        told(tmp_path)
    with pytest.raises(ImageError, match="no image with such a name"):
        told(tmp_path, channels="t2")
    with pytest.raises(UsageError, match="a channel cannot be called 'seg'"):
        told(tmp_path, channels="t1,seg")
    with pytest.raises(UsageError, match="--seg is for --source bids, "):
        prepare(tmp_path, source="nnunet", out=tmp_path / "cases.csv", seg="lesion")
    assert not (tmp_path / "cases.csv").exists()
