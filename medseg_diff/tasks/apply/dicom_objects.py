"""`--format dicom-seg`: the regions of a case as DICOM Segmentation objects, beside its NIfTI files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from medseg_diff import __version__
from medseg_diff.data.formats.dicom_seg import MadeBy, check_installed, write_segmentation
from medseg_diff.data.formats.dicom_series import Series, read_series
from medseg_diff.data.reading import CaseImages
from medseg_diff.data.tables.case import Case
from medseg_diff.data.transforms import present_channels
from medseg_diff.errors import ImageError, UsageError, raise_all
from medseg_diff.tasks.options import Format, ResultFolder

MASK, PROBABILITY = "mask.seg.dcm", "probability.seg.dcm"
DICOM_SEG = "dicom-seg"
LEAVE_OUT = "leave --format out, or give each channel as the folder of a DICOM series"


def check_format(asked: str, results: ResultFolder) -> None:
    """Raises: UsageError for a format that is none, or where objects that carry a patient's name are asked for together with
    pseudonyms; EnvironmentFault where highdicom is missing."""
    if asked not in get_args(Format):
        raise UsageError(f"unknown format `{asked}`", fix=f"use one of {', '.join(get_args(Format))}")
    if asked != DICOM_SEG:
        return
    if results.pseudonymise:
        found = "a DICOM segmentation carries the patient's name and number, which --pseudonymise leaves out"
        raise UsageError(found, fix="leave --format or --pseudonymise out")
    check_installed()


def refuse_other_images(cases: Sequence[Case], channels: Sequence[str], *, resample_to: str | None) -> None:
    """Raises: UsageError of every case whose results will not lie on the grid of a DICOM series."""
    problems = []
    for case in cases:
        channel = resample_to or next(iter(present_channels(case, channels)), "")
        path = case.stack or case.images.get(channel)
        if path is not None and not path.is_dir():
            place = {"case": case.name, "channel": channel, "file": path.name}
            problems.append(UsageError("is not a DICOM series, which --format dicom-seg needs", fix=LEAVE_OUT, **place))
    raise_all(problems)


@dataclass(frozen=True)
class DicomObjects:
    """The series that a case's results lie on, in its folder, and what the objects say of their making."""

    case: str
    channel: str
    folder: Path
    series: Series
    made_by: MadeBy

    @classmethod
    def over(
        cls,
        case: Case,
        images: CaseImages,
        inputs: Mapping[str, Mapping[str, str]],
        facts: Mapping[str, Any],
        resample_to: str | None,
    ) -> "DicomObjects":
        """For a case whose `images` were read, with the digests of these `inputs` and the `facts` of the model.

        Raises: ImageError where its series says too little of itself, before anything is computed.
        """
        channel = resample_to or images.channels[0]
        folder = case.images[channel]
        try:
            series = read_series(folder, images.affine, images.image.shape[1:])
        except ImageError as error:
            place = {"case": case.name, "channel": channel, "file": folder.name}
            raise ImageError(error.found, fix=error.fix, **place) from None
        voxels = json.dumps({name: known["voxels_sha256"] for name, known in inputs.items()}, sort_keys=True)
        made_by = MadeBy(__version__, facts["sha256"], (voxels, str(facts["seed"])))
        return cls(case.name, channel, folder, series, made_by)

    def write(self, to: Path, masks: Mapping[str, np.ndarray], probabilities: np.ndarray) -> None:
        """Both objects into the folder `to`: masks [X, Y, Z] by region, probabilities [R, X, Y, Z] in the same order.

        Raises: ImageError where the headers of the series do not allow it; EnvironmentFault.
        """
        maps = dict(zip(masks, probabilities, strict=True))
        try:
            write_segmentation(to / MASK, masks, self.series, self.made_by)
            write_segmentation(to / PROBABILITY, maps, self.series, self.made_by)
        except ImageError as error:
            place = {"case": self.case, "channel": self.channel, "file": self.folder.name}
            raise ImageError(error.found, fix=error.fix, **place) from None
