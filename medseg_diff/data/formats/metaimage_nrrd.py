"""MetaImage and NRRD: a header of text lines, then voxels, in the same file or in one beside it.

The fields are those of https://itk.org/Wiki/MetaIO/Documentation and https://teem.sourceforge.net/nrrd/format.html.
Read here rather than by SimpleITK, which takes a file that is cut off by a byte or followed by others without a word.
"""

import math
from pathlib import Path

import numpy as np

from medseg_diff.data.formats.stored import Stored, check_count, in_file
from medseg_diff.data.formats.stream import AGAIN, Packing, content_of, first_bytes
from medseg_diff.errors import ImageError

LONGEST_HEADER = 2**16  # bytes
CONVERT = "convert it to NIfTI"
META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
TO_RAS = {
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
}  # fmt: skip


def is_metaimage(head: bytes) -> bool:
    """Whether the first bytes of a file are a MetaImage header."""
    return head.startswith((b"ObjectType", b"NDims"))


def metaimage_files(path: Path) -> list[Path]:
    """The file itself and, where its voxels lie in another, that one. Raises: ImageError without its place, OSError."""
    data = _meta_fields(_header(path))[0]["ElementDataFile"]
    return [path] if data.lower() == "local" else [path, _beside(path, data)]


def read_metaimage(path: Path) -> Stored:
    """An .mha, or an .mhd with its file of voxels beside it. Raises: ImageError without its place, OSError."""
    fields, end = _meta_fields(_header(path))
    axes = _whole(fields, "NDims")[0]
    shape = _shape(_whole(fields, "DimSize"), axes)
    if _whole(fields, "ElementNumberOfChannels", "1") != [1]:
        raise ImageError("has several numbers per voxel", fix="split it into one file per channel")
    kind = META_TYPES.get(fields.get("ElementType", ""))
    if kind is None:
        raise _unsupported("ElementType", fields.get("ElementType", ""))
    if fields.get("BinaryData", "True").lower() != "true":
        raise _unsupported("BinaryData", "False")
    big = _first(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB", default="False").lower() == "true"
    data = fields["ElementDataFile"]
    local = data.lower() == "local"
    source, start = (path, end) if local else (_beside(path, data), _whole(fields, "HeaderSize", "0")[0])
    packed = fields.get("CompressedData", "False").lower() == "true"
    if start < 0:
        raise _unsupported("HeaderSize", str(start))
    dtype = np.dtype((">" if big else "<") + kind)
    direction = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), np.eye(axes).ravel())
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), np.ones(axes))
    origin = _numbers(fields, ("Offset", "Position", "Origin"), np.zeros(axes))
    if direction.size != axes * axes or spacing.size != axes or origin.size != axes:
        raise ImageError("has a damaged header (its geometry is incomplete)", fix=AGAIN)
    content = content_of(source, math.prod(shape) * dtype.itemsize, start=start, packing="zlib" if packed else "")
    steps = direction.reshape(axes, axes) * spacing[:, None]  # a row of the matrix is the direction of one axis
    return Stored(in_file(content, dtype), shape, _affine(steps, origin, (-1, -1, 1)))


def read_nrrd(path: Path) -> Stored:
    """An .nrrd with its voxels in the same file. Raises: ImageError without its place, OSError."""
    fields, end = _nrrd_fields(_header(path))
    axes = _whole(fields, "dimension")[0]
    shape = _shape(_whole(fields, "sizes"), axes)
    kind = next((code for code, names in NRRD_TYPES.items() if fields.get("type", "").lower() in names), None)
    if kind is None:
        raise _unsupported("type", fields.get("type", ""))
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise _unsupported("encoding", encoding)
    for name in ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(name, "0") != "0":
            raise _unsupported(name, fields[name])
    endian = fields.get("endian", "little" if kind[1] == "1" else "").lower()
    if endian not in ("little", "big"):
        raise _unsupported("endian", endian)
    dtype = np.dtype(("<" if endian == "little" else ">") + kind)
    space = fields.get("space", "").lower()
    if "space directions" not in fields or space not in TO_RAS:
        raise ImageError("has no usable orientation", fix=f"{CONVERT} with the tool that made it")
    words = fields["space directions"].split()
    vectors = [_vector(word) for word in words if word.lower() != "none"]
    origin = _vector(fields.get("space origin", "(0,0,0)"))
    if len(words) != axes or len(vectors) != 3 or any(len(v) != 3 for v in [*vectors, origin]):
        raise ImageError(f"has the axes {fields['space directions']}, not three spatial axes", fix=CONVERT)
    if words.index(next(w for w in words if w.lower() != "none")) > 0:
        raise ImageError("has several numbers per voxel", fix="split it into one file per channel")
    packing: Packing = "" if encoding == "raw" else "gzip"
    content = content_of(path, math.prod(shape) * dtype.itemsize, start=end, packing=packing)
    return Stored(in_file(content, dtype), shape, _affine(np.array(vectors), np.array(origin), TO_RAS[space]))


