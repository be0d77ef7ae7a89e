"""Segmentation objects as other readers see them: every frame over its own slice, whatever the series is like."""

import logging
import warnings

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from medseg_diff.data.formats import dicom_seg  # noqa: E402
from medseg_diff.data.formats.dicom_seg import MadeBy, check_installed, type_of, write_segmentation  # noqa: E402
from medseg_diff.data.formats.dicom_series import read_series  # noqa: E402
from medseg_diff.data.geometry import reoriented  # noqa: E402
from medseg_diff.data.reading import read_volume  # noqa: E402
from medseg_diff.errors import EnvironmentFault, ImageError  # noqa: E402
from tests.dicom_series import AXIAL, CORONAL, SAGITTAL, sources_of, turned, write_series  # noqa: E402
from tests.scans import SCANS, with_scans  # noqa: E402

MADE_BY = MadeBy("1.2.3", "ab" * 32, ("voxels", "0"))
VOXELS = np.random.default_rng(7).integers(1, 1000, (9, 7, 11)).astype(np.uint16)  # no size a multiple of 8
SERIES = {
    "axial": {"directions": AXIAL},
    "downwards": {"directions": AXIAL, "downwards": True},
    "sagittal": {"directions": SAGITTAL},
    "coronal": {"directions": CORONAL, "downwards": True},
    "oblique": {"directions": turned(23.0)},
    "very oblique": {"directions": turned(137.0), "downwards": True},
    "uneven": {"directions": turned(9.0), "heights": np.cumsum([0, 3, 3.2, 2.8, 3, 3.3, 2.7, 3, 3.1])},
    "drifting": {"directions": AXIAL, "heights": np.cumsum([0, 3, 3, 3, 3, 4.2, 4.2, 4.2, 4.2])},
}


@pytest.fixture(params=SERIES, ids=str)
def folder(request, tmp_path):
    return write_series(tmp_path / "t1", VOXELS, **SERIES[request.param])


@pytest.fixture
def axial(tmp_path):
    return write_series(tmp_path / "t1", VOXELS)


def masks_of(voxels):
    """Two regions, the second inside the first, and one that is nowhere."""
    return {"whole_tumour": voxels > 400, "enhancing_tumour": voxels > 800, "necrosis": voxels > 5000}


def written(folder, path, regions=masks_of, *, axes=None, made_by=MADE_BY):
    """The object of what `regions` makes of the series' voxels, as pydicom reads it."""
    volume = read_volume(folder)
    volume = reoriented(volume, axes) if axes else volume
    series = read_series(folder, volume.affine, volume.shape)
    write_segmentation(path, regions(volume.voxels), series, made_by)
    return pydicom.dcmread(path)


def frames_of(segmentation):
    """(number of the segment, position, pixels) of each frame, by nothing but what is written about it."""
    pixels = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    for frame, values in zip(segmentation.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        place = tuple(map(float, frame.PlanePositionSequence[0].ImagePositionPatient))
        group = frame if "SegmentIdentificationSequence" in frame else shared
        yield int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber), place, frame, values


