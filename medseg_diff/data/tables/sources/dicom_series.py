"""Headers of DICOM slices → series, each with the channel that it is, or the reason why it is none.

Nothing of a header leaves this module but what a series is, how many slices it has and its number.
"""

import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medseg_diff.errors import EnvironmentFault

IDENTITY = ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate"]
DESCRIPTION = ["SeriesDescription", "ProtocolName", "SequenceName", "MRAcquisitionType", "SeriesNumber", "ImageType"]
PLACE = ["ImageOrientationPatient", "ImagePositionPatient", "Rows", "Columns", "NumberOfFrames"]
TIMES = ["RepetitionTime", "EchoTime", "InversionTime"]
TAGS = [*IDENTITY, *DESCRIPTION, *PLACE, *TIMES, "Modality", "ScanningSequence", "ContrastBolusAgent"]
FEWEST_SLICES = 8
NOT_ORIGINAL = {"DERIVED", "SECONDARY", "PROJECTION IMAGE", "MIP", "MINIP", "SUBTRACTION", "PHASE", "P", "ADC", "FA"}
LOCALISER = re.compile(r"local|loc\b|scout|survey|plan\b|smartbrain|calib|shim|\bcal\b")
OTHER = re.compile(  # contrasts that are not among ours, whatever else stands in their names
    r"dwi|diff|dti|\bdki\b|adc|trace|tensor|\bep2d|\bepi\b|bold|fmri|\brest|perf|pwi|\bdsc\b|\bdce\b|\basl\b|pcasl|swi|swan|"
    r"venbold|tof\b|\bmra\b|\bmrv\b|angio|venog|spectro|\bcsi\b|svs|field.?map|b0.?map|t2.?(star|\*)|\bt1rho|map\b|mapit|"
    r"\bgre.?field|hemo|phase|\bmip\b|\bsub\b|subtr|\bciss\b|fiesta|spine|cerv|neck|stir|orbit|\bpd\b|proton"
)
FLAIR = re.compile(r"flair|dark.?fluid|tirm")
T1 = re.compile(r"(?<![a-z])s?t1(?![0-9])|mp.?rage|bravo|spgr|\btfl\b|tfl3d|vibe")
T2 = re.compile(r"(?<![a-z])s?t2(?![0-9])")
WITHOUT = re.compile(r"\bpre\b|precontrast|pre.?gd|without|\bw/?o\b|\bnon.?(con|enh)|no.?contrast|\bnativ|plain|unenh")
AFTER = re.compile(r"\bgd|gad|\bce\b|\+c\b|\bc\+|post|contrast|\bkm\b|\bmdc\b|dotarem|\bw/?c\b|t1c\b|enhanced")
NO_AGENT = {"", "no", "none", "n", "0", "without"}


@dataclass(frozen=True)
class Header:
    """What sorting needs of one slice. `text` is all that describes it, in lower case; `part` tells apart what one series
    mixes: plane, size, echo time and kind of image. `place` is the slice's height along its normal, in mm."""

    path: Path
    patient: str
    study: str
    series: str
    part: tuple[Any, ...]
    instance: str
    number: str
    text: str
    kind: frozenset[str]
    modality: str
    place: float | None
    contrast: bool
    echo: bool
    times: tuple[float, float, float]  # repetition, echo, inversion; ms, 0 where not stated
    frames: int


