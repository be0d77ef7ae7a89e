"""Segmenting DICOM scans with `--format dicom-seg`: what is written beside the maps, and when it is refused."""

import json
import shutil

import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_map
from medseg_diff.errors import ImageError, Problems, UsageError
from medseg_diff.tasks.apply.segment import segment

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from tests.dicom_series import sources_of, write_series  # noqa: E402

CHANNELS = ("t1", "t1ce", "t2", "flair")
OBJECTS = ("mask.seg.dcm", "probability.seg.dcm")


def as_dicom(patient, folder):
    """Six slices of a phantom, each channel a series of its own; FLAIR on a grid of larger pixels."""
    for number, channel in enumerate(CHANNELS):
        step = 2 if channel == "flair" else 1
        voxels = read_map(patient / f"{channel}.nii.gz").voxels[::step, ::step, 13:19]
        scaled = np.rint((voxels - voxels.min()) / np.ptp(voxels) * 4000).astype(np.uint16)
        header = {"spacing": (1.5 * step, 1.5 * step), "SeriesNumber": number + 1, "series": f"1.2.{number + 3}"}
        write_series(folder / channel, scaled.transpose(2, 1, 0), seed=number, **header)
    return folder


@pytest.fixture(scope="module")
def scan(phantoms, tmp_path_factory):
    """The same patient twice: as DICOM, FLAIR on another grid, and as NIfTI."""
    folder = tmp_path_factory.mktemp("scan")
    as_dicom(phantoms.parent / "phantom_0000", folder / "patient")
    shutil.copytree(phantoms.parent / "phantom_0001", folder / "nifti")
    return folder


@pytest.fixture(scope="module")
def verb(steep, scan):
    def run(out, **options):
        options = {"model": steep.folder, "device": "cpu", "members": 2, "steps": 1, "resample_to": "t1"} | options
        volumes = {} if "data" in options else {"volumes": [str(scan / "patient")]}
        return segment(out=out, **({"format": "dicom-seg"} | volumes | options))

    return run


@pytest.fixture(scope="module")
def done(verb, tmp_path_factory):
    (folder,) = verb(tmp_path_factory.mktemp("done"))
    return folder


def planes_of(path):
    """{position of the first pixel: pixels} of the one segment of an object."""
    one = pydicom.dcmread(path)
    places = [
        tuple(map(float, frame.PlanePositionSequence[0].ImagePositionPatient))
        for frame in one.PerFrameFunctionalGroupsSequence
    ]
    return dict(zip(places, one.pixel_array, strict=True))


def planes_in(path, series):
    """The same of a NIfTI file on the grid of a series, found by the places of its slices."""
    volume, found = read_map(path), {}
    for place in sources_of(series):
        x, y, z = np.rint(np.linalg.inv(volume.affine) @ [-place[0], -place[1], place[2], 1])[:3].astype(int)
        assert (x, y) == (0, 0)
        found[place] = volume.voxels[:, :, z].T
    return found


@pytest.mark.parametrize("grid", ["t1", "flair"])
def test_the_objects_hold_what_the_maps_hold(verb, scan, tmp_path, grid):
    (folder,) = verb(tmp_path, resample_to=grid)
    report, series = json.loads((folder / "case.json").read_text()), scan / "patient" / grid
    assert set(OBJECTS) < set(report["outputs"]) and report["format"] == "dicom-seg"
    mask, probability = planes_in(folder / "mask.nii.gz", series), planes_in(folder / "probability.nii.gz", series)
    assert any(plane.any() for plane in mask.values())
    found = planes_of(folder / "mask.seg.dcm")
    assert found.keys() == mask.keys() and all(np.array_equal(found[place], mask[place] > 0) for place in mask)
    found = planes_of(folder / "probability.seg.dcm")
    assert all(np.abs(found[place] / 255 - probability[place]).max() <= 0.5 / 255 + 1e-6 for place in probability)
    source = next(iter(sources_of(series).values()))
    for name in OBJECTS:
        one = pydicom.dcmread(folder / name)
        (referenced,) = one.ReferencedSeriesSequence
        assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
        assert (one.PatientName, one.StudyInstanceUID) == (source.PatientName, source.StudyInstanceUID)
        assert [segment.SegmentLabel for segment in one.SegmentSequence] == ["whole_tumour"]


def test_the_same_call_gives_the_same_bytes(verb, done, tmp_path):
    (folder,) = verb(tmp_path)
    for name in OBJECTS:
        assert (folder / name).read_bytes() == (done / name).read_bytes()