def test_every_frame_lies_over_its_slice(folder, tmp_path):
    segmentation, sources = written(folder, tmp_path / "mask.seg.dcm"), sources_of(folder)
    names = [segment.SegmentLabel for segment in segmentation.SegmentSequence]
    assert names == ["whole_tumour", "enhancing_tumour", "necrosis"]
    seen = set()
    for number, place, frame, pixels in frames_of(segmentation):
        source = sources[place]  # the very position of a file
        expected = masks_of(source.pixel_array)[names[number - 1]]
        np.testing.assert_array_equal(pixels, expected)
        (derived,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert derived.ReferencedSOPInstanceUID == source.SOPInstanceUID
        seen.add((number, place))
    assert len(seen) == int(segmentation.NumberOfFrames) == 3 * len(sources)  # empty ones too
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == source.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing


def test_probabilities_are_kept_to_a_255th(folder, tmp_path):
    def maps(voxels):
        return {"whole_tumour": (voxels / 1000).astype(np.float32)}

    segmentation, sources = written(folder, tmp_path / "probability.seg.dcm", maps), sources_of(folder)
    assert (segmentation.SegmentationType, segmentation.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    assert segmentation.MaximumFractionalValue == 255 and segmentation.NumberOfFrames == len(sources)
    for _, place, _, pixels in frames_of(segmentation):
        assert np.abs(pixels / 255 - sources[place].pixel_array / 1000).max() <= 0.5 / 255 + 1e-6


def test_highdicoms_reader_finds_the_same(folder, tmp_path):
    written(folder, tmp_path / "mask.seg.dcm")
    found = highdicom.seg.segread(tmp_path / "mask.seg.dcm")
    sources = list(sources_of(folder).values())
    pixels = found.get_pixels_by_source_instance([source.SOPInstanceUID for source in sources])
    for source, values in zip(sources, pixels, strict=True):
        np.testing.assert_array_equal(values, np.stack(list(masks_of(source.pixel_array).values()), axis=-1))


@pytest.mark.parametrize("name", ["axial", "downwards", "sagittal", "very oblique"])
def test_as_a_volume_it_is_where_the_scan_is(name, tmp_path):
    folder = write_series(tmp_path / "t1", VOXELS, **SERIES[name])
    written(folder, tmp_path / "mask.seg.dcm", lambda voxels: {"whole_tumour": voxels > 400})
    volume = read_volume(folder)
    found = highdicom.seg.segread(tmp_path / "mask.seg.dcm").get_volume(combine_segments=True)
    indices = np.argwhere(found.array)
    lps = np.c_[indices, np.ones(len(indices))] @ found.affine.T
    voxels = lps * [-1, -1, 1, 1] @ np.linalg.inv(volume.affine).T
    there = np.rint(voxels[:, :3]).astype(int)
    assert np.abs(voxels[:, :3] - there).max() < 1e-3
    assert sorted(map(tuple, there)) == sorted(map(tuple, np.argwhere(volume.voxels > 400)))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIL"])
def test_the_order_of_the_arrays_axes_does_not_matter(folder, tmp_path, axes):
    written(folder, tmp_path / "a.seg.dcm")
    written(folder, tmp_path / "b.seg.dcm", axes=axes)
    assert (tmp_path / "a.seg.dcm").read_bytes() == (tmp_path / "b.seg.dcm").read_bytes()


def test_it_belongs_to_its_patient_study_and_space(axial, tmp_path):
    segmentation, source = written(axial, tmp_path / "mask.seg.dcm"), next(iter(sources_of(axial).values()))
    for name in ("PatientID", "PatientName", "PatientSex", "PatientBirthDate", "StudyInstanceUID", "StudyID"):
        assert segmentation[name].value == source[name].value
    assert segmentation.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert segmentation.SeriesInstanceUID != source.SeriesInstanceUID and segmentation.SeriesNumber == 301
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert segmentation.ContentDate == source.StudyDate and segmentation.ContentTime == source.StudyTime


REQUIRED = """
    SOPClassUID SOPInstanceUID PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime
    ReferringPhysicianName StudyID AccessionNumber Modality SeriesInstanceUID SeriesNumber FrameOfReferenceUID
    PositionReferenceIndicator Manufacturer ManufacturerModelName DeviceSerialNumber SoftwareVersions InstanceNumber
    ContentDate ContentTime ImageType SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored
    HighBit PixelRepresentation PixelData LossyImageCompression SegmentationType ContentLabel ContentDescription
    ContentCreatorName SegmentSequence NumberOfFrames SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    DimensionOrganizationSequence DimensionIndexSequence ReferencedSeriesSequence
"""


@pytest.mark.parametrize("regions", [masks_of, lambda voxels: {"a": (voxels / 1000).astype(np.float32)}])
def test_it_has_what_the_standard_requires(axial, tmp_path, regions):
    segmentation = written(axial, tmp_path / "x.seg.dcm", regions)
    assert [name for name in REQUIRED.split() if name not in segmentation] == []
    assert segmentation.SOPClassUID == segmentation.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"
    for segment in segmentation.SegmentSequence:
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "medseg_diff")
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmVersion, algorithm.AlgorithmParameters) == ("1.2.3", f"model={'ab' * 6}")
        assert segment.AnatomicRegionSequence[0].CodeMeaning == "Brain"
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert segmentation.SegmentsOverlap == ("YES" if len(segmentation.SegmentSequence) > 1 else "NO")


def test_a_scan_without_a_lesion_has_an_object_too(axial, tmp_path):
    segmentation = written(axial, tmp_path / "mask.seg.dcm", lambda voxels: {"a": voxels < 0, "b": voxels < 0})
    assert segmentation.NumberOfFrames == 2 * len(VOXELS) and not segmentation.pixel_array.any()
    assert highdicom.seg.segread(tmp_path / "mask.seg.dcm").number_of_segments == 2


