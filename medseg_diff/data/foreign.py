"""The side door: MGZ, MetaImage, NRRD and DICOM series → voxels and affine; the checks behind it are NIfTI's.

SimpleITK is not used for NIfTI: it returns zeros for a truncated one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medseg_diff.data.geometry import is_usable
from medseg_diff.data.nifti import GZIP, MOST_VOXELS, first_bytes, inflate
from medseg_diff.errors import ImageError

Found = tuple[np.ndarray, np.ndarray, list[str]]
MGH_HEADER = 284  # bytes
UNEVEN_SLICES = 0.01  # spread of the gaps between slices against their mean


def reader_for(head: bytes, name: str) -> Callable[[bytes, Path], Found] | None:
    """Who reads a file that begins with `head` (decompressed) and is not NIfTI."""
    if head[:4] == b"\0\0\0\x01" and name.lower().endswith((".mgz", ".mgh")):
        return read_mgh
    if head.startswith((b"NRRD000", b"ObjectType", b"NDims")):
        return _read_itk
    if head[128:132] == b"DICM":
        return _single_dicom
    return None


def read_mgh(content: bytes, path: Path) -> Found:
    """FreeSurfer's MGH or MGZ. Raises: ImageError."""
    from nibabel.freesurfer.mghformat import MGHHeader, MGHImage

    try:
        header = MGHHeader(first_bytes(content, MGH_HEADER), check=False)
        shape = header.get_data_shape()
        if min(shape) < 1 or int(np.prod(shape, dtype=object)) > MOST_VOXELS:
            raise ImageError(f"states impossible dimensions {list(shape)}", fix="copy it again from its source")
        size = MGH_HEADER + int(np.prod(shape, dtype=object)) * header.get_data_dtype().itemsize
        image = MGHImage.from_bytes(inflate(content, size) if content.startswith(GZIP) else content)
        voxels = np.ascontiguousarray(image.dataobj, dtype=np.float32)
    except ImageError:
        raise
    except Exception as error:  # nibabel has several ways to say that a file is damaged
        raise ImageError(f"is not a readable MGH image ({error})", fix="copy it again from its source") from None
    return voxels, _usable(np.asarray(image.affine, dtype=np.float64)), []


def read_dicom_series(folder: Path) -> Found:
    """The one series of a DICOM folder. Raises: ImageError where there are several, or none, or slices are missing."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # its own lines on stderr name paths and patients
    reader = SimpleITK.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = f"holds {len(series)} DICOM series" if series else "holds no image and no DICOM series"
        raise ImageError(found, fix="give one folder for each series, as in t1=FOLDER")
    names = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    reader.SetFileNames(names)
    try:
        voxels, affine, warnings = _from_itk(reader.Execute())
    except RuntimeError:
        raise ImageError("its DICOM series cannot be read", fix="check that no slice is missing or damaged") from None
    return voxels, affine, warnings + _uneven(names)


def _uneven(names: tuple[str, ...]) -> list[str]:
    """Say where the gaps between slices differ. Raises: ImageError where a slice is missing."""
    import SimpleITK

    places, reader = [], SimpleITK.ImageFileReader()
    for name in names:
        reader.SetFileName(name)
        reader.ReadImageInformation()
        places.append(reader.GetOrigin())
    gaps = np.linalg.norm(np.diff(np.array(places), axis=0), axis=1)
    if not len(gaps) or np.ptp(gaps) <= UNEVEN_SLICES * gaps.mean():
        return []
    if gaps.max() > 1.5 * np.median(gaps) or gaps.min() < 0.5 * np.median(gaps):
        raise ImageError(f"its slices lie {gaps.min():.3g} to {gaps.max():.3g} mm apart", fix="find the missing slices")
    return [f"its slices lie {gaps.min():.4g} to {gaps.max():.4g} mm apart and are taken as even"]


def _read_itk(content: bytes, path: Path) -> Found:
    """MetaImage or NRRD; SimpleITK reads them by path only."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if int(np.prod(reader.GetSize(), dtype=object)) > MOST_VOXELS:
            raise ImageError("states more voxels than a head can have", fix="crop or downsample it")
        return _from_itk(reader.Execute())
    except RuntimeError:
        raise ImageError("cannot be read", fix="copy it again from its source, or convert it to NIfTI") from None


def _single_dicom(content: bytes, path: Path) -> Found:
    raise ImageError("is one DICOM slice", fix="give the folder of the series")


def _from_itk(image: Any) -> Found:
    """Voxels [X, Y, Z(, N)] and the affine in RAS of an image that SimpleITK keeps as [(N,) Z, Y, X] in LPS."""
    import SimpleITK

    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ImageError("has several numbers a voxel", fix="split it into one file a channel")
    if "complex" in image.GetPixelIDTypeAsString():
        raise ImageError("its voxels are complex, not plain numbers", fix="convert it to one number a voxel")
    voxels = np.ascontiguousarray(SimpleITK.GetArrayFromImage(image).T, dtype=np.float32)
    axes = image.GetDimension()
    lps = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(axes, axes)[:3, :3] * np.array(image.GetSpacing())[:3]
    lps[: len(direction), : len(direction)] = direction
    lps[: len(direction), 3] = image.GetOrigin()[:3]
    return voxels, _usable(np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps), []


def _usable(affine: np.ndarray) -> np.ndarray:
    if not is_usable(affine):
        raise ImageError("has no usable orientation", fix="convert it to NIfTI with the tool that made it")
    return affine
