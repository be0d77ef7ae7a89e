"""Results on the input's own grid: a fresh NIfTI-1 header that carries no text over, whole or not at all."""

import zlib
from pathlib import Path

import numpy as np

from medseg_diff import files
from medseg_diff.data.geometry import corner_distance, is_usable, spacing_of

WRITABLE = ("uint8", "int16", "float32")
HEADER_BYTES = 352  # NIfTI-1's 348, and four that say that nothing follows
# A quaternion cannot say a shear, and near half a turn its float32 numbers lose small angles: then the sform alone
# speaks, rather than two affines that differ.
QFORM_MM = 0.01
# Level 1: on the float maps of a whole volume level 6 takes several times as long for a few per cent. Where the background
# is 0, as in maps, runs of equal bytes are all that can be packed: to look for no more takes half the time and, of maps of a
# network, a little less room.
COMPRESSION = 1


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray, *, code: int = 1) -> None:
    """Write voxels [X, Y, Z] (uint8, int16 or float32) placed by `affine` [4, 4], RAS millimetres, as .nii or .nii.gz.

    `code` is NIfTI's of the space: 1 the scanner's, 2 another scan's, 3 Talairach, 4 MNI 152, 5 another template's.

    The same voxels give the same bytes. The affine is kept as sform to float32, and as qform where that can say the same.
    Raises: EnvironmentFault where the file cannot be written.
    """
    content = nifti_bytes(voxels, affine, code=code)
    files.write_bytes(path, packed(content, voxels) if path.name.endswith(".gz") else content)


def packed(content: bytes, voxels: np.ndarray) -> bytes:
    """A NIfTI file of these voxels as .gz, without name or time."""
    strategy = zlib.Z_DEFAULT_STRATEGY if voxels.flat[0] else zlib.Z_RLE
    packer = zlib.compressobj(COMPRESSION, wbits=31, strategy=strategy)
    return packer.compress(content) + packer.flush()


def nifti_bytes(
    voxels: np.ndarray, affine: np.ndarray, *, code: int = 1, slope: float = 1.0, offset: float = 0.0
) -> bytes:
    """A NIfTI-1 file whose values are `slope` times the voxels plus `offset`; the rest as `write_volume`."""
    from nibabel.nifti1 import Nifti1Header

    assert voxels.dtype.name in WRITABLE, voxels.dtype
    assert voxels.ndim == 3, voxels.shape
    assert is_usable(affine)
    assert voxels.dtype.kind != "f" or np.isfinite(voxels).all()
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(voxels.dtype.newbyteorder("<"))
    header.set_data_shape(voxels.shape)
    header.set_zooms(spacing_of(affine))
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=code)
    header.set_qform(affine, code=code, strip_shears=True)
    if corner_distance(header.get_qform(), affine, voxels.shape) > QFORM_MM:
        header["qform_code"] = 0
    header.set_slope_inter(slope, offset)
    header["magic"] = b"n+1"
    header["vox_offset"] = HEADER_BYTES
    values = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False).tobytes("F")
    return bytes(header.binaryblock) + b"\0\0\0\0" + values
