"""A folder that another source would read is said to look like it."""

import logging

import pytest

from medseg_diff.data.tables.sources.likeness import looks_like
from medseg_diff.errors import ImageError
from medseg_diff.tasks.prepare import prepare

FOUR = ("t1", "t1ce", "t2", "flair")
DATASETS = {
    "nnunet": ["dataset.json", "imagesTr/C_0000.nii.gz"],
    "msd": ["dataset.json", "imagesTr/BRATS_001.nii.gz"],
    "bids": ["dataset_description.json", "sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz"],
    "brats": [f"HGG/P1/P1_{channel}.nii.gz" for channel in FOUR],
    None: ["P1/t1.nii.gz", "P1/t2.nii.gz", "imagesTr/C_0000.nii.gz"],
}


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return folder


@pytest.mark.parametrize("source", DATASETS, ids=str)
def test_every_dataset_looks_like_its_own_source(tmp_path, source):
    assert looks_like(fill(tmp_path / "data", DATASETS[source])) == source


def test_who_names_another_source_is_told(tmp_path, caplog):
    fill(tmp_path / "ds", DATASETS["bids"])
    with caplog.at_level(logging.WARNING), pytest.raises(ImageError, match=r"no dataset.json"):
        prepare(tmp_path / "ds", source="nnunet", out=tmp_path / "cases.csv")
    assert "ds looks like a dataset for --source bids" in caplog.text
    caplog.clear()
    with pytest.raises(ImageError):
        prepare(fill(tmp_path / "own", DATASETS[None]), source="brats", out=tmp_path / "cases.csv")
    assert not caplog.text


def test_links_are_not_followed_out_of_a_dataset(tmp_path):
    folder = fill(tmp_path / "data", [f"P1/{channel}.nii.gz" for channel in FOUR])
    (folder / "P1" / "t1.nii.gz").rename(tmp_path / "t1.nii.gz")
    (folder / "P1" / "t1.nii.gz").symlink_to(tmp_path / "t1.nii.gz")
    with pytest.raises(ImageError, match=r"\[P1\] t1.nii.gz: is a link that points outside data"):
        prepare(folder, source="brats", out=tmp_path / "cases.csv")
    (tmp_path / "t1.nii.gz").rename(folder / "t1_of_p1.nii")
    (folder / "P1" / "t1.nii.gz").unlink()
    (folder / "P1" / "t1.nii.gz").symlink_to(folder / "t1_of_p1.nii")
    assert prepare(folder, source="brats", out=tmp_path / "cases.csv").is_file()
