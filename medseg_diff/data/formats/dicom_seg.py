"""DICOM Segmentation objects: masks or probabilities of regions, laid over the series that they were found in."""

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medseg_diff.data.formats.dicom_series import Series, hushed
from medseg_diff.errors import EnvironmentFault, ImageError
from medseg_diff.files import write_bytes

NAME = "medseg_diff"
WHITE, DIGITS = 255, 12  # a probability of 1; of a digest, as many as tell models apart
# By the words that a region's name holds, the first that fits: which of DICOM's codes for lesions (CID 7159) it is.
TYPES = (
    (("nonenhancing", "non_enhancing", "net"), "NonEnhancingLesion"),
    (("enhancing", "et"), "EnhancingLesion"),
    (("oedema", "edema", "ed"), "Edema"),
    (("necrosis", "necrotic", "ncr"), "Necrosis"),
    (("tumour", "tumor", "glioma", "metastasis", "neoplasm", "wt", "tc"), "Neoplasm"),
)
OTHER_TYPE = "Lesion"
COLOURS = ((214, 39, 40), (255, 187, 51), (31, 119, 180), (44, 160, 44), (148, 103, 189), (140, 86, 75))
EMPTY_ALLOWED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")
SEXES = ("M", "F", "O")
DATES = (("StudyDate", "StudyTime"), ("SeriesDate", "SeriesTime"), ("AcquisitionDate", "AcquisitionTime"))
NO_DATE = ("19000101", "000000")  # of a series without any: the standard wants one
UTF_8 = "ISO_IR 192"


class MadeBy(NamedTuple):
    """What made the regions: the version of this package, the model's digest, and what else decides the result (digests of
    the images, the seed); from all of it follow the object's own identifiers."""

    version: str
    model_sha256: str
    decided_by: tuple[str, ...]


def check_installed() -> None:
    """Raises: EnvironmentFault where the libraries that write DICOM are missing."""
    missing = [name for name in ("pydicom", "highdicom") if find_spec(name) is None]
    if missing:
        found = f"--format dicom-seg needs {' and '.join(missing)}, not installed here"
        raise EnvironmentFault(found, fix="pip install '.[dicom]' in the repository")


def write_segmentation(path: Path, regions: Mapping[str, np.ndarray], series: Series, made_by: MadeBy) -> None:
    """Write one object with a segment for each region, arrays [X, Y, Z] of the grid that the series was read as: masks
    (bool) as BINARY, probabilities (float, 0 to 1) as FRACTIONAL in steps of 1/255. Every slice of the series is there, also
    where it is empty; patient, study and frame of reference are the series'.

    The same regions of the same series give the same bytes: times are those of the study, identifiers follow from what
    decided the result. Raises: ImageError where the series' headers do not allow it; EnvironmentFault.
    """
    from pydicom import dcmwrite

    frames = np.stack([series.frames_of(voxels) for voxels in regions.values()], axis=-1)
    with hushed():
        try:
            segmentation = _segmentation(frames, tuple(regions), series, made_by)
            content = BytesIO()
            dcmwrite(content, segmentation, enforce_file_format=True)
        except Exception as error:  # both libraries have many ways to say that a header is wrong, and quote it
            found = f"no segmentation object can be made from the headers of its DICOM series ({type(error).__name__})"
            raise ImageError(found, fix="leave --format out, or report it") from None
    write_bytes(path, content.getvalue())


