"""NIfTI bytes → voxels and affine, trusting nothing that the file says about itself.

nibabel knows the header's fields and conventions; sizes, limits and the check sum of a .gz are checked here, because
the libraries accept about half of all damaged files in silence.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from medseg_diff.data.geometry import nifti_affine
from medseg_diff.errors import ImageError

MOST_VOXELS = 2**29  # 0.25 mm over a whole head is 0.4 of it
LARGEST_RATIO = 250  # decompressed / compressed; an honest mask reaches it, but not at LARGE bytes
LARGE = 128 * 2**20
SLACK = 2**16  # bytes that may follow the voxels
GZIP = b"\x1f\x8b"
HEADER_BYTES = {348: 352, 540: 544}  # size of the header → smallest offset of the voxels behind it

READABLE = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}  # NIfTI codes of real integers and floats
UNREADABLE = {1: "one bit a voxel", 32: "complex", 128: "RGB", 1536: "128-bit", 1792: "complex", 2304: "RGBA"}


def is_nifti(head: bytes) -> bool:
    """Whether the first bytes of a file, decompressed, are a NIfTI header."""
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")


def first_bytes(content: bytes, count: int = 1024) -> bytes:
    """The beginning of a file's content, decompressed where it is a .gz. Raises: ImageError."""
    if not content.startswith(GZIP):
        return content[:count]
    try:
        return zlib.decompressobj(wbits=31).decompress(content[: 2**16], count)
    except zlib.error:
        raise ImageError("is a damaged .gz", fix="copy it again from its source") from None


def read_nifti(content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Voxels as float32 in the shape of the header, affine [4, 4] in mm, warnings.

    `path` serves to find the other half of an .hdr/.img pair. Raises: ImageError, without its place.
    """
    head = first_bytes(content)
    header = parse_header(head)
    shape, dtype, offset = _layout(header)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if bytes(header["magic"]).startswith(b"ni"):
        content, offset = _image_of_pair(path), max(0, int(header["vox_offset"]))
    content = inflate(content, offset + size) if content.startswith(GZIP) else content
    if len(content) < offset + size:
        raise ImageError(
            f"is cut off: {len(content):,} bytes of the {offset + size:,} that its header promises",
            fix="copy it again from its source",
        )
    stored = np.frombuffer(content, dtype, count=size // dtype.itemsize, offset=offset).reshape(shape, order="F")
    try:
        affine, warnings = nifti_affine(header, shape)
    except ValueError as error:
        raise ImageError(str(error), fix="set its sform with the tool that made the file") from None
    return _scaled(stored, header, warnings), affine, warnings


def parse_header(head: bytes) -> Any:
    """A nibabel header of the first bytes, its fields as they stand. Raises: ImageError where it is cut or absurd."""
    from nibabel import nifti1, nifti2

    kind = nifti1.Nifti1Header if head[344:347] in (b"n+1", b"ni1") else nifti2.Nifti2Header
    length = 348 if kind is nifti1.Nifti1Header else 540
    if len(head) < length:
        raise ImageError("is cut off within its header", fix="copy it again from its source")
    try:
        header = kind(head[:length], check=False)
    except Exception as error:  # nibabel has several ways to say that a header is absurd
        raise ImageError(f"has a damaged header ({error})", fix="copy it again from its source") from None
    if int(header["sizeof_hdr"]) != length:
        raise ImageError("has a damaged header (its length is wrong)", fix="copy it again from its source")
    return header


def dimensions(header: Any) -> tuple[int, ...]:
    """The shape that a header states. Raises: ImageError where it cannot be one."""
    dim = [int(n) for n in header["dim"]]
    if not 2 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise ImageError(f"states impossible dimensions {dim}", fix="copy it again from its source")
    shape = tuple(dim[1 : dim[0] + 1])
    if int(np.prod(shape, dtype=object)) > MOST_VOXELS:
        text = "×".join(map(str, shape))
        raise ImageError(f"states {text} voxels, more than a head can have", fix="crop or downsample it")
    return shape


def inflate(content: bytes, expected: int) -> bytes:
    """Decompress a .gz to its end, so that its check sums are verified; `expected` bounds what comes out.

    Raises: ImageError where it is damaged, cut off, or holds far more than it should.
    """
    if expected > LARGE and expected > LARGEST_RATIO * len(content):
        raise ImageError(
            f"would unpack {expected / len(content):.0f} times its size", fix="unpack it with gunzip if you trust it"
        )
    parts: list[bytes] = []
    room = expected + SLACK
    try:
        while content.rstrip(b"\0"):  # a .gz may have several members, and zeros after them
            member = zlib.decompressobj(wbits=31)
            parts.append(member.decompress(content, room))
            room -= len(parts[-1])
            if not member.eof:
                break
            content = member.unused_data
    except zlib.error:
        raise ImageError("is a damaged .gz (its check sum is wrong)", fix="copy it again from its source") from None
    if not member.eof and room > 0:
        raise ImageError("is a .gz that is cut off", fix="copy it again from its source")
    if not member.eof:
        raise ImageError("holds more bytes than its header promises", fix="save it again with the tool that made it")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _layout(header: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and offset of the voxels, each believed only within limits."""
    shape = dimensions(header)
    code = int(header["datatype"])
    if code not in READABLE:
        kind = UNREADABLE.get(code, f"of unknown type {code}")
        raise ImageError(f"its voxels are {kind}, not plain numbers", fix="convert it to one number a voxel")
    dtype = header.get_data_dtype()
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        raise ImageError(f"states type {dtype.name} with {int(header['bitpix'])} bits", fix="copy it again")
    offset = float(header["vox_offset"])
    smallest = HEADER_BYTES[int(header["sizeof_hdr"])] if bytes(header["magic"]).startswith(b"n+") else 0
    if not smallest <= offset <= 2**24 or offset != int(offset):
        raise ImageError(f"states that its voxels begin at byte {offset:g}", fix="copy it again from its source")
    return shape, dtype, int(offset)


def _scaled(stored: np.ndarray, header: Any, warnings: list[str]) -> np.ndarray:
    """Stored numbers · slope + intercept as float32; a slope of 0 means none, by the standard."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isnan(slope) and np.isnan(intercept):
        warnings.append("slope and intercept are not numbers and are ignored")
        slope = 0.0
    if not (np.isfinite(slope) and (slope == 0 or np.isfinite(intercept))):
        raise ImageError(f"has slope {slope} and intercept {intercept}", fix="copy it again from its source")
    if slope == 0 or (slope, intercept) == (1.0, 0.0):
        return np.ascontiguousarray(stored, dtype=np.float32)
    with np.errstate(over="ignore"):  # too large for float32 is found as not finite
        return np.ascontiguousarray(stored.astype(np.float64) * slope + intercept, dtype=np.float32)


def _image_of_pair(path: Path) -> bytes:
    """The .img beside an .hdr."""
    name = path.name.removesuffix(".gz")
    for candidate in (f"{name.removesuffix('.hdr').removesuffix('.img')}.img{end}" for end in ("", ".gz")):
        if (image := path.with_name(candidate)).is_file():
            return image.read_bytes()
    raise ImageError("is a header whose .img is missing", fix="put the .img beside it")
