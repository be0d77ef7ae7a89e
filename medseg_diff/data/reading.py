"""One strict reader: a file → checked voxels and geometry, or an error that says what to do."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg_diff.console import log
from medseg_diff.data import geometry
from medseg_diff.data.brain import onto_grid
from medseg_diff.data.formats import dicom_mgh, nifti
from medseg_diff.data.formats.stored import Stored, unlike_a_scan
from medseg_diff.data.formats.stream import check_regular, first_bytes
from medseg_diff.data.geometry import Volume
from medseg_diff.data.plausibility import doubtful, implausible, unlike_backgrounds
from medseg_diff.data.tables.case import Case
from medseg_diff.errors import ImageError, ManifestError, MedsegError, raise_all


class OtherGrid(ImageError):
    """An image of a case lies on another grid than the others."""


@dataclass(frozen=True)
class CaseImages:
    """What was read of one case, all of it on the grid of its first channel (or of `resample_to`).

    `image` float32 [C, X, Y, Z] in the order of `channels`, `reference` int16 [X, Y, Z], `raters` int16 [R, X, Y, Z];
    `affine` [4, 4] takes voxel indices to RAS millimetres of the space that NIfTI gives this `code`.
    """

    name: str
    channels: tuple[str, ...]
    image: np.ndarray
    affine: np.ndarray
    reference: np.ndarray | None
    raters: np.ndarray | None
    warnings: tuple[str, ...]
    code: int = 1

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return geometry.voxel_ml(self.affine)


def read_volume(path: Path, *, case: str | None = None, channel: str | None = None) -> Volume:
    """Read one image: finite, not constant, three-dimensional.

    Raises: ImageError with the place and the remedy.
    """
    with _place(path, case, channel):
        return _image(_single(_read(path)))


def read_map(path: Path, *, case: str | None = None, channel: str | None = None) -> Volume:
    """Read one map that a program wrote: finite and three-dimensional; it may be constant. Raises: ImageError."""
    with _place(path, case, channel):
        stored = _single(_read(path))
        return Volume(stored.image(constant=True), stored.affine, stored.warnings, stored.code)


def read_labels(path: Path, *, case: str | None = None, channel: str | None = "seg") -> Volume:
    """Read one mask as int16; whole numbers stored as floats are accepted, and so is an empty mask.

    Raises: ImageError with the place and the remedy.
    """
    with _place(path, case, channel):
        stored = _single(_read(path))
        return Volume(stored.labels(), stored.affine, stored.warnings, stored.code)


def read_volumes(path: Path, places: Sequence[int] | None = None, *, case: str | None = None) -> tuple[Volume, ...]:
    """Read the volumes of one 4D image that stand at `places` of its last axis (default: all). Raises: ImageError."""
    with _place(path, case):
        stack = _read(path)
        if len(stack.shape) != 4:
            raise ImageError(
                f"is not a 4D image but {geometry.shape_text(stack.shape)}", fix="name its channel, as in t1=FILE"
            )
        places, read, faults = places or range(stack.shape[3]), dict[int, Volume](), list[MedsegError]()
        for number, volume in enumerate(stack.volumes()):
            try:
                read |= {number: _image(volume)} if number in places else {}
            except ImageError as error:  # told at the end of the file, if that is not damaged
                faults.append(error)
        raise_all(faults[:1])
        return tuple(read[number] for number in places)


def count_volumes(path: Path) -> int:
    """How many volumes a file holds, by its header alone (1 for formats other than NIfTI). Raises: ImageError."""
    header = _nifti_header(path)
    return 1 if header is None else int(np.prod(nifti.dimensions(header)[3:], dtype=object))


def is_stored_as_float(path: Path) -> bool:
    """Whether a NIfTI file holds floats, by its header alone (False for other formats). Raises: ImageError."""
    header = _nifti_header(path)
    return header is not None and header.get_data_dtype().kind == "f"


def _nifti_header(path: Path) -> Any:
    """None of what is no NIfTI."""
    if path.is_dir():
        return None
    with _place(path):
        check_regular(path)
        head = first_bytes(path)
        return nifti.parse_header(head) if nifti.is_nifti(head) else None


def read_case(
    case: Case, channels: Sequence[str] | None = None, *, reference: bool = True, resample_to: str | None = None
) -> CaseImages:
    """Read the channels of a case (default: all it has) and, with `reference`, its masks, onto one grid.

    A volume that differs only in the order or direction of its axes is reoriented, and said. One on another grid is
    refused, unless `resample_to` names the channel whose grid all are brought onto (images linear, masks nearest).
    Raises: ManifestError where a channel is not there, ImageError, or Problems of all faults of the case.
    """
    channels = tuple(channels or case.channels)
    problems = list[MedsegError]()
    volumes = _read_channels(case, channels, problems)
    masks = _read_each(read_labels, case.references if reference else {}, case.name, problems)
    raise_all(problems)
    volumes |= masks
    grid_of = resample_to or channels[0]
    if grid_of not in channels:
        found, fix = f"there is no channel {grid_of} to resample to", f"use one of {', '.join(channels)}"
        raise ManifestError(found, fix=fix, case=case.name)
    warnings = _onto_one_grid(volumes, grid_of, case, resample=resample_to is not None)
    warnings += doubtful(case, volumes)
    raters = [volumes[name].voxels for name in masks if name != "seg"]
    grid, image = volumes[grid_of], _taken(volumes, channels)
    warnings += implausible(channels, image, geometry.spacing_of(grid.affine)) + unlike_backgrounds(channels, image)
    return CaseImages(
        name=case.name,
        channels=channels,
        affine=grid.affine,
        code=grid.code,
        image=image,
        reference=volumes["seg"].voxels if "seg" in volumes else None,
        raters=np.stack(raters) if raters else None,
        warnings=tuple(warnings),
    )


def with_labels(images: CaseImages, path: Path, *, channel: str, resample: bool = False) -> CaseImages:
    """The case with the labels of one more file as its `reference`, called `channel` in what is said of it.

    They are brought onto the grid of the case as its masks are in `read_case`: reoriented where only the axes differ, and
    with `resample` by the nearest neighbour where more does. Raises: ImageError.
    """
    labels, grid = read_labels(path, case=images.name, channel=channel), Volume(images.image[0], images.affine)
    raise_all(_unlikely_mask(labels, case=images.name, channel=channel, file=path.name))
    said = [f"{channel}: {text}" for text in labels.warnings]
    labels = _onto(grid, labels, channel, images.name, images.channels[0], said, resample=resample)
    said += [] if labels.voxels.any() else [f"{channel} is empty: no voxel is marked"]
    return replace(images, reference=labels.voxels, warnings=(*images.warnings, *said))


def _onto_one_grid(volumes: dict[str, Volume], grid_of: str, case: Case, *, resample: bool) -> list[str]:
    """Bring all of them there, in their places; returns what is to be said. Raises: the errors of all that cannot be."""
    warnings = [f"{name}: {text}" for name, volume in volumes.items() for text in volume.warnings]
    grid, problems = volumes[grid_of], list[MedsegError]()
    for name, volume in volumes.items():
        try:
            volumes[name] = _onto(grid, volume, name, case.name, grid_of, warnings, resample=resample)
        except MedsegError as error:
            problems.append(error)
        if path := case.references.get(name):
            problems += _unlikely_mask(volume, case=case.name, channel=name, file=path.name)
    raise_all(problems)
    return warnings


def _taken(volumes: dict[str, Volume], channels: Sequence[str]) -> np.ndarray:
    """Channels as [C, X, Y, Z]; each leaves `volumes` as it is taken, so that no case is in memory twice."""
    if len(channels) == 1:
        return volumes.pop(channels[0]).voxels[None]
    image = np.empty((len(channels), *volumes[channels[0]].shape), dtype=np.float32)
    for number, channel in enumerate(channels):
        image[number] = volumes.pop(channel).voxels
    return image


def _read_channels(case: Case, channels: Sequence[str], problems: list[MedsegError]) -> dict[str, Volume]:
    for channel in channels:
        if channel not in case.channels:
            found = f"has no {channel} (its channels: {', '.join(case.channels) or 'none'})"
            raise ManifestError(found, fix="add it or choose a recipe", case=case.name)
    if case.stack is None:
        return _read_each(read_volume, {channel: case.images[channel] for channel in channels}, case.name, problems)
    if (count := count_volumes(case.stack)) != len(names := case.stack_channels):
        found = f"holds {count} volumes, but {len(names)} are named: {', '.join(names)}"
        raise ImageError(found, fix="name every volume, in their order", case=case.name, file=case.stack.name)
    places = [names.index(channel) for channel in channels]
    return dict(zip(channels, read_volumes(case.stack, places, case=case.name), strict=True))


def _read_each(
    read: Callable[..., Volume], paths: Mapping[str, Path], case: str, problems: list[MedsegError]
) -> dict[str, Volume]:
    """What can be read of these files; of the others `problems` grows."""
    volumes = {}
    for name, path in paths.items():
        try:
            volumes[name] = read(path, case=case, channel=name)
        except MedsegError as error:
            problems.append(error.without_trace())
    return volumes


def _onto(
    grid: Volume, volume: Volume, name: str, case: str, grid_of: str, warnings: list[str], *, resample: bool
) -> Volume:
    """`volume` on the grid, if it may be brought there."""
    if geometry.same_grid(volume, grid):
        return volume
    turned = geometry.reoriented(volume, geometry.axes_of(grid.affine))
    if geometry.same_grid(turned, grid):
        axes = f"{geometry.axes_of(volume.affine)} to {geometry.axes_of(grid.affine)}"
        warnings.append(f"{name}: reoriented from {axes}, like {grid_of}")
        return turned
    if not resample:
        raise OtherGrid(
            f"not on the grid of {grid_of}: {geometry.difference(turned, grid)}",
            fix=f"pass --resample-to {grid_of}, or resample it yourself",
            case=case,
            channel=name,
        )
    warnings.append(f"{name}: resampled onto the grid of {grid_of} ({geometry.difference(turned, grid)})")
    return onto_grid(volume, grid)


@contextmanager
def _place(path: Path, case: str | None = None, channel: str | None = None) -> Iterator[None]:
    """Says of every ImageError inside which case, channel and file it is about, and of an OSError too."""
    place = {"case": case, "channel": channel, "file": path.name}
    try:
        yield
    except ImageError as error:
        raise ImageError(error.found, fix=error.fix, **place) from None
    except OSError as error:
        reason = error.strerror or "input/output error"
        raise ImageError(f"cannot be read ({reason})", fix="check the path and its permissions", **place) from None


def _unlikely_mask(volume: Volume, **place: str) -> list[MedsegError]:
    """A mask without any background is a wrong file, or inverted."""
    voxels = volume.voxels
    if voxels.size == 1 or not voxels.min():
        return []
    return [ImageError("every voxel has a label: there is no background", fix="check that it is the mask", **place)]


def _read(path: Path) -> Stored:
    """Any file as stored voxels of three axes, or four where it holds several volumes; the doors differ, what follows
    does not."""
    log.debug("reading %s", path)
    stored = dicom_mgh.read_stored(path)
    shape, warnings = stored.shape, stored.warnings
    if not geometry.is_usable(stored.affine):
        raise ImageError("has no usable orientation", fix="convert it to NIfTI with the tool that made it")
    if why := geometry.why_impossible(stored.affine, shape):
        raise ImageError(f"does not look like a head scan: {why}", fix="correct the unit or the affine in its header")
    away = geometry.distance_from_origin(stored.affine, shape)
    if away > geometry.FARTHEST_MM[0]:
        warnings = (*warnings, f"is {away:.0f} mm from the scanner's origin")
    if len(shape) == 2:
        shape, warnings = (*shape, 1), (*warnings, "a 2D image, read as a volume of one slice")
    if len(shape) > 3 and math.prod(shape[3:]) == 1:
        shape, warnings = shape[:3], (*warnings, "4D, but with only one volume")
    return replace(stored, shape=shape, warnings=warnings)


def _single(stored: Stored) -> Stored:
    if len(stored.shape) != 3:
        fix = "split it into one file per volume; if the volumes are channels, give the 4D file itself as --volume"
        raise ImageError(f"holds several volumes ({geometry.shape_text(stored.shape)})", fix=fix)
    return stored


def _image(stored: Stored) -> Volume:
    """Voxels one can compute with, and a word where they do not look like a scan's."""
    voxels = stored.image()
    return Volume(voxels, stored.affine, (*stored.warnings, *unlike_a_scan(voxels)), stored.code)
