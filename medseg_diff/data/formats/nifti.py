"""NIfTI bytes → voxels and affine, trusting nothing that the file says about itself.

nibabel knows the header's fields and conventions; sizes, limits and the check sum of a .gz are checked here, because
the libraries accept about half of all damaged files in silence.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from medseg_diff.data.formats.stored import Stored, check_count, in_file
from medseg_diff.data.formats.stream import AGAIN, content_of, first_bytes, packing_of
from medseg_diff.data.geometry import nifti_affine
from medseg_diff.errors import ImageError

HEADER_BYTES = {348: 352, 540: 544}  # size of the header → smallest offset of the voxels behind it
FARTHEST = 2**24  # bytes of extensions before the voxels

READABLE = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}  # NIfTI codes of real integers and floats
UNREADABLE = {1: "one bit per voxel", 32: "complex", 128: "RGB", 1536: "128-bit", 1792: "complex", 2304: "RGBA"}


def is_nifti(head: bytes) -> bool:
    """Whether the first bytes of a file, decompressed, are a NIfTI header."""
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")


def read_nifti(path: Path) -> Stored:
    """The voxels of one file, or of an .hdr/.img pair, and where they lie. Raises: ImageError without its place, OSError."""
    header = parse_header(first_bytes(path))
    shape, dtype, offset = _layout(header)
    if bytes(header["magic"]).startswith(b"ni"):
        path = image_of_pair(path)
    size = offset + math.prod(shape) * dtype.itemsize
    content = content_of(path, size, skip=offset, packing=packing_of(path))
    try:
        affine, code, warnings = nifti_affine(header, shape)
    except ValueError as error:
        raise ImageError(str(error), fix="set its sform with the tool that made the file") from None
    slope, intercept = _scaling(header, warnings)
    return Stored(in_file(content, dtype), shape, affine, tuple(warnings), slope, intercept, code)


def parse_header(head: bytes) -> Any:
    """A nibabel header of the first bytes, its fields as they stand. Raises: ImageError where it is cut or absurd."""
    from nibabel import nifti1, nifti2

    kind = nifti1.Nifti1Header if head[344:347] in (b"n+1", b"ni1") else nifti2.Nifti2Header
    length = 348 if kind is nifti1.Nifti1Header else 540
    if len(head) < length:
        raise ImageError("is cut off within its header", fix=AGAIN)
    try:
        header = kind(head[:length], check=False)
    except Exception as error:  # nibabel has several ways to say that a header is absurd
        raise ImageError(f"has a damaged header ({error})", fix=AGAIN) from None
    if int(header["sizeof_hdr"]) != length:
        raise ImageError("has a damaged header (its length is wrong)", fix=AGAIN)
    return header


def dimensions(header: Any) -> tuple[int, ...]:
    """The shape that a header states. Raises: ImageError where it cannot be one."""
    dim = [int(n) for n in header["dim"]]
    if not 2 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise ImageError(f"states impossible dimensions {dim}", fix=AGAIN)
    shape = tuple(dim[1 : dim[0] + 1])
    check_count(shape)
    return shape


def _layout(header: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and offset of the voxels, each believed only within limits."""
    shape = dimensions(header)
    code = int(header["datatype"])
    if code not in READABLE:
        kind = UNREADABLE.get(code, f"of unknown type {code}")
        raise ImageError(f"its voxels are {kind}, not plain numbers", fix="convert it to one number per voxel")
    dtype = header.get_data_dtype()
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        raise ImageError(f"states type {dtype.name} with {int(header['bitpix'])} bits", fix="copy it again")
    offset = float(header["vox_offset"])
    smallest = HEADER_BYTES[int(header["sizeof_hdr"])] if bytes(header["magic"]).startswith(b"n+") else 0
    if not smallest <= offset <= FARTHEST or offset != int(offset):
        raise ImageError(f"states that its voxels begin at byte {offset:g}", fix=AGAIN)
    return shape, dtype, int(offset)


def _scaling(header: Any, warnings: list[str]) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 means none, by the standard."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isnan(slope) and np.isnan(intercept):
        warnings.append("slope and intercept are not numbers and are ignored")
        slope = 0.0
    if not (np.isfinite(slope) and (slope == 0 or np.isfinite(intercept))):
        raise ImageError(f"has slope {slope} and intercept {intercept}", fix=AGAIN)
    if slope == 0 and np.isfinite(intercept) and intercept != 0:
        warnings.append(f"a slope of 0 means no scaling, so the intercept {intercept:g} is ignored")
    return (1.0, 0.0) if slope == 0 else (slope, intercept)


def image_of_pair(path: Path) -> Path:
    """The .img beside an .hdr. Raises: ImageError where it is missing."""
    name = path.name.removesuffix(".gz")
    for candidate in (f"{name.removesuffix('.hdr').removesuffix('.img')}.img{end}" for end in ("", ".gz")):
        if (image := path.with_name(candidate)).is_file():
            return image
    raise ImageError("is a header whose .img is missing", fix="put the .img beside it")