def _affine(steps: np.ndarray, origin: np.ndarray, to_ras: tuple[int, int, int]) -> np.ndarray:
    """[4, 4] in RAS; `steps` [N, N]: each row the step in mm along one axis of the array."""
    n = min(len(steps), 3)
    affine = np.eye(4)
    affine[:n, :n], affine[:n, 3] = steps[:n, :n].T, origin[:n]
    return np.asarray(np.diag([*to_ras, 1.0]) @ affine)


def _header(path: Path) -> bytes:
    return first_bytes(path, LONGEST_HEADER)


def _meta_fields(head: bytes) -> tuple[dict[str, str], int]:
    """The fields up to ElementDataFile, which is the last, and where the bytes behind it begin."""
    fields, place = {}, 0
    while (end := head.find(b"\n", place)) >= 0:
        name, equals, value = head[place:end].decode("latin-1").partition("=")
        place = end + 1
        if not equals or name.strip() in fields:
            raise ImageError(f"has a damaged header (at {name[:40]!a})", fix=AGAIN)
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return fields, place
    raise ImageError("is cut off within its header", fix=AGAIN)


def _nrrd_fields(head: bytes) -> tuple[dict[str, str], int]:
    """The fields up to the blank line, and where the bytes behind it begin."""
    fields: dict[str, str] = {}
    place = head.find(b"\n") + 1
    while (end := head.find(b"\n", place)) >= 0:
        line = head[place:end].decode("latin-1").rstrip("\r")
        place = end + 1
        if not line:
            return fields, place
        name, colon, value = line.partition(":")
        if line.startswith("#") or value.startswith("="):  # a comment; a key of someone's own
            continue
        if not colon or name.lower() in fields:
            raise ImageError(f"has a damaged header (at {line[:40]!a})", fix=AGAIN)
        fields[name.lower()] = value.strip()
    raise ImageError("is cut off within its header, or its voxels are in another file", fix=CONVERT)


def _shape(sizes: list[int], axes: int) -> tuple[int, ...]:
    if not 2 <= axes <= 5 or len(sizes) != axes or min(sizes) < 1:
        raise ImageError(f"states impossible dimensions {sizes[:8]}", fix=AGAIN)
    check_count(tuple(sizes))
    return tuple(sizes)


def _beside(path: Path, name: str) -> Path:
    """A file that a header names: in the same folder only, and not by way of a link out of it. Raises: ImageError."""
    if not name or "/" in name or "\\" in name or name in (".", "..") or not name.isprintable():
        raise ImageError(f"says that its voxels are in {name[:60]!a}", fix="put both files into one folder")
    beside = path.with_name(name)
    if not beside.is_file() or beside.resolve().parent != path.resolve().parent:
        raise ImageError(f"says that its voxels are in {name[:60]}, which is not there", fix="put it beside the header")
    return beside


def _first(fields: dict[str, str], *names: str, default: str) -> str:
    return next((fields[name] for name in names if name in fields), default)


def _whole(fields: dict[str, str], name: str, default: str = "") -> list[int]:
    """Whole numbers, at least one. Raises: ImageError."""
    try:
        found = [int(word) for word in fields.get(name, default)[:200].split()]
    except ValueError:
        found = []
    if not found:
        raise ImageError(f"has a damaged header (its {name} is {fields.get(name, 'missing')[:40]!a})", fix=AGAIN)
    return found


def _numbers(fields: dict[str, str], names: tuple[str, ...], default: np.ndarray) -> np.ndarray:
    text = _first(fields, *names, default="")
    try:
        return np.array([float(word) for word in text.split()]) if text else default
    except ValueError:
        raise ImageError(f"has a damaged header (its {names[0]} is {text[:40]!a})", fix=AGAIN) from None


def _vector(text: str) -> list[float]:
    """`(1,0,0)` as numbers. Raises: ImageError."""
    try:
        return [float(word) for word in text.strip().removeprefix("(").removesuffix(")").split(",")]
    except ValueError:
        raise ImageError(f"has a damaged header (at {text[:40]!a})", fix=AGAIN) from None


def _unsupported(name: str, value: str) -> ImageError:
    return ImageError(f"has {name} {value[:40]!a}, which is not supported", fix=CONVERT)
