"""Which reader a file needs, and those of MGZ and DICOM series: stored voxels and affine; the checks behind are NIfTI's."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from medseg_diff.data.formats import nifti
from medseg_diff.data.formats.metaimage_nrrd import is_metaimage, read_metaimage, read_nrrd
from medseg_diff.data.formats.stored import Stored, check_count, in_file, in_memory
from medseg_diff.data.formats.stream import AGAIN, LARGEST_FILE, check_regular, content_of, first_bytes, packing_of
from medseg_diff.errors import ImageError

MGH_HEADER, GOOD_RAS = 284, slice(28, 30)  # bytes; where it says whether its orientation counts
UNEVEN_SLICES = 0.01  # spread of the gaps between slices against their mean
UPRIGHT = 1 - 1e-4  # cosine between a stack and the normal of its slices; a degree is 1.5e-4
MISSING_SLICE = 1.5  # largest gap against the smallest
MOST_SLICES = 5000

# What else people have where an image should be, by its first bytes.
KNOWN = {
    b"PK\x03\x04": "is a .zip archive",
    b"7z\xbc\xaf": "is a .7z archive",
    b"BZh": "is compressed with bzip2",
    b"\xfd7zXZ": "is compressed with xz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd",
    b"\x1f\x8b": "is a .gz inside a .gz",
    b"\x89PNG": "is a PNG picture",
    b"\xff\xd8\xff": "is a JPEG picture",
    b"%PDF": "is a PDF",
    b"\x93NUMPY": "is a numpy array, which has no orientation",
    b"\x89HDF": "is an HDF5 or MINC file",
    b"CDF\x01": "is a MINC file",
    b"\x80\x04": "is a Python pickle, which is never opened",
    b"version https://git-lfs": "is a Git LFS placeholder, not the file itself",
    b"/annex/objects": "is a git-annex placeholder, not the file itself",
    b"<!DOCTYPE": "is a web page, such as a server's error",
    b"<html": "is a web page, such as a server's error",
}  # fmt: skip


def read_stored(path: Path) -> Stored:
    """Any file or DICOM folder, by what it holds. Raises: ImageError without its place, OSError."""
    if path.is_dir():
        return read_dicom_series(path)
    check_regular(path)
    head, name = first_bytes(path), path.name.lower()
    if nifti.is_nifti(head):
        return nifti.read_nifti(path)
    if head[:4] == b"\0\0\0\x01" and name.endswith((".mgz", ".mgh", ".mgh.gz")):
        return read_mgh(path)
    if head.startswith(b"NRRD000"):
        return read_nrrd(path)
    if is_metaimage(head):
        return read_metaimage(path)
    if head[128:132] == b"DICM":
        raise ImageError("is one DICOM slice", fix="give the folder of the series")
    if head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        if len(head) < 348:
            raise ImageError("is cut off within its header", fix="copy it again from its source")
        raise ImageError("is an Analyze image, which has no orientation", fix="convert it to NIfTI")
    if name.endswith(".img"):
        raise ImageError("is only the voxels of a .hdr/.img pair", fix="give its .hdr")
    found = next((words for start, words in KNOWN.items() if head.lstrip().startswith(start)), "")
    if head[257:262] == b"ustar":
        found = "is a .tar archive"
    if found:
        raise ImageError(found, fix="unpack or convert it to NIfTI, or copy it again")
    raise ImageError("is not an image in a known format", fix="give NIfTI, MGZ, MHA, NRRD or a DICOM folder")


def read_mgh(path: Path) -> Stored:
    """FreeSurfer's MGH or MGZ. Raises: ImageError without its place, OSError."""
    from nibabel.freesurfer.mghformat import MGHHeader

    head = first_bytes(path, MGH_HEADER)
    if len(head) < MGH_HEADER:
        raise ImageError("is cut off within its header", fix=AGAIN)
    try:
        header = MGHHeader(head, check=False)
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = np.dtype(header.get_data_dtype())
        affine = np.asarray(header.get_affine(), dtype=np.float64)
    except Exception as error:  # nibabel has several ways to say that a header is absurd
        raise ImageError(f"is not a readable MGH image ({error})", fix=AGAIN) from None
    if min(shape) < 1:
        raise ImageError(f"states impossible dimensions {list(shape)}", fix=AGAIN)
    check_count(shape)
    size = MGH_HEADER + math.prod(shape) * dtype.itemsize
    content = content_of(path, size, skip=MGH_HEADER, packing=packing_of(path), tail=True)
    guess = () if head[GOOD_RAS] == b"\0\1" else ("states no orientation; FreeSurfer's default is assumed",)
    return Stored(in_file(content, dtype), shape, affine, guess)


