"""A mixed export of DICOM files becomes a table of series, and nothing that identifies a patient leaves its headers."""

import logging
import sys

import numpy as np
import pytest

from medseg_diff.data.tables.sources.dicom_series import Header, Series
from medseg_diff.errors import EnvironmentFault, ImageError, MedsegError, UsageError
from medseg_diff.tasks.prepare import prepare

pydicom = pytest.importorskip("pydicom")

AXIAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]
PRIVATE = ("Doe", "MRN-77", "19561224", "20240131", "St_Elsewhere")
COUNT = 12


class Export:
    """A tree of files as an archive sends them: numbered folders, all series mixed."""

    def __init__(self, folder):
        self.folder, self.files = folder, 0

    def series(self, patient, study, description="", **tags):
        """The slices of one series, in a folder that changes in the middle of it, the last slice first."""
        uid, count = pydicom.uid.generate_uid(), tags.pop("slices", COUNT)
        plane, repeat, ends = tags.pop("plane", AXIAL), tags.pop("repeat", 1), tags.pop("ends", "")
        for number in range(count * repeat):
            normal = np.cross(plane[:3], plane[3:]) * 5.0 * (number % count)
            one = self._header(patient, study, uid, description, tags)
            one.ImageOrientationPatient, one.ImagePositionPatient = plane, [float(mm) for mm in normal]
            one.InstanceNumber, one.SOPInstanceUID = count - number, pydicom.uid.generate_uid()
            one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
            inside = np.hypot(*np.ogrid[-12:12, -12:12]) < 9
            one.PixelData = (inside * (100 + self.files % 7 + number)).astype("<u2").tobytes()
            self.files += 1
            path = self.folder / f"{patient}_{PRIVATE[0]}" / f"DIR{self.files // 7:03}" / f"IM{self.files:05}{ends}"
            path.parent.mkdir(parents=True, exist_ok=True)
            one.save_as(path, enforce_file_format=True)
        return self

    def _header(self, patient, study, uid, description, tags):
        meta = pydicom.dataset.FileMetaDataset()
        storage = pydicom.uid.MRImageStorage
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = pydicom.uid.ExplicitVRLittleEndian, storage
        one = pydicom.dataset.Dataset()
        one.file_meta, one.SOPClassUID = meta, storage
        one.PatientName, one.PatientID, one.PatientBirthDate = (
            f"{PRIVATE[0]}^{patient}",
            f"{PRIVATE[1]}{patient}",
            PRIVATE[2],
        )
        one.StudyDate, one.InstitutionName = PRIVATE[3], PRIVATE[4]
        one.StudyInstanceUID, one.SeriesInstanceUID = f"1.2.3.{patient}.{study}", uid
        one.SeriesDescription, one.Modality, one.ImageType = description, "MR", ["ORIGINAL", "PRIMARY", "M"]
        one.Rows = one.Columns = 24
        one.PixelSpacing, one.SliceThickness = [2.0, 2.0], 5.0
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        for tag, value in tags.items():
            setattr(one, tag, value)
        return one


@pytest.fixture
def export(tmp_path):
    return Export(tmp_path / "export")


@pytest.fixture
def table(export, tmp_path, caplog):
    def call(**options):
        with caplog.at_level(logging.INFO):
            return prepare(export.folder, **{"source": "dicom", "out": tmp_path / "lists" / "cases.csv"} | options)

    return call


def fill(export, patient, study=1):
    export.series(patient, study, "Localizer", slices=3, SeriesNumber=1)
    export.series(patient, study, "Ax T1 pre", SeriesNumber=2, ContrastBolusAgent="Gadovist")
    export.series(patient, study, f"AX FLAIR {PRIVATE[0]}", SeriesNumber=3)
    export.series(patient, study, "t2_tse_tra", SeriesNumber=4)
    export.series(patient, study, "sT1W_3D_TFE", SeriesNumber=5, ContrastBolusAgent="Gadovist", plane=SAGITTAL)


