"""A raw dataset of nnU-Net becomes a table as it lies."""

import json
import logging

import pytest

from medseg_diff.errors import ImageError, Problems
from medseg_diff.tasks.prepare import prepare

VERSION_2 = {
    "channel_names": {"0": "FLAIR", "1": "T1w", "2": "t1gd"},
    "labels": {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
    "regions_class_order": [1, 2, 3],
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
VERSION_1 = {
    "modality": {"0": "T2"},
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor"},
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
}


@pytest.fixture
def dataset(tmp_path, make):
    """Five training cases and two test cases of three channels, with what macOS and nnU-Net put beside them."""
    folder = tmp_path / "Dataset501_Glioma"
    for part, names in {"Tr": ["P_001", "P_002", "P_003", "P_004", "P_005"], "Ts": ["P_006", "P_007"]}.items():
        for name in names:
            for number in range(3):
                make.image(folder / f"images{part}" / f"{name}_{number:04}.nii.gz")
            if part == "Tr" or name == "P_006":
                make.mask(folder / f"labels{part}" / f"{name}.nii.gz", label=3)
    make.junk(folder / "imagesTr" / "._P_001_0000.nii.gz", folder / "imagesTr" / ".DS_Store", folder / "README.md")
    make.junk(folder / "labelsTr" / "._P_001.nii.gz", folder / "splits_final.json", folder / "imagesTr" / "plans.json")
    (folder / "dataset.json").write_text(json.dumps(VERSION_2))
    return folder


def test_a_dataset_of_version_2(dataset, read_all, caplog):
    with caplog.at_level(logging.INFO):
        table = prepare(dataset, source="nnunet", out=dataset / "cases.csv")
    cases = read_all(table)
    assert sorted(cases) == [f"P_00{number}" for number in range(1, 8)]
    assert all(case.channels == ("flair", "t1", "t1ce") for case in cases.values())
    assert cases["P_001"].images["t1"] == dataset / "imagesTr" / "P_001_0001.nii.gz"
    assert {name for name, case in cases.items() if case.split == "test"} == {"P_006", "P_007"}
    assert sorted(case.split for case in cases.values() if case.split != "test") == ["train"] * 4 + ["val"]
    assert {name for name, case in cases.items() if not case.seg} == {"P_007"}
    assert "cases.csv: 7 cases (2 test, 4 train, 1 val)" in caplog.text
    assert "the regions {whole_tumor: [1, 2, 3], core: [2, 3], enhancing: [3]}" in caplog.text
    assert "other_labels=[4]" in caplog.text


def test_a_dataset_of_version_1_with_too_few_patients_to_validate(tmp_path, make, read_all, caplog):
    folder = tmp_path / "Task500_Oedema"
    make.image(folder / "imagesTr" / "a_0000.nii.gz")
    make.mask(folder / "labelsTr" / "a.nii.gz")
    make.image(folder / "imagesTs" / "b_0000.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(VERSION_1))
    with caplog.at_level(logging.INFO):
        cases = read_all(prepare(folder, source="nnunet", out=folder / "cases.csv"))
    assert {name: case.split for name, case in cases.items()} == {"a": "train", "b": "test"}
    assert cases["a"].channels == ("t2",)
    assert "labels 1 edema, 2 non-enhancing tumor" in caplog.text
    assert "no test case has a reference" in caplog.text


def test_words_that_are_no_channel_known_are_columns_and_said(dataset, read_all, caplog):
    names = {"0": "MRI", "1": "noNormalization", "2": "T2*"}
    (dataset / "dataset.json").write_text(json.dumps(VERSION_2 | {"channel_names": names}))
    with caplog.at_level(logging.INFO):
        cases = read_all(prepare(dataset, source="nnunet", out=dataset / "cases.csv"))
    assert cases["P_001"].channels == ("mri", "nonormalization", "t2star")
    assert "dataset.json names the channels MRI (column mri), noNormalization (column nonormalization)" in caplog.text


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"channel_names": {"0": "MRI", "1": "MRI", "2": "T1"}}, "two channels are mri"),
        ({"channel_names": {"0": "FLAIR", "2": "T1"}}, "do not name channel 0, 1"),
        ({"channel_names": {"0": "seg", "1": "T1", "2": "T2"}}, "cannot be called 'seg'"),
        ({"channel_names": {"0": "FLAIR", "1": "T1"}}, "has number 02, but dataset.json names 2 channels"),
        ({}, "no dataset.json says which is which"),
    ],
)
def test_names_that_are_not_clear_are_refused(dataset, facts, found):
    (dataset / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises((ImageError, Problems)) as caught:
        prepare(dataset, source="nnunet", out=dataset / "cases.csv")
    assert found in caught.value.lines[0] and "dataset.json" in caught.value.lines[0]
    assert "--channels" not in caught.value.lines[0] and not (dataset / "cases.csv").exists()


def test_the_folder_above_names_those_that_hold_a_dataset(dataset):
    with pytest.raises(ImageError, match=r"give the folder that holds it, such as Dataset501_Glioma"):
        prepare(dataset.parent, source="nnunet", out=dataset.parent / "cases.csv")


def test_a_case_that_lacks_a_channel_is_a_choice(dataset, read_all, caplog):
    (dataset / "imagesTr" / "P_002_0002.nii.gz").unlink()
    (dataset / "labelsTr" / "P_003.nii.gz").unlink()
    options = {"source": "nnunet", "out": dataset / "cases.csv", "overwrite": True}
    with pytest.raises(ImageError) as caught:
        prepare(dataset, **options)
    assert caught.value.line == (
        "[P_002] t1ce not found. Fix: do without it: --channels flair,t1 (and train with channels=[flair,t1]); or "
        "complete its download, or leave it out with --skip-incomplete."
    )
    assert {case.channels for case in read_all(prepare(dataset, channels="T1w,flair", **options)).values()} == {
        ("flair", "t1")
    }
    assert "P_002" not in read_all(prepare(dataset, skip_incomplete=True, **options))
    assert "left out for lack of a channel: 1 case (P_002)" in caplog.text
    assert "no reference in labelsTr for 1 training case: P_003" in caplog.text