@pytest.mark.parametrize("regions", [masks_of, lambda voxels: {"a": (voxels / 1000).astype(np.float32)}])
def test_the_same_call_gives_the_same_bytes(axial, tmp_path, regions):
    first = written(axial, tmp_path / "a.seg.dcm", regions)
    write_series(tmp_path / "renamed", VOXELS, seed=5, InstanceNumber="7")
    expected = (tmp_path / "a.seg.dcm").read_bytes()
    for name, folder in (("b", axial), ("c", tmp_path / "renamed")):
        written(folder, tmp_path / f"{name}.seg.dcm", regions)
        assert (tmp_path / f"{name}.seg.dcm").read_bytes() == expected
    for change in ({"version": "2"}, {"model_sha256": "cd" * 32}, {"decided_by": ("voxels", "1")}):
        other = written(axial, tmp_path / "d.seg.dcm", regions, made_by=MADE_BY._replace(**change))
        for name in ("SOPInstanceUID", "SeriesInstanceUID"):
            assert other[name].value != first[name].value
    assert "InstanceCreationDate" not in first and "ContributionDateTime" not in str(first)


def test_two_kinds_and_two_results_never_share_an_identifier(axial, tmp_path):
    found = [
        written(axial, tmp_path / "x.seg.dcm", regions)
        for regions in (
            lambda voxels: {"a": voxels > 500},
            lambda voxels: {"a": voxels > 600},
            lambda voxels: {"b": voxels > 500},
            lambda voxels: {"a": (voxels > 500).astype(np.float32)},
        )
    ]
    assert len({one.SOPInstanceUID for one in found}) == len({one.SeriesInstanceUID for one in found}) == 4