def test_series_of_a_mixed_export_are_sorted_and_read(export, table, read_all, tmp_path, caplog):
    for patient in range(4):
        fill(export, patient)
    fill(export, 0, study=2)
    export.series(0, 1, "ep2d_diff_b1000", ScanningSequence="EP", SeriesNumber=6)
    export.series(0, 1, "AX FLAIR MPR", ImageType=["DERIVED", "SECONDARY", "MPR"], SeriesNumber=7)
    export.series(0, 1, "t2 dynamic", repeat=3, SeriesNumber=8)
    export.series(0, 1, "HEAD CT", Modality="CT", SeriesNumber=9)
    (export.folder / "0_Doe" / "report.txt").write_text("Doe")
    (export.folder / "DICOMDIR").write_bytes(b"x")
    (export.folder / "broken").write_bytes(bytes(128) + b"DICM" + bytes(20))
    (export.folder / "._IM00001").write_bytes(b"x")
    (export.folder / "elsewhere").symlink_to(tmp_path)
    cases = read_all(table(), resample_to="t1")
    assert list(cases) == [f"case_00{number}" for number in range(1, 6)]
    assert {case.channels for case in cases.values()} == {("t1", "t1ce", "t2", "flair")}
    patients = [case.patient for case in cases.values()]
    assert sorted(set(patients)) == ["patient_001", "patient_002", "patient_003", "patient_004"] and len(patients) == 5
    folder = tmp_path / "lists" / "cases_images"
    assert sorted(path.name for path in folder.iterdir()) == [*cases, "made_by_medseg_diff.txt"]
    slices = sorted((folder / "case_003" / "t1ce").iterdir())
    assert [path.name for path in slices] == [f"{number:04}.dcm" for number in range(1, COUNT + 1)]
    places = [pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[0] for path in slices]
    assert places == sorted(places, reverse=True) or places == sorted(places)
    said = caplog.text
    assert "pass --resample-to with the channel whose grid all should have" in said
    assert "29 series; left out: 5 series localisers" in said and "2 files that are not DICOM images" in said
    for reason in ("derived or secondary", "of several volumes", "not MR", "not recognised as a channel"):
        assert f"1 series {reason}" in said
    told = said + (tmp_path / "lists" / "cases.csv").read_text() + " ".join(map(str, folder.rglob("*")))
    assert not [word for word in PRIVATE if word in told.replace(str(tmp_path), "")]


def test_the_numbers_of_cases_follow_neither_names_nor_the_order_of_files(export, table):
    for patient in range(4):
        export.series(patient, 1, "t2")
    first, again = (patients_of(table(overwrite=overwrite).parent / "cases_images") for overwrite in (False, True))
    assert first == again and len(set(first)) == 4 and first not in (sorted(first), sorted(first, reverse=True))


def patients_of(folder):
    slices = sorted(folder.glob("case_*/t2/0001.dcm"))
    return [str(pydicom.dcmread(path, stop_before_pixels=True).PatientID) for path in slices]


def test_of_two_series_the_longer_is_taken_and_said_and_equals_are_refused(export, table, read_all, tmp_path, caplog):
    export.series(0, 1, f"FLAIR {PRIVATE[0]} fast", SeriesNumber=4)
    export.series(0, 1, "FLAIR 3D", SeriesNumber=9, slices=20)
    case = read_all(table())["case_001"]
    assert len(list(case.images["flair"].iterdir())) == 20
    assert "[case_001] flair is the series of 20 slices, not that of 12" in caplog.text
    assert len(list(read_all(table(prefer="fast", overwrite=True))["case_001"].images["flair"].iterdir())) == 12
    export.series(0, 1, "FLAIR sag", SeriesNumber=11, slices=20)
    with pytest.raises(ImageError) as caught:
        table(overwrite=True)
    assert (
        len(list(read_all(tmp_path / "lists" / "cases.csv")["case_001"].images["flair"].iterdir())) == 12
    )  # as before
    assert caught.value.line == (
        "[case_001] series 11 and 9, of 20 slices each, could all be flair. "
        "Fix: choose with --prefer and a word of the description or the number of a series."
    )
    read_all(table(prefer="11", overwrite=True))
    assert PRIVATE[0] not in caplog.text


