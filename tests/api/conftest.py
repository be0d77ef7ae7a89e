"""What tests of the Python functions share: a patient's folder and its images in memory."""

import shutil
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest

CHANNELS = ("t1", "t1ce", "t2", "flair")


class Patient(NamedTuple):
    """A folder with `patient/` in it, and the patient's images: name → what a person has in a notebook."""

    place: Path
    names: dict


@pytest.fixture(scope="session")
def patient(phantoms, tmp_path_factory):
    place = tmp_path_factory.mktemp("scans")
    shutil.copytree(phantoms.parent / "phantom_0002", place / "patient")
    images = {channel: nibabel.load(place / "patient" / f"{channel}.nii.gz") for channel in CHANNELS}
    stacked = np.stack([image.get_fdata() for image in images.values()], axis=-1)
    return Patient(place, {**images, "image": nibabel.Nifti1Image(stacked, images["t1"].affine), "Path": Path})
