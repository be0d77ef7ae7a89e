"""What `volume` may be in Python, a path, an image of nibabel, or one of them for each channel, as words of `--volume`."""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from medseg_diff.data.tables.inputs import stem_of
from medseg_diff.errors import ImageError, UsageError, unwritable


class SpatialImage(Protocol):
    """What nibabel loads or makes: voxels and where they lie."""

    @property
    def affine(self) -> Any: ...
    @property
    def dataobj(self) -> Any: ...
    def get_filename(self) -> str | None: ...


OneImage: TypeAlias = str | Path | SpatialImage
Volume: TypeAlias = OneImage | Mapping[str, OneImage]


class Words(NamedTuple):
    """The words of `--volume` that mean a case, and whether its images came from memory."""

    words: tuple[str, ...]
    from_memory: bool


def words_of(volume: Volume, folder: Path, name: str) -> Words:
    """One case as the command line would be given it; images from memory are written to files in `folder`, which may not be
    there yet. A case takes the name of its images' files; `name` is for images without one.

    Raises: UsageError for what is neither a path, an image of nibabel, nor a dict of them; ImageError where an image has no
    affine or its file cannot be read any more; EnvironmentFault where there is no room for a temporary file.
    """
    if isinstance(volume, str | Path):
        return Words((_as_path(volume),), False)
    if not isinstance(volume, Mapping):
        return Words((str(_written(volume, folder, name)),), True)
    if not volume:
        raise UsageError("a volume is an empty dict", fix="give each channel its image, as in {'t1': 't1.nii.gz'}")
    words = []
    for channel, image in volume.items():
        stored = isinstance(image, str | Path)
        path = _as_path(image) if stored else _written(image, folder / str(channel), name)  # type: ignore[arg-type]
        words.append(f"{channel}={path}")
    return Words(tuple(words), not all(isinstance(image, str | Path) for image in volume.values()))


def several(volume: "Volume | Sequence[Volume]") -> bool:
    """Whether these are several cases, however many."""
    return isinstance(volume, list | tuple)


def _as_path(path: str | Path) -> str:
    return str(path.expanduser() if isinstance(path, Path) else path)


def _written(image: SpatialImage, folder: Path, name: str) -> Path:
    """Where an image was written, under the name of its own file and that file's folder."""
    from nibabel.arrayproxy import is_proxy
    from nibabel.nifti1 import Nifti1Image, Nifti1Pair
    from nibabel.spatialimages import SpatialImage as Image

    if not isinstance(image, Image):
        fix = "give a path, an image of nibabel, or a dict of channel → either"
        if isinstance(image, np.ndarray):
            fix = "give it an affine: nibabel.Nifti1Image(array, affine)"
        raise UsageError(f"a volume is of type {type(image).__name__}", fix=fix)
    file = image.get_filename()
    own = Path(file).absolute() if file else None
    stem = stem_of(own) or own.name if own else name
    if image.affine is None:
        raise ImageError("has no affine", fix="make it with nibabel.Nifti1Image(array, affine)", case=stem)
    try:
        if own and own.suffix == ".gz" and is_proxy(image.dataobj):
            _check_whole(own)
        voxels = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        fix = "load it again from an intact file"
        raise ImageError(f"cannot be read ({type(error).__name__})", fix=fix, file=own.name if own else None) from None
    if voxels.dtype.kind == "b" or (voxels.dtype.kind in "iu" and voxels.dtype.itemsize > 2):
        voxels = voxels.astype(np.float64)  # NIfTI holds no bool and nibabel writes no int64
    header = image.header if isinstance(image, Nifti1Pair) else None  # says which of its affines hold
    written = Nifti1Image(voxels, image.affine, header, dtype=voxels.dtype)
    written.header.set_slope_inter(1.0, 0.0)
    path = folder / (own.parent.name if own else "memory") / f"{stem}.nii"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written.to_filename(path)
    except OSError as error:
        raise unwritable(error, path.name, fix="set TMPDIR to a folder with more room") from None
    return path


def _check_whole(archive: Path) -> None:
    """Read it to its end: nibabel stops before the checksum. Raises: OSError, EOFError, zlib.error."""
    with gzip.open(archive) as file:
        while file.read(1 << 20):
            pass
