"""One strict reader: a file → checked voxels and geometry, or an error that says what to do."""

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medseg_diff.data import foreign, geometry, nifti
from medseg_diff.data.geometry import Volume
from medseg_diff.data.manifest import Case
from medseg_diff.errors import ImageError, ManifestError, MedsegError, raise_all

__all__ = ["CaseImages", "Volume", "count_volumes", "read_case", "read_labels", "read_volume", "read_volumes"]

LARGEST_FILE = 4 * 2**30  # bytes
LARGEST_LABEL = np.iinfo(np.int16).max
INTEGRAL = 1e-3  # how far a label may lie from a whole number: what a slope rounds


@dataclass(frozen=True)
class CaseImages:
    """What was read of one case, all of it on the grid of its first channel (or of `resample_to`).

    `image` float32 [C, X, Y, Z] in the order of `channels`, `reference` int16 [X, Y, Z], `raters` int16 [R, X, Y, Z];
    `affine` [4, 4] takes voxel indices to RAS millimetres.
    """

    name: str
    channels: tuple[str, ...]
    image: np.ndarray
    affine: np.ndarray
    reference: np.ndarray | None
    raters: np.ndarray | None
    warnings: tuple[str, ...]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return geometry.voxel_ml(self.affine)


def read_volume(path: Path, *, case: str | None = None, channel: str | None = None) -> Volume:
    """Read one image: finite, not constant, three-dimensional.

    Raises: ImageError with the place and the remedy.
    """
    with _Place(path, case, channel):
        return _checked(_single(_read(path)))


def read_labels(path: Path, *, case: str | None = None, channel: str | None = "seg") -> Volume:
    """Read one mask as int16; whole numbers stored as floats are accepted, and so is an empty mask.

    Raises: ImageError with the place and the remedy.
    """
    with _Place(path, case, channel):
        volume = _single(_read(path))
        _check_finite(volume.voxels)
        labels = np.rint(volume.voxels)
        apart = float(np.abs(volume.voxels - labels).max())
        if apart > INTEGRAL:
            raise ImageError(f"labels are not whole numbers (off by up to {apart:.3g})", fix="resample masks nearest")
        low, high = float(labels.min()), float(labels.max())
        if low < 0 or high > LARGEST_LABEL:
            raise ImageError(f"labels run from {low:g} to {high:g}", fix=f"use 0 to {LARGEST_LABEL}")
        return replace(volume, voxels=labels.astype(np.int16))


def read_volumes(path: Path, *, case: str | None = None) -> tuple[Volume, ...]:
    """Read one 4D image as its volumes, in the order of the last axis. Raises: ImageError."""
    with _Place(path, case, None):
        stack = _read(path)
        if stack.voxels.ndim != 4:
            raise ImageError(f"is no 4D image but {_shape(stack.voxels)}", fix="name its channel, as in t1=FILE")
        parts = [np.ascontiguousarray(stack.voxels[..., n]) for n in range(stack.voxels.shape[3])]
        return tuple(_checked(replace(stack, voxels=part)) for part in parts)


def count_volumes(path: Path) -> int:
    """How many volumes a file holds, by its header alone (1 for formats other than NIfTI). Raises: ImageError."""
    if path.is_dir():
        return 1
    with _Place(path, None, None):
        _check_regular(path)
        with path.open("rb") as file:
            head = nifti.first_bytes(file.read(2**16))
        if not nifti.is_nifti(head):
            return 1
        return int(np.prod(nifti.dimensions(nifti.parse_header(head))[3:], dtype=object))


def read_case(
    case: Case, channels: Sequence[str] | None = None, *, reference: bool = True, resample_to: str | None = None
) -> CaseImages:
    """Read the channels of a case (default: all it has) and, with `reference`, its masks, onto one grid.

    A volume that differs only in the order or direction of its axes is reoriented, and said. One on another grid is
    refused, unless `resample_to` names the channel whose grid all are brought onto (images linear, masks nearest).
    Raises: ManifestError where a channel is not there, ImageError, or Problems of all faults of the case.
    """
    channels = tuple(channels or case.channels)
    images = _read_channels(case, channels)
    masks = _read_masks(case) if reference else {}
    raise_all([found for found in (images | masks).values() if isinstance(found, MedsegError)])
    volumes = {name: found for name, found in (images | masks).items() if isinstance(found, Volume)}
    grid_of = resample_to or channels[0]
    if grid_of not in images:
        raise ManifestError(f"there is no channel {grid_of} to resample to", fix=f"use one of {', '.join(channels)}")
    warnings = [f"{name}: {text}" for name, volume in volumes.items() for text in volume.warnings]
    grid, problems = volumes[grid_of], []
    for name, volume in volumes.items():
        try:
            volumes[name] = _onto(grid, volume, name, case.name, grid_of, warnings, resample=resample_to is not None)
        except MedsegError as error:
            problems.append(error)
    raise_all(problems)
    raters = [volume.voxels for name, volume in volumes.items() if name.startswith("seg_")]
    return CaseImages(
        name=case.name,
        channels=channels,
        image=np.stack([volumes[channel].voxels for channel in channels]),
        affine=grid.affine,
        reference=volumes["seg"].voxels if "seg" in volumes else None,
        raters=np.stack(raters) if raters else None,
        warnings=tuple(warnings),
    )