@dataclass(frozen=True)
class Series:
    """The slices of one image, in order along their normal."""

    slices: tuple[Header, ...]

    @property
    def first(self) -> Header:
        return self.slices[0]

    @cached_property
    def fault(self) -> str:
        """Why it is no brain image that could be a channel, as a kind; empty where it could be."""
        first, places = self.first, [slice_.place for slice_ in self.slices]
        reasons = {
            "not MR": first.modality != "MR",
            "with several frames per file (convert them to NIfTI)": first.frames > 1,
            "localisers": "LOCALIZER" in first.kind or LOCALISER.search(first.text) is not None,
            "derived or secondary": bool(first.kind & NOT_ORIGINAL),
            "without a position in space": None in places,
            f"of fewer than {FEWEST_SLICES} slices": len(places) < FEWEST_SLICES,
            "of several volumes": len(set(places)) < len(places),
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    @cached_property
    def channel(self) -> str | None:
        """What it is by its description, or by its times where that says nothing."""
        if self.first.echo or OTHER.search(self.first.text):
            return None
        weighting = _by_words(self.first.text) or _by_times(*self.first.times)
        return "t1ce" if weighting == "t1" and _after_contrast(self.first) else weighting

    def says(self, word: str) -> bool:
        """Whether it is called so, or has this number."""
        return word == self.first.number or (not word.isdecimal() and word.lower() in self.first.text)


def _by_words(text: str) -> str | None:
    """Of several weightings none: `T1 FLAIR` is T1, but `T1 and T2` says nothing."""
    if T1.search(text):
        return None if T2.search(text) else "t1"
    if FLAIR.search(text):
        return "flair"
    return "t2" if T2.search(text) else None


def _by_times(repetition: float, echo: float, inversion: float) -> str | None:
    """Repetition, echo and inversion time in ms, as routine brain protocols have them at 1.5 and 3 T."""
    if inversion > 1500 and echo > 70:
        return "flair"
    if echo > 70 and repetition > 2000 and inversion == 0:
        return "t2"
    spoiled = 0 < echo < 10 and 600 <= inversion <= 1300  # a prepared gradient echo, such as MPRAGE
    spin = 0 < echo < 30 and 300 <= repetition < 1200 and inversion == 0
    return "t1" if spoiled or spin else None


def _after_contrast(header: Header) -> bool:
    if WITHOUT.search(header.text):
        return False
    return header.contrast or AFTER.search(header.text) is not None


def sorted_series(headers: Iterable[Header]) -> list[Series]:
    """Slices by series, and by what one series mixes; a slice that was exported twice counts once."""
    series: dict[tuple[Any, ...], dict[str, Header]] = {}
    for header in headers:
        key = (header.patient, header.study, header.series, *header.part)
        series.setdefault(key, {}).setdefault(header.instance, header)
    return [
        Series(tuple(sorted(slices.values(), key=lambda each: (each.place or 0.0, each.instance))))
        for slices in series.values()
    ]


def read_headers(paths: Iterable[Path]) -> Iterator[Header | None]:
    """The header of each file, its voxels not read; None for what is no DICOM image. Raises: EnvironmentFault."""
    try:
        import pydicom
    except ImportError:
        fix = "install it: pip install '.[dicom]' in the repository"
        raise EnvironmentFault("sorting DICOM needs pydicom, which is not installed", fix=fix) from None
    for path in paths:
        with _quiet():
            try:
                dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
                header = _header(path, {tag: dataset.get(tag) for tag in TAGS})
            except Exception:  # whatever a damaged header makes pydicom raise; its words may be a patient's
                header = None
        yield header


def _header(path: Path, tags: dict[str, Any]) -> Header | None:
    if not tags["SeriesInstanceUID"] or not tags["StudyInstanceUID"] or not tags["Rows"]:
        return None
    described = (tags[name] for name in ("SeriesDescription", "ProtocolName", "SequenceName"))
    kind = _words(tags["ImageType"])
    plane = tuple(round(float(number), 2) for number in tags["ImageOrientationPatient"] or ())
    times = tuple(float(tags[name] or 0) for name in TIMES)
    by_name = f"{tags['PatientName']} {tags['PatientBirthDate']}" if tags["PatientName"] else tags["StudyInstanceUID"]
    return Header(
        path=path,
        patient=str(tags["PatientID"] or by_name),
        study=str(tags["StudyInstanceUID"]),
        series=str(tags["SeriesInstanceUID"]),
        part=(plane, tags["Rows"], tags["Columns"], round(times[1], 1), tuple(sorted(kind & NOT_ORIGINAL))),
        instance=str(tags["SOPInstanceUID"]),
        number=str(tags["SeriesNumber"] or ""),
        text=" ".join([*(str(text or "") for text in described), *kind, str(tags["MRAcquisitionType"] or "")]).lower(),
        kind=frozenset(kind),
        modality=str(tags["Modality"] or ""),
        place=_place(plane, tags["ImageOrientationPatient"], tags["ImagePositionPatient"]),
        contrast=str(tags["ContrastBolusAgent"] or "").strip().lower() not in NO_AGENT,
        echo="EP" in _words(tags["ScanningSequence"]),
        times=times,  # type: ignore[arg-type]  # three of them
        frames=int(tags["NumberOfFrames"] or 1),
    )


def _words(value: Any) -> set[str]:
    """The values of a tag that may have none, one or several."""
    return {str(word).strip().upper() for word in ([value] if isinstance(value, str) else value or ())}


def _place(plane: tuple[float, ...], orientation: Any, position: Any) -> float | None:
    """Height of a slice along its normal, to 1/100 mm."""
    if len(plane) != 6 or position is None or len(position) != 3:
        return None
    along_row, along_column = np.reshape([float(number) for number in orientation], (2, 3))
    return round(float(np.cross(along_row, along_column) @ [float(number) for number in position]), 2)


@contextmanager
def _quiet() -> Iterator[None]:
    """pydicom's warnings and log lines quote what stands in a header."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
