"""How much memory an image will take, said before it is read."""

import math
from contextlib import suppress
from pathlib import Path

from medseg_diff.data.formats import nifti
from medseg_diff.data.formats.stream import check_regular, first_bytes
from medseg_diff.errors import MedsegError

VOXEL_BYTES = 4  # float32, as the reader gives it
OTHERS = 4  # of the bytes on the disk: 8-bit or packed 16-bit numbers become 32-bit ones


def size_in_memory(path: Path) -> int:
    """Bytes of the voxels once they are read: by the header of a NIfTI file, roughly for other files and DICOM folders; 0
    where that does not say, which the reader will tell."""
    with suppress(MedsegError, OSError):
        if path.is_dir():
            return OTHERS * sum(part.stat().st_size for part in path.iterdir() if part.is_file())
        check_regular(path)
        head = first_bytes(path)
        if not nifti.is_nifti(head):
            return OTHERS * path.stat().st_size
        return VOXEL_BYTES * math.prod(nifti.dimensions(nifti.parse_header(head)))
    return 0