def _read_channels(case: Case, channels: Sequence[str]) -> dict[str, Volume | MedsegError]:
    """Each channel, or why not."""
    for channel in channels:
        if channel not in case.channels:
            has = ", ".join(case.channels) or "none"
            raise ManifestError(
                f"has no {channel} (its channels: {has})", fix="add it or choose a recipe", case=case.name
            )
    if case.stack is None:
        return {c: _attempt(read_volume, case.images[c], case=case.name, channel=c) for c in channels}
    volumes = read_volumes(case.stack, case=case.name)
    if len(volumes) != len(case.stack_channels):
        found = f"holds {len(volumes)} volumes for {len(case.stack_channels)} channels"
        fix = f"give {', '.join(case.stack_channels)} in this order"
        raise ImageError(found, fix=fix, case=case.name, file=case.stack.name)
    stacked = dict(zip(case.stack_channels, volumes, strict=True))
    return {channel: stacked[channel] for channel in channels}


def _read_masks(case: Case) -> dict[str, Volume | MedsegError]:
    paths = {name: path for name, path in case.paths.items() if name == "seg" or name.startswith("seg_")}
    return {name: _attempt(read_labels, path, case=case.name, channel=name) for name, path in paths.items()}


def _attempt(read: Callable[..., Volume], path: Path, *, case: str, channel: str) -> Volume | MedsegError:
    try:
        return read(path, case=case, channel=channel)
    except MedsegError as error:
        return error


def _onto(
    grid: Volume, volume: Volume, name: str, case: str, grid_of: str, warnings: list[str], *, resample: bool
) -> Volume:
    """`volume` on the grid, if it may be brought there."""
    if geometry.same_grid(volume, grid):
        return volume
    turned = geometry.reoriented(volume, geometry.axes_of(grid.affine))
    if geometry.same_grid(turned, grid):
        axes = f"{geometry.axes_of(volume.affine)} to {geometry.axes_of(grid.affine)}"
        warnings.append(f"{name}: reoriented from {axes}, as {grid_of}")
        return turned
    if not resample:
        raise ImageError(
            f"not on the grid of {grid_of}: {geometry.difference(turned, grid)}",
            fix=f"pass --resample-to {grid_of}, or resample it yourself",
            case=case,
            channel=name,
        )
    warnings.append(f"{name}: resampled onto the grid of {grid_of} ({geometry.difference(turned, grid)})")
    return geometry.resampled(volume, grid, nearest=volume.voxels.dtype == np.int16)


class _Place:
    """Says of every ImageError inside which case, channel and file it is about, and of an OSError too."""

    def __init__(self, path: Path, case: str | None, channel: str | None) -> None:
        self.path, self.case, self.channel = path, case, channel

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        place = {"case": self.case, "channel": self.channel, "file": self.path.name}
        if isinstance(error, ImageError):
            raise ImageError(error.found, fix=error.fix, **place) from None
        if isinstance(error, OSError):
            reason = error.strerror or "input/output error"
            raise ImageError(f"cannot be read ({reason})", fix="check the path and its permissions", **place) from None


def _read(path: Path) -> Volume:
    """Any file as float32 voxels of any number of axes; the doors differ, what follows does not."""
    if path.is_dir():
        return Volume(*_as_volume(foreign.read_dicom_series(path)))
    _check_regular(path)
    content = path.read_bytes()
    head = nifti.first_bytes(content)
    if nifti.is_nifti(head):
        return Volume(*_as_volume(nifti.read_nifti(content, path)))
    if (read := foreign.reader_for(head, path.name)) is not None:
        return Volume(*_as_volume(read(content, path)))
    if head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        if len(head) < 348:
            raise ImageError("is cut off within its header", fix="copy it again from its source")
        raise ImageError("is an Analyze image, which has no orientation", fix="convert it to NIfTI")
    if path.name.lower().endswith(".img"):
        raise ImageError("is the voxels of a pair", fix="give its .hdr")
    raise ImageError("is no image known here", fix="give NIfTI, MGZ, MHA, NRRD or a DICOM folder")


def _as_volume(found: foreign.Found) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Give every image three axes, or four where it holds several volumes."""
    voxels, affine, warnings = found
    if voxels.ndim == 2:
        voxels, warnings = voxels[..., None], [*warnings, "a 2D image, read as a volume of one slice"]
    if voxels.ndim > 3 and voxels.shape[3:] == (1,) * (voxels.ndim - 3):
        voxels, warnings = voxels.reshape(voxels.shape[:3]), [*warnings, "4D, but of one volume"]
    return voxels, affine, tuple(warnings)


def _single(volume: Volume) -> Volume:
    if volume.voxels.ndim != 3:
        raise ImageError(
            f"holds several volumes ({_shape(volume.voxels)})",
            fix="split it, one file a volume; as channels, give the 4D file itself as --volume",
        )
    return volume


def _checked(volume: Volume) -> Volume:
    """Voxels one can compute with."""
    _check_finite(volume.voxels)
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    if low == high:
        raise ImageError(f"is constant: every voxel is {low:g}", fix="check how it was exported")
    return volume


def _check_finite(voxels: np.ndarray) -> None:
    if not np.isfinite(voxels).all():
        count = int(voxels.size - np.isfinite(voxels).sum())
        raise ImageError(f"{count:,} voxels are not finite numbers", fix="set them to the background value")


def _check_regular(path: Path) -> None:
    """A device or pipe would never end; a folder is no file."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise ImageError("is not a regular file", fix="give the path of an image")
    if state.st_size == 0:
        raise ImageError("is empty", fix="copy it again from its source")
    if state.st_size > LARGEST_FILE:
        raise ImageError("is larger than 4 GiB", fix="crop or downsample it")


def _shape(voxels: np.ndarray) -> str:
    return "×".join(str(n) for n in voxels.shape)
