"""Which scan a case is: digests of its files and, for one that was saved anew, of its voxels; none passes for another."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from medseg_diff.data.formats import dicom_mgh, metaimage_nrrd, nifti
from medseg_diff.data.formats.stream import check_regular, first_bytes
from medseg_diff.data.reading import CaseImages, read_case
from medseg_diff.data.tables.case import Case
from medseg_diff.errors import MedsegError
from medseg_diff.files import sha256_of

PLACES = 4  # of a millimetre: what an affine keeps through another program's float32


def read_inputs(
    case: Case, channels: Sequence[str], *, resample_to: str | None = None
) -> tuple[CaseImages, dict[str, Any]]:
    """The channels of a case as `read_case` reads them, without references; and of each the digest of its file and that
    of its voxels with their affine. Raises: as `read_case`."""
    files = _of_files(case, channels)  # first: where one is replaced while it is read, its voxels still tell
    images = read_case(case, channels, reference=False, resample_to=resample_to)
    return images, {
        channel: {"file_sha256": files[channel], "voxels_sha256": _of_voxels(voxels, images.affine)}
        for channel, voxels in zip(images.channels, images.image, strict=True)
    }


def is_same_scan(
    case: Case, channels: Sequence[str], known: Mapping[str, Any], *, resample_to: str | None = None
) -> bool:
    """Whether these channels are those whose digests are `known`; voxels are read only where a file has other bytes.

    Raises: as `read_case`.
    """
    files = _of_files(case, channels)
    if files.keys() != known.keys():
        return False
    if None not in files.values() and files == _column(known, "file_sha256"):
        return True
    _, now = read_inputs(case, channels, resample_to=resample_to)
    return _column(now, "voxels_sha256") == _column(known, "voxels_sha256")


def _column(inputs: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {channel: each.get(key) for channel, each in inputs.items() if isinstance(each, dict)}


def _of_files(case: Case, channels: Sequence[str]) -> dict[str, str | None]:
    """The digest of each channel's file; None where one is not there or cannot be read, which the reader says better."""
    with suppress(MedsegError, OSError, KeyError, ValueError):
        if case.stack is None:
            return {channel: digest_of_image(case.images[channel]) for channel in channels}
        whole = digest_of_image(case.stack)
        places = {channel: case.stack_channels.index(channel) for channel in channels}
        return {channel: _joined([whole, f"volume {place}"]) for channel, place in places.items()}
    return dict.fromkeys(channels)


def digest_of_image(path: Path) -> str:
    """Of a file's bytes; where an image lies in several files, of their digests. Raises: ImageError, OSError."""
    parts = parts_of(path)
    for part in parts:
        check_regular(part)
    digests = [sha256_of(part) for part in parts]
    return digests[0] if len(digests) == 1 else _joined(digests)


def _joined(texts: Sequence[str]) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def parts_of(path: Path) -> list[Path]:
    """The files of one image: a DICOM series by their names, header and voxels, or one. Raises: ImageError, OSError."""
    if path.is_dir():
        return [path / name for name in sorted(dicom_mgh.dicom_files(path)[0])]
    check_regular(path)
    head = first_bytes(path)
    if nifti.is_nifti(head) and bytes(nifti.parse_header(head)["magic"]).startswith(b"ni"):
        return [path, nifti.image_of_pair(path)]
    return metaimage_nrrd.metaimage_files(path) if metaimage_nrrd.is_metaimage(head) else [path]


def _of_voxels(voxels: np.ndarray, affine: np.ndarray) -> str:
    """Of voxels [X, Y, Z] and where they lie."""
    place = np.round(affine, PLACES).astype("<f8") + 0.0  # no negative zero
    digest = hashlib.sha256(f"{voxels.shape}".encode() + place.tobytes())
    digest.update(np.ascontiguousarray(voxels, dtype="<f4").data)
    return digest.hexdigest()