def _segmentation(frames: np.ndarray, regions: tuple[str, ...], series: Series, made_by: MadeBy) -> Any:
    """highdicom's object of frames [N, rows, columns, R], without the time of its making and without random identifiers."""
    from highdicom.seg import Segmentation

    binary = frames.dtype == np.bool_
    kind = "mask" if binary else "probability"
    source = [_completed(image, series) for image in series.images]
    first, date, time = source[0], *_when(source[0])
    digest = hashlib.sha256(frames.tobytes()).hexdigest()
    seed = (NAME, *made_by.decided_by, made_by.version, made_by.model_sha256, kind, *regions, digest)
    segmentation = Segmentation(
        source_images=source,
        pixel_array=frames.astype(np.uint8) if binary else frames,
        segmentation_type="BINARY" if binary else "FRACTIONAL",
        segment_descriptions=_descriptions(regions, made_by),
        max_fractional_value=WHITE,
        series_instance_uid=_identifier(*seed, first.SeriesInstanceUID, "series"),
        series_number=100 * int(first.get("SeriesNumber") or 1) + (1 if binary else 2),
        sop_instance_uid=_identifier(*seed, first.SOPInstanceUID, "object"),
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=made_by.version,
        device_serial_number=made_by.model_sha256[:DIGITS],
        series_description=f"{NAME} {kind}",
        content_label=kind.upper(),
        content_description=f"Automatic, not reviewed: {kind} of {len(regions)} regions",
        content_date=date,
        content_time=time,
        specific_character_set=_character_set(first),
        omit_empty_frames=False,
    )
    del segmentation.InstanceCreationDate, segmentation.InstanceCreationTime
    for item in segmentation.ContributingEquipmentSequence:
        item.pop("ContributionDateTime", None)
    segmentation.ContentCreatorName = None  # nobody; the standard wants it said
    dimensions = _identifier(*seed, "dimensions")
    for item in (*segmentation.DimensionIndexSequence, *segmentation.DimensionOrganizationSequence):
        item.DimensionOrganizationUID = dimensions
    return segmentation


def _descriptions(regions: tuple[str, ...], made_by: MadeBy) -> list[Any]:
    """Of each segment: its name, what it is in SNOMED CT or NCIt, where, and what made it."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=NAME,
        family=codes.DCM.ArtificialIntelligence,
        version=made_by.version,
        parameters={"model": made_by.model_sha256[:DIGITS]},
    )
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=region,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=getattr(codes.cid7159, type_of(region)),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            anatomic_regions=[codes.SCT.Brain],
            display_color=CIELabColor.from_rgb(*COLOURS[(number - 1) % len(COLOURS)]),
        )
        for number, region in enumerate(regions, start=1)
    ]


def type_of(region: str) -> str:
    """What a region is among DICOM's types of lesions, by its name; a lesion where that says nothing known."""
    name = f"_{region.lower().replace('-', '_')}_"
    return next((kind for words, kind in TYPES if any(f"_{word}_" in name for word in words)), OTHER_TYPE)


def _completed(image: Any, series: Series) -> Any:
    """A copy of a header with what highdicom insists on: nothing where the standard allows nothing, one orientation (files
    round it differently), and the distance of the slices, which scanners use for other things."""
    from copy import deepcopy

    known = deepcopy(image)
    for name in EMPTY_ALLOWED:
        if name not in known:
            setattr(known, name, "")
    if known.PatientSex not in SEXES:
        known.PatientSex = ""
    for name in ("StudyDate", "StudyTime", "PatientBirthDate"):
        setattr(known, name, _valid(known.get(name), date=name != "StudyTime"))
    first, frames = series.images[0], "PerFrameFunctionalGroupsSequence"
    if frames not in known:
        known.ImageOrientationPatient = first.ImageOrientationPatient
        known.SliceThickness = known.get("SliceThickness") or series.spacing_mm
        known.SpacingBetweenSlices = series.spacing_mm
        return known
    shared = known.SharedFunctionalGroupsSequence[0]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):  # which all frames agree on, see `read_series`
        if name not in shared:
            setattr(shared, name, deepcopy(known[frames].value[0][name].value))
    shared.PixelMeasuresSequence[0].SpacingBetweenSlices = series.spacing_mm
    return known


def _when(image: Any) -> tuple[str, str]:
    """Date and time of the study, or of what else the header has."""
    found = ((_valid(image.get(date), date=True), _valid(image.get(time), date=False)) for date, time in DATES)
    date, time = next((each for each in found if each[0]), NO_DATE)
    return date, time or NO_DATE[1]


def _valid(value: Any, *, date: bool) -> str:
    """A date or time of a header as text, empty where it is none."""
    from pydicom.valuerep import DA, TM

    try:
        return str(value) if value and (DA if date else TM)(str(value)) else ""
    except ValueError:
        return ""


def _character_set(image: Any) -> str:
    """The header's own where it is a single one that highdicom knows, else UTF-8, which can write every name."""
    from highdicom import SpecificCharacterSetValues

    own = image.get("SpecificCharacterSet")
    return own if own in [each.value for each in SpecificCharacterSetValues] else UTF_8


def _identifier(*parts: str) -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[str(part) for part in parts]))