@pytest.mark.parametrize(
    "header",
    [
        dict.fromkeys(("PatientSex", "PatientBirthDate", "StudyDate", "StudyTime", "StudyID", "AccessionNumber")),
        {"PatientSex": "U", "SliceThickness": None, "SpacingBetweenSlices": "0.3", "SeriesNumber": None},
        {"PatientName": "", "PatientID": "", "StudyTime": ""},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"},
        {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"},
        {"SpecificCharacterSet": "ISO_IR 6"},
    ],
    ids=["anonymised", "careless", "empty", "japanese", "german", "old"],
)
def test_headers_that_are_less_than_perfect(tmp_path, header):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = write_series(tmp_path / "t1", VOXELS, **header)
    segmentation = written(folder, tmp_path / "mask.seg.dcm")
    assert segmentation.PatientName == header.get("PatientName", "Doe^Jane")
    assert segmentation.ContentDate == ("19000101" if header.get("StudyDate", 1) is None else "20240305")
    (measures,) = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert float(measures.SpacingBetweenSlices) == 3.0
    assert float(measures.SliceThickness) == (3.0 if "SliceThickness" in header else 2.5)
    for number, place, _, pixels in frames_of(segmentation):
        if number == 1:
            np.testing.assert_array_equal(pixels, sources_of(folder)[place].pixel_array > 400)


def test_orientations_that_files_round_differently_are_one(tmp_path):
    folder = write_series(tmp_path / "t1", VOXELS, directions=turned(23.0))
    path = sorted(folder.iterdir())[3]
    one = pydicom.dcmread(path)
    one.ImageOrientationPatient = [f"{part:.6f}" for part in one.ImageOrientationPatient]
    one.save_as(path)
    assert written(folder, tmp_path / "mask.seg.dcm").NumberOfFrames == 27


@pytest.mark.parametrize("name", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_a_series_that_says_too_little_is_refused(tmp_path, name):
    folder = write_series(tmp_path / "t1", VOXELS, **{name: None})
    with pytest.raises(ImageError, match=rf"have no {name}, which a segmentation of them must refer to\. Fix: "):
        written(folder, tmp_path / "mask.seg.dcm")
    assert not (tmp_path / "mask.seg.dcm").exists()


def test_slices_of_a_tilted_gantry_are_refused(axial, tmp_path):
    volume = read_volume(axial)
    for path in axial.iterdir():
        one = pydicom.dcmread(path)
        x, y, z = map(float, one.ImagePositionPatient)
        one.ImagePositionPatient = [x, y + 0.3 * (z - 4.25), z]
        one.save_as(path)
    with pytest.raises(ImageError, match="its slices are shifted relative to each other"):
        read_series(axial, volume.affine, volume.shape)


@pytest.mark.parametrize("how", ["spacing", "turned", "shape", "upside down", "higher"])
def test_a_grid_that_is_not_the_series_is_refused(axial, how):
    volume = read_volume(axial)
    affine, shape = volume.affine.copy(), volume.shape
    if how == "spacing":
        affine[:3, :3] /= 1.2
    elif how == "turned":
        affine[:3, :3] = np.diag([-1.0, 1, 1]) @ np.roll(np.eye(3), 1, axis=0) + 0.2
    elif how == "upside down":
        affine[:3, 2] *= -1
    elif how == "higher":
        affine[:3, 3] += affine[:3, 2]
    else:
        shape = (shape[0], shape[1], shape[2] - 1)
    with pytest.raises(ImageError, match=r"grid that was read|do not match the volume that was read"):
        read_series(axial, affine, shape)


def test_one_file_of_several_frames(tmp_path):
    folder = write_series(tmp_path / "t1", VOXELS, spacing=(1.0, 1.0))
    whole = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        [sources_of(folder)[place] for place in sorted(sources_of(folder), key=lambda place: place[2])],
        series_instance_uid="1.2.9",
        series_number=9,
        sop_instance_uid="1.2.9.1",
        instance_number=1,
    )
    (tmp_path / "frames").mkdir()
    whole.save_as(tmp_path / "frames" / "whole.dcm")
    segmentation = written(tmp_path / "frames", tmp_path / "mask.seg.dcm")
    assert segmentation.NumberOfFrames == 27
    for number, place, _, pixels in frames_of(segmentation):
        if number == 1:
            np.testing.assert_array_equal(pixels, sources_of(folder)[place].pixel_array > 400)


def test_nothing_of_a_header_is_said_aloud(tmp_path, capfd, caplog):
    """The libraries quote what they find odd."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = write_series(tmp_path / "t1", VOXELS, PatientName="Secretname", StudyDate="Secretdate")
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        written_path = tmp_path / "mask.seg.dcm"
        volume = read_volume(folder)
        series = read_series(folder, volume.affine, volume.shape)
        write_segmentation(written_path, masks_of(volume.voxels), series, MADE_BY)
    shown = "".join(capfd.readouterr()) + caplog.text + "".join(str(each.message) for each in said)
    assert "Secret" not in shown and written_path.is_file()


def test_what_the_libraries_cannot_do_is_one_line_without_their_words(axial, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("the name of Doe^Jane")

    monkeypatch.setattr(dicom_seg, "_segmentation", fail)
    with pytest.raises(ImageError, match=r"no segmentation object can be made .* \(ValueError\)") as caught:
        written(axial, tmp_path / "mask.seg.dcm")
    assert "Doe" not in caught.value.line and caught.value.exit_code == 3


def test_without_the_library_it_says_what_to_install(monkeypatch):
    check_installed()
    monkeypatch.setattr(dicom_seg, "find_spec", lambda name: None if name == "highdicom" else object())
    with pytest.raises(EnvironmentFault, match=r"needs highdicom, not installed here.*pip install '.\[dicom\]'"):
        check_installed()


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ("whole_tumour", "Neoplasm"),
        ("tumor-core", "Neoplasm"),
        ("enhancing_tumour", "EnhancingLesion"),
        ("non_enhancing_tumour", "NonEnhancingLesion"),
        ("oedema", "Edema"),
        ("ET", "EnhancingLesion"),
        ("necrotic_core", "Necrosis"),
        ("ms_lesion", "Lesion"),
        ("basket", "Lesion"),
    ],
)
def test_a_regions_type_follows_from_its_name(region, expected):
    from pydicom.sr.codedict import codes

    assert type_of(region) == expected and getattr(codes.cid7159, expected).value


PAPAYA = ("dicom", "papaya_brain")


@with_scans(*PAPAYA)
def test_a_real_series_with_uneven_slices(tmp_path):
    segmentation, sources = (
        written(SCANS.joinpath(*PAPAYA), tmp_path / "mask.seg.dcm"),
        sources_of(SCANS.joinpath(*PAPAYA)),
    )
    assert segmentation.NumberOfFrames == 60
    for number, place, _, pixels in frames_of(segmentation):
        if number == 1:
            np.testing.assert_array_equal(pixels, sources[place].pixel_array > 400)
