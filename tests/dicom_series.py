"""Made-up DICOM series of any orientation, files in any order, as tests write them with pydicom alone."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

AXIAL = ((1, 0, 0), (0, 1, 0))
SAGITTAL = ((0, 1, 0), (0, 0, -1))
CORONAL = ((1, 0, 0), (0, 0, -1))


def turned(degrees, about=(1.0, 0.5, -0.3)):
    """Axial rows and columns, turned about an axis."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_rotvec(np.deg2rad(degrees) * np.array(about) / np.linalg.norm(about)).as_matrix()
    return tuple(map(tuple, (turn @ np.array(AXIAL, dtype=float).T).T))


def write_series(
    folder: Path,
    voxels,
    *,
    directions=AXIAL,
    spacing=(1.2, 0.9),
    heights=None,
    downwards=False,
    shift=0.0,
    seed=0,
    series="1.2.3",
    **header,
):
    """voxels [slices, rows, columns] (uint16) as files of shuffled names and numbers: the first of `directions` is that of a
    row, `spacing` is between rows and between columns, `heights` are the slices' places along the normal in mm, `shift` how
    many mm each lies further down its columns than the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    right, down = np.array(directions, dtype=float)
    normal = np.cross(right, down) * (-1 if downwards else 1)
    heights = 3.0 * np.arange(len(voxels)) if heights is None else heights
    names = rng.permutation(len(voxels)) + 1
    for number, (pixels, height) in enumerate(zip(voxels, heights, strict=True)):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = (
            MRImageStorage,
            f"{series}.{number + 1}",
        )
        one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, one.file_meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.77", series, "1.2.88"
        one.PatientName, one.PatientID, one.PatientSex, one.PatientBirthDate = "Doe^Jane", "4711", "F", "19500102"
        one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = "20240305", "101112", "S1", "A1"
        one.Modality, one.SeriesNumber, one.InstanceNumber = "MR", 3, str(names[number])
        one.ImagePositionPatient = [
            f"{mm:.6g}" for mm in np.array([-20.0, 13.5, 4.25]) + height * normal + number * shift * down
        ]
        one.ImageOrientationPatient = [f"{part:.8f}" for part in (*right, *down)]
        one.PixelSpacing, one.SliceThickness = list(map(str, spacing)), "2.5"
        one.Rows, one.Columns = pixels.shape
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.PixelData = np.ascontiguousarray(pixels, dtype="<u2").tobytes()
        for name, value in header.items():
            if value is None:
                del one[name]
            else:
                setattr(one, name, value)
        one.save_as(folder / f"IM{names[number]:03}", enforce_file_format=True)
    return folder


def sources_of(folder):
    """{position of the first pixel: the file as pydicom reads it}."""
    read = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    return {tuple(map(float, one.ImagePositionPatient)): one for one in read}