def read_dicom_series(folder: Path) -> Stored:
    """The one series of a DICOM folder. Raises: ImageError where there are several, or none, or slices are missing."""
    import SimpleITK

    files, others = dicom_files(folder)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # its own lines on stderr name paths and patients
    reader = SimpleITK.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = f"holds {len(series)} DICOM series" if series else "holds no image and no DICOM series"
        raise ImageError(found, fix="give one folder for each series, as in t1=FOLDER")
    names = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    unread = sorted(files - {Path(name).name for name in names})
    if unread:
        found = f"{len(unread)} of its {len(files)} DICOM files cannot be read, such as {unread[0]}"
        raise ImageError(found, fix="copy them again, or remove them if they are not slices")
    warnings = [f"{len(others)} non-DICOM files are left out, such as {sorted(others)[0]}"] if others else []
    try:
        said, step = _check_slices(names)
        warnings += said
        reader.SetFileNames(names)
        voxels, affine = _from_itk(reader.Execute())
        if step is not None and _is_aslant(step, affine):
            affine[:3, 2] = step  # SimpleITK takes every stack for an upright one
            warnings.append("its slices are shifted against each other, as with a tilted gantry: the axes are sheared")
    except RuntimeError:
        raise ImageError("its DICOM series cannot be read", fix="check that no slice is missing or damaged") from None
    several = len(names) == 1 and voxels.ndim > 2 and voxels.shape[2] > 1
    if several and np.allclose(np.linalg.norm(affine[:3, :3], axis=0), 1):
        # GDCM says so too where it cannot make out the spacing, as of frames that lie unevenly.
        warnings.append("one file of several slices, read with voxels of 1×1×1 mm: check the spacing")
    return Stored(in_memory(voxels), voxels.shape, affine, tuple(warnings))


def dicom_files(folder: Path) -> tuple[set[str], set[str]]:
    """The names of the DICOM files and of the others in a folder, none of them opened before it is known to be a file.

    Raises: ImageError, OSError.
    """
    files: set[str] = set()
    others: set[str] = set()
    size = 0
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name == "DICOMDIR" or path.is_dir():
            continue
        try:
            size += check_regular(path)
            with path.open("rb") as file:
                (files if file.read(132)[128:] == b"DICM" else others).add(path.name)
        except ImageError as error:
            raise ImageError(f"{path.name} {error.found}", fix="remove it from the folder") from None
        if len(files) > MOST_SLICES or size > LARGEST_FILE:
            raise ImageError("holds more than one series can", fix="give the folder of one series")
    return files, others


def _check_slices(names: tuple[str, ...]) -> tuple[list[str], np.ndarray | None]:
    """Say where the gaps between slices differ; and the step from slice to slice in RAS millimetres, None of one slice.

    Raises: ImageError where sizes differ or a slice is missing or double; RuntimeError as SimpleITK does.
    """
    import SimpleITK

    places, sizes, reader = [], set(), SimpleITK.ImageFileReader()
    for name in names:
        reader.SetFileName(name)
        reader.ReadImageInformation()
        places.append(reader.GetOrigin())
        sizes.add(tuple(reader.GetSize()))
    if len(sizes) > 1:
        raise ImageError("its slices differ in size", fix="give the folder of one series")
    (size,) = sizes
    check_count((*(int(n) for n in size), len(names)))
    if len(names) > 1 and len(size) > 2 and size[2] > 1:
        raise ImageError("holds several multi-slice files", fix="give one file in a folder of its own")
    gaps = np.linalg.norm(np.diff(np.array(places), axis=0), axis=1)
    if len({tuple(np.round(place, 3)) for place in places}) < len(places):
        raise ImageError("two of its slices are at the same position", fix="give the folder of one series, once")
    step = None if not len(gaps) else np.array([-1.0, -1.0, 1.0]) * (np.subtract(places[-1], places[0]) / len(gaps))[:3]
    if not len(gaps) or np.ptp(gaps) <= UNEVEN_SLICES * gaps.mean():
        return [], step
    if gaps.max() > MISSING_SLICE * gaps.min():
        raise ImageError(f"its slices are {gaps.min():.3g} to {gaps.max():.3g} mm apart", fix="find the missing slices")
    return [f"its slices are {gaps.min():.4g} to {gaps.max():.4g} mm apart; even spacing is assumed"], step


def _is_aslant(step: np.ndarray, affine: np.ndarray) -> bool:
    """Whether slices are shifted in their plane from one to the next, as with a tilted gantry."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    upright = abs(step @ normal) / (np.linalg.norm(step) * np.linalg.norm(normal))
    return bool(upright < UPRIGHT)


def _from_itk(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [X, Y, Z(, N)] and the affine in RAS of an image that SimpleITK keeps as [(N,) Z, Y, X] in LPS."""
    import SimpleITK

    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ImageError("has several numbers per voxel", fix="split it into one file per channel")
    if "complex" in image.GetPixelIDTypeAsString():
        raise ImageError("its voxels are complex, not plain numbers", fix="convert it to one number per voxel")
    voxels = SimpleITK.GetArrayFromImage(image).T
    axes = image.GetDimension()
    lps = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(axes, axes)[:3, :3] * np.array(image.GetSpacing())[:3]
    lps[: len(direction), : len(direction)] = direction
    lps[: len(direction), 3] = image.GetOrigin()[:3]
    return voxels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