def test_only_the_objects_name_the_patient(done):
    for path in done.iterdir():
        told = b"Doe" in path.read_bytes() or b"4711" in path.read_bytes()
        assert told == (path.name in OBJECTS) or path.suffix == ".gz"
    text = (done / "case.json").read_text()
    assert "1.2.77" not in text and "1.2.88" not in text and "19500102" not in text


def test_they_are_part_of_what_makes_a_case_complete(verb, done, tmp_path):
    shutil.copytree(done.parent, tmp_path / "out")
    folder = tmp_path / "out" / done.name
    before = (folder / "case.json").stat().st_mtime_ns
    verb(tmp_path / "out")
    verb(tmp_path / "out", format="nifti")  # which holds less
    assert (folder / "case.json").stat().st_mtime_ns == before
    (folder / "mask.seg.dcm").unlink()
    verb(tmp_path / "out")
    assert (folder / "mask.seg.dcm").read_bytes() == (done / "mask.seg.dcm").read_bytes()


def test_a_case_done_without_them_is_not_the_same(verb, tmp_path):
    (folder,) = verb(tmp_path, format="nifti")
    assert not [path for path in folder.iterdir() if path.suffix == ".dcm"]
    with pytest.raises(UsageError, match=r"was made with format None, not dicom-seg\. Fix: use --overwrite") as caught:
        verb(tmp_path)
    assert caught.value.exit_code == 2
    verb(tmp_path, overwrite=True)
    assert (folder / "mask.seg.dcm").is_file()


@pytest.fixture
def table(scan):
    """Three cases, one of them DICOM."""
    rows = [
        f"{name},{','.join(f'{place}/{channel}{end}' for channel in CHANNELS)}"
        for name, place, end in (("a", "nifti", ".nii.gz"), ("b", "patient", ""), ("c", "other", ".nii.gz"))
    ]
    shutil.copytree(scan / "nifti", scan / "other", dirs_exist_ok=True)
    volume = read_map(scan / "nifti" / "t1.nii.gz")
    for number, channel in enumerate(CHANNELS):
        write_volume(scan / "other" / f"{channel}.nii.gz", volume.voxels + number + 1, volume.affine)
    (scan / "cases.csv").write_text("\n".join([f"case,{','.join(CHANNELS)}", *rows]) + "\n")
    return scan / "cases.csv"


def test_other_images_are_refused_before_the_work_starts(verb, table, tmp_path):
    with pytest.raises(Problems) as caught:
        verb(tmp_path / "out", data=table)
    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()
    first, second = caught.value.lines
    assert first.startswith(
        "[a/t1] t1.nii.gz: is not a DICOM series, which --format dicom-seg needs. Fix: leave --format out"
    )
    assert second.startswith("[c/t1] ")


def test_with_keep_going_they_are_listed_and_the_others_go_on(verb, table, tmp_path):
    with pytest.raises(UsageError, match="is not a DICOM series"):
        verb(tmp_path, data=table, keep_going=True)
    assert (tmp_path / "b" / "mask.seg.dcm").is_file() and not (tmp_path / "a").exists()
    failures = (tmp_path / "failures.csv").read_text()
    assert "\na,UsageError,2," in failures and "\nc,UsageError,2," in failures


def test_pseudonyms_and_a_patients_name_do_not_go_together(verb, tmp_path):
    with pytest.raises(UsageError, match="carries the patient's name") as caught:
        verb(tmp_path / "out", pseudonymise=True, pseudonym_key=tmp_path / "key")
    assert caught.value.exit_code == 2 and list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(verb, tmp_path):
    with pytest.raises(UsageError, match=r"unknown format `dicom`\. Fix: use one of nifti, dicom-seg"):
        verb(tmp_path, format="dicom")


def test_a_series_that_says_too_little_is_refused_by_its_name(verb, scan, tmp_path):
    shutil.copytree(scan / "patient", tmp_path / "in")
    for path in (tmp_path / "in" / "t1").iterdir():
        one = pydicom.dcmread(path)
        del one.FrameOfReferenceUID
        one.save_as(path)
    with pytest.raises(ImageError, match=r"\[in/t1\] t1: its DICOM files have no FrameOfReferenceUID"):
        verb(tmp_path / "out", volumes=[str(tmp_path / "in")])
    assert not (tmp_path / "out").exists()
