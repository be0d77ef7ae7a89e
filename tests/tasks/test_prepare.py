"""The folder of a dataset becomes a manifest that can be read where it lies."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from medseg_diff.cli import app
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.data.tables.sources import SOURCES
from medseg_diff.data.tables.sources.collect import patient_of
from medseg_diff.errors import EnvironmentFault, ExitCode, ImageError, ManifestError, MedsegError, UsageError
from medseg_diff.tasks.prepare import prepare
from tests.scans import SCANS, with_scans

ENDINGS = {2021: ("_t1", "_t1ce", "_t2", "_flair", "_seg"), 2023: ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")}


def fill(folder: Path, year: int, *cases: str, inside: str = "") -> Path:
    """A BraTS folder of files that nobody reads."""
    for case in cases:
        (folder / inside / case).mkdir(parents=True)
        for ending in ENDINGS[year]:
            (folder / inside / case / f"{case}{ending}.nii.gz").write_bytes(b"x")
    return folder


def test_a_brats_folder_is_split_by_patient(tmp_path, caplog):
    cases = [f"BraTS-GLI-{patient:05}-{visit:03}" for patient in range(10) for visit in range(2)]
    fill(tmp_path / "data", 2023, *cases)
    with caplog.at_level(logging.INFO):
        out = prepare(tmp_path / "data", source="brats", out=tmp_path / "data" / "cases.csv")
    manifest = read_manifest(out)
    assert [case.name for case in manifest.cases] == cases
    assert manifest.channels == ("t1", "t1ce", "t2", "flair") and all(case.seg for case in manifest.cases)
    assert manifest.cases[0].images["t1ce"].name == "BraTS-GLI-00000-000-t1c.nii.gz"
    patients = {split: {case.patient for case in manifest.of(split)} for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in patients.items()} == {"train": 7, "val": 1, "test": 2}
    assert not patients["train"] & (patients["val"] | patients["test"])
    assert "cases.csv: 20 cases (4 test, 14 train, 2 val)" in caplog.text
    again = prepare(tmp_path / "data", source="brats", out=tmp_path / "data" / "again.csv")
    assert again.read_bytes() == out.read_bytes()
    other = prepare(tmp_path / "data", source="brats", out=tmp_path / "data" / "other.csv", seed=1)
    assert other.read_bytes() != out.read_bytes()


def test_grades_in_folders_and_the_table_above_the_data(tmp_path, caplog):
    fill(tmp_path / "data", 2021, "Brats18_2013_10_1", inside="HGG")
    fill(tmp_path / "data", 2021, "Brats18_TCIA09_141_1", inside="LGG")
    with caplog.at_level(logging.INFO):
        out = prepare(tmp_path / "data", source="brats", out=tmp_path / "cases.csv")
    cases = read_manifest(out).cases
    assert [case.patient for case in cases] == ["Brats18_2013_10", "Brats18_TCIA09_141"]
    assert all(case.split is None for case in cases) and "too few patients" in caplog.text
    assert cases[0].seg == tmp_path / "data/HGG/Brats18_2013_10_1/Brats18_2013_10_1_seg.nii.gz"


def test_a_table_elsewhere_needs_the_data_root_and_says_so(tmp_path, monkeypatch):
    fill(tmp_path / "data", 2021, "BraTS2021_00006")
    monkeypatch.chdir(tmp_path)
    words = ["prepare", "data", "--source", "brats", "--out"]
    said = CliRunner().invoke(app, [*words, "lists/cases.csv"])
    assert said.stdout.endswith("next: medseg-diff validate --data lists/cases.csv --data-root data\n")
    said = CliRunner().invoke(app, [*words, "data/cases.csv"])
    assert said.stdout.endswith("next: medseg-diff validate --data data/cases.csv\n")
    out = tmp_path / "lists" / "cases.csv"
    assert len(read_manifest(out, data_root=tmp_path / "data").cases) == 1
    with pytest.raises(MedsegError):
        read_manifest(out)


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("BraTS-GLI-00000-001", "BraTS-GLI-00000"),
        ("BraTS-MET-00012-000", "BraTS-MET-00012"),
        ("BraTS2021_00006", "BraTS2021_00006"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("BraTS19_TCIA10_640_1", "BraTS19_TCIA10_640"),
        ("Brats17_2013_1_1", "Brats17_2013_1"),
        ("BraTS-GLI-0009", "BraTS-GLI-0009"),
    ],
)
def test_the_patient_behind_a_visit(case, patient):
    assert patient_of(case) == patient


def test_an_incomplete_case_is_named_and_nothing_written(tmp_path):
    fill(tmp_path / "data", 2021, "BraTS2021_00006", "BraTS2021_00007")
    (tmp_path / "data/BraTS2021_00007/BraTS2021_00007_flair.nii.gz").unlink()
    with pytest.raises(ImageError, match=r"\[BraTS2021_00007\] flair not found"):
        prepare(tmp_path / "data", source="brats", out=tmp_path / "cases.csv")
    assert not (tmp_path / "cases.csv").exists()


def test_two_files_of_one_channel_are_both_named(tmp_path):
    fill(tmp_path / "data", 2021, "BraTS2021_00006", "BraTS2021_00007")
    for case, ending in (("BraTS2021_00006", "_t1gd.nii.gz"), ("BraTS2021_00007", "_seg.nii")):
        (tmp_path / "data" / case / f"{case}{ending}").write_bytes(b"x")
    with pytest.raises(MedsegError) as caught:
        prepare(tmp_path / "data", source="brats", out=tmp_path / "cases.csv")
    first, second = caught.value.lines
    assert first.startswith(
        "[BraTS2021_00006] BraTS2021_00006_t1ce.nii.gz and BraTS2021_00006_t1gd.nii.gz both look like"
    )
    assert "BraTS2021_00007_seg.nii and BraTS2021_00007_seg.nii.gz both look like seg. Fix: keep one" in second
    assert caught.value.exit_code == ExitCode.IMAGE and not (tmp_path / "cases.csv").exists()


def test_folders_that_hold_nothing_known_are_told(tmp_path, caplog):
    fill(tmp_path / "data", 2021, "BraTS2021_00006", inside="HGG")
    prepare(tmp_path / "data", source="brats", out=tmp_path / "cases.csv")
    assert "hold no image" not in caplog.text
    for number in range(6):
        (tmp_path / "data" / "HGG" / f"empty_{number}").mkdir()
    (tmp_path / "data" / "HGG" / "alien" / "more").mkdir(parents=True)
    (tmp_path / "data" / "HGG" / "alien" / "scan.nii.gz").write_bytes(b"x")
    (tmp_path / "data" / "HGG" / "alien" / "more" / "notes.txt").write_bytes(b"x")
    (tmp_path / "data" / "HGG" / "names.csv").write_bytes(b"x")
    out = prepare(tmp_path / "data", source="brats", out=tmp_path / "cases.csv", overwrite=True)
    assert len(read_manifest(out).cases) == 1
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    some = "HGG/alien, HGG/alien/more, HGG/empty_0, HGG/empty_1, HGG/empty_2 …"
    assert said == [f"8 folders hold no image with a known name: {some}"]


def test_what_is_refused(tmp_path):
    fill(tmp_path / "data", 2021, "BraTS2021_00006")
    out = tmp_path / "cases.csv"
    with pytest.raises(UsageError, match="use one of bids, brats, "):
        prepare(tmp_path / "data", source="brat", out=out)
    with pytest.raises(UsageError, match="is not a folder"):
        prepare(tmp_path / "gone", source="brats", out=out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no BraTS case below empty"):
        prepare(tmp_path / "empty", source="brats", out=out)
    out.write_text("mine")
    with pytest.raises(ManifestError, match="exists already"):
        prepare(tmp_path / "data", source="brats", out=out)
    assert out.read_text() == "mine"
    prepare(tmp_path / "data", source="brats", out=out, overwrite=True)
    assert len(read_manifest(out).cases) == 1
    with pytest.raises(EnvironmentFault):
        prepare(tmp_path / "data", source="brats", out=out / "inside" / "cases.csv")


def test_a_bad_row_is_told_by_the_name_of_the_table(tmp_path, monkeypatch):
    fill(tmp_path / "data", 2023, "a")
    image = tmp_path / "data" / "a" / "a-t1n.nii.gz"
    odd = SimpleNamespace(rows=lambda folder, wanted: [{"case": "a", "t1": image}] * 2, takes=(), unpacks=False)
    monkeypatch.setitem(SOURCES, "odd", odd)
    with pytest.raises(MedsegError) as caught:
        prepare(tmp_path / "data", source="odd", out=tmp_path / "data" / "cases.csv")
    assert "cases.csv: " in caught.value.lines[0] and ".b.csv" not in caught.value.lines[0]
    assert not (tmp_path / "data" / "cases.csv").exists()


def test_a_source_that_brings_its_splits_keeps_them(tmp_path, monkeypatch):
    for letter in "abcde":
        (tmp_path / f"{letter}.nii").write_bytes(b"x")
    rows = "".join(
        f"{letter},{letter}.nii,{split}\n" for letter, split in zip("abcde", ["val"] * 3 + ["test"] * 2, strict=True)
    )
    (tmp_path / "cases.csv").write_text("case,t1,split\n" + rows)
    out = prepare(tmp_path, source="phantom", out=tmp_path / "mine.csv")
    assert read_manifest(out).cases == read_manifest(tmp_path / "cases.csv").cases
    monkeypatch.chdir(tmp_path.parent)
    out = prepare(Path(tmp_path.name), source="phantom", out=Path(tmp_path.name) / "again.csv")
    assert read_manifest(out).cases == read_manifest(tmp_path / "cases.csv").cases


@with_scans("brats")
def test_three_real_patients(tmp_path):
    out = prepare(SCANS / "brats", source="brats", out=tmp_path / "cases.csv")
    manifest = read_manifest(out, data_root=SCANS / "brats")
    assert [case.name for case in manifest.cases] == ["BraTS-GLI-00000-000", "BraTS-GLI-0009", "BraTS2021_00006"]
    assert manifest.channels == ("t1", "t1ce", "t2", "flair") and all(case.seg for case in manifest.cases)