def test_a_series_of_two_echoes_is_two_images(export, table, read_all):
    uid = pydicom.uid.generate_uid()
    export.series(0, 1, "dual echo", SeriesInstanceUID=uid, EchoTime=15, RepetitionTime=3000)
    export.series(0, 1, "dual echo", SeriesInstanceUID=uid, EchoTime=95, RepetitionTime=3000)
    case = read_all(table())["case_001"]
    assert case.channels == ("t2",) and len(list(case.images["t2"].iterdir())) == COUNT


def test_what_is_refused(export, table, tmp_path, monkeypatch):
    fill(export, 1)
    export.series(2, 1, "t2")
    with pytest.raises(
        ImageError, match=r"\[case_00\d\] t1, t1ce, flair not found. Fix: do without it: --channels t2 "
    ):
        table()
    with pytest.raises(UsageError, match="DICOM headers do not identify a series as pd"):
        table(channels="t2,pd")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(EnvironmentFault, match=r"Fix: install it: pip install '.\[dicom\]'"):
        table()
    monkeypatch.undo()
    assert not (tmp_path / "lists").exists() or not any(path.is_dir() for path in (tmp_path / "lists").iterdir())
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedsegError, match="no DICOM series of a brain"):
        prepare(tmp_path / "empty", source="dicom", out=tmp_path / "a.csv")


def header(text, times=(0, 0, 0), *, contrast=False, echo=False):
    nothing = {"path": None, "patient": "", "study": "", "series": "", "part": (), "instance": "", "number": "7"}
    facts = {"kind": frozenset(), "modality": "MR", "place": 0.0, "frames": 1, "contrast": contrast, "echo": echo}
    return Header(**nothing, text=text.lower(), times=times, **facts)


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        ("t1_mprage_sag_p2_iso", "t1"),
        ("AX T1 FSE +C", "t1ce"),
        ("T1 SE tra KM", "t1ce"),
        ("Ax BRAVO post Gd", "t1ce"),
        ("T1W without contrast", "t1"),
        ("T1 POST", "t1ce"),
        ("sT1W_3D_TFE", "t1"),
        ("Ax T2 ASSET two", "t2"),
        ("t2_tse_tra_512", "t2"),
        ("T2W_TSE", "t2"),
        ("Sag CUBE T2 FLAIR", "flair"),
        ("t2_space_dark-fluid_sag", "flair"),
        ("3D FLAIR post contrast", "flair"),
        ("Ax T1 FLAIR", "t1"),
        ("t2_star gre", None),
        ("AX T2*", None),
        ("SWI_mIP", None),
        ("ep2d_diff_ADC", None),
        ("TOF_3D_multi-slab", None),
        ("T1 and T2 map", None),
        ("Survey", None),
        ("Sag T2 C-spine", None),
        ("", None),
    ],
)
def test_what_a_description_says(text, channel):
    series = Series((header(text),) * 8)
    assert (None if series.fault == "localisers" else series.channel) == channel


@pytest.mark.parametrize(
    ("times", "channel"),
    [
        ((9000, 120, 2500), "flair"),
        ((5000, 390, 1800), "flair"),
        ((4500, 100, 0), "t2"),
        ((2000, 2.9, 900), "t1"),
        ((500, 12, 0), "t1"),
        ((2300, 22, 0), None),
        ((0, 0, 0), None),
    ],
)
def test_times_tell_where_the_description_does_not(times, channel):
    assert Series((header("head", times),)).channel == channel
    after = Series((header("head", times, contrast=True),)).channel
    assert after == ("t1ce" if channel == "t1" else channel)
    assert Series((header("head", times, echo=True),)).channel is None
