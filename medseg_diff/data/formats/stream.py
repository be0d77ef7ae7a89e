"""The bytes of a file in pieces, decompressed where it is packed, checked to their end and never more than promised."""

import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from medseg_diff.errors import ImageError

LARGEST_FILE = 4 * 2**30  # bytes
LARGEST_RATIO = 250  # unpacked / packed; an honest mask reaches it, but not at LARGE bytes
LARGE = 128 * 2**20
SLACK = 2**16  # bytes that may follow what was asked for
CHUNK = 2**18
GZIP, ZLIB = 31, 15  # zlib's numbers for what wraps a deflated stream
GZIP_MAGIC = b"\x1f\x8b"
SMALL_MEMBERS, SMALL = 64, 512  # a .gz of many parts that hold next to nothing only costs time

Packing = Literal["", "gzip", "zlib"]
Content = Callable[[int], Iterator[bytes | bytearray]]  # a number of bytes → pieces of so many, the last one shorter
AGAIN = "copy it again from its source"


def check_regular(path: Path) -> int:
    """The size of a file in bytes. A device or pipe would never end; a folder is no file.

    Raises: ImageError where it is no regular file, empty or far too large; OSError where it cannot be looked at.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise ImageError("is not a regular file", fix="give the path of an image")
    if state.st_size == 0:
        raise ImageError("is empty", fix=AGAIN)
    if state.st_size > LARGEST_FILE:
        raise ImageError("is larger than 4 GiB", fix="crop or downsample it")
    return state.st_size


def first_bytes(path: Path, count: int = 2**12) -> bytes:
    """The beginning of a file's content, decompressed where it is a .gz. Raises: ImageError, OSError."""
    with path.open("rb") as file:
        content = file.read(2**16)
    if not content.startswith(GZIP_MAGIC):
        return content[:count]
    try:
        return zlib.decompressobj(wbits=GZIP).decompress(content, count)
    except zlib.error:
        raise ImageError("is a damaged .gz", fix=AGAIN) from None


def packing_of(path: Path) -> Packing:
    """Whether a file is a .gz, by its first two bytes. Raises: OSError."""
    with path.open("rb") as file:
        return "gzip" if file.read(2) == GZIP_MAGIC else ""


def content_of(
    path: Path, expected: int, *, start: int = 0, skip: int = 0, packing: Packing = "", tail: bool = False
) -> Content:
    """How to read `expected` bytes of content, from byte `start` of the file on, in pieces; the first `skip` are left out.

    What is packed is read to its end, so that its check sum is verified. `tail`: a format that allows a few more bytes
    behind them; otherwise only zeros may follow. Nothing of it counts before the last piece has come and no error.
    Raises: ImageError where there are fewer, where more follow, where a check sum is wrong, or where a small file would
    unpack to far more than it should; OSError.
    """
    here = check_regular(path) - start
    if expected > LARGE and expected > LARGEST_RATIO * max(on_disk(path), 1):
        raise ImageError(
            f"would unpack to {expected / max(on_disk(path), 1):.0f} times its size",
            fix="unpack it yourself if you trust it",
        )
    if not packing and here < expected:
        raise cut_off(here, expected)

    def pieces(size: int) -> Iterator[bytes | bytearray]:
        waiting, surplus, came = bytearray(), b"", 0
        with path.open("rb") as file:
            file.seek(start)
            for chunk in _unpacked(file, expected, packing) if packing else _plain(file, expected):
                waiting += chunk[max(0, skip - came) : max(0, expected - came)]
                surplus += chunk[max(0, expected - came) :]
                came += len(chunk)
                while len(waiting) >= size:
                    yield waiting[:size]
                    del waiting[:size]
        if came < expected:
            raise cut_off(came, expected)
        if len(surplus) > SLACK or (not tail and surplus.strip(b"\0")):
            raise ImageError(
                "holds more bytes than its header promises", fix="save it again with the tool that made it"
            )
        if waiting:
            yield waiting

    return pieces


def on_disk(path: Path) -> int:
    """What a file takes on the disk: less than its size where it has holes, which unpack to zeros as a .gz may."""
    state = path.stat()
    return min(state.st_size, getattr(state, "st_blocks", state.st_size) * 512 + os.sysconf("SC_PAGE_SIZE"))


def cut_off(here: int, expected: int) -> ImageError:
    """What is said of a file that is shorter than it says."""
    return ImageError(f"is cut off: {here:,} bytes of the {expected:,} that its header promises", fix=AGAIN)


def _plain(file: BinaryIO, expected: int) -> Iterator[bytes]:
    """The content of a file as it stands, chunk by chunk, to its end or a little beyond `expected`."""
    left = expected + SLACK + 1
    while chunk := file.read(min(CHUNK, left)):
        left -= len(chunk)
        yield chunk


def _unpacked(file: BinaryIO, expected: int, packing: Packing) -> Iterator[bytes]:
    """The content of a packed stream, chunk by chunk, to its end or a little beyond `expected`. Raises: ImageError."""
    wrapping, kind = (GZIP, "a .gz") if packing == "gzip" else (ZLIB, "a packed image")
    member, count, small, waiting = zlib.decompressobj(wbits=wrapping), 0, 0, b""
    begun, here = False, 0
    try:
        while count <= expected + SLACK:
            if not waiting:
                waiting = file.read(CHUNK)
                if not waiting:
                    break
            if member.eof:  # a .gz may have several members, and zeros after them
                waiting = waiting.lstrip(b"\0")
                if not waiting:
                    continue
                small += here < SMALL
                if wrapping == ZLIB or small > SMALL_MEMBERS:
                    raise ImageError("holds more bytes than its header promises", fix=AGAIN)
                member, begun, here = zlib.decompressobj(wbits=wrapping), False, 0
            begun = True
            chunk = member.decompress(waiting, CHUNK * 4)
            waiting = member.unused_data if member.eof else member.unconsumed_tail
            count, here = count + len(chunk), here + len(chunk)
            yield chunk
    except zlib.error:
        raise ImageError(f"is {kind} that is damaged (its checksum is wrong)", fix=AGAIN) from None
    if begun and not member.eof and count <= expected + SLACK:
        raise ImageError(f"is {kind} that is cut off", fix=AGAIN)
