"""`prepare --register`: all channels of every case brought onto one of them, into new files beside a new table."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg_diff.console import log
from medseg_diff.data.brain import onto_grid
from medseg_diff.data.digests import digest_of_image
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import Volume, axes_of, reoriented, same_grid
from medseg_diff.data.reading import read_labels, read_volume
from medseg_diff.data.registration import Alignment, align
from medseg_diff.data.tables.case import TWIN
from medseg_diff.data.tables.manifest import Case, Manifest, read_manifest, write_manifest
from medseg_diff.errors import ImageError, ManifestError, MedsegError, Problems, UsageError, counted, raise_all
from medseg_diff.files import clean, read_facts, sha256_of, write_json
from medseg_diff.reporting.registration import Shown, draw_registration
from medseg_diff.tasks.parallel import in_parallel

FACTS, PICTURE, METHOD = "registration.json", "registration.png", 1
SMALLEST_MM = 1.0  # at the head's surface: what mutual information finds below this is within its own error
LARGEST_MM, LARGEST_DEGREES = 30.0, 30.0  # more is seldom a patient's motion
DRAWING = threading.Lock()  # matplotlib is not made for threads


def folder_of(out: Path) -> Path:
    """Where the registered images of a table go."""
    return out.with_name(f"{out.stem}_registered")


def unregistered(out: Path) -> Path:
    """Where the table of the images as they were is kept."""
    return out.with_name(f"{out.stem}_unregistered.csv")


def register_cases(
    table: Path,
    out: Path,
    *,
    to: str,
    data_root: Path | None = None,
    overwrite: bool = False,
    workers: int | None = None,
) -> Path:
    """Write the cases of `table` with all channels on the grid of `to`, a folder each, and at last their table `out`.

    A folder holds CHANNEL.nii.gz, seg.nii.gz, registration.json (matrices, how far each channel moved, warnings) and
    registration.png. Cases that are complete are skipped, unless `overwrite`; those that fail are listed at the end, and
    then there is no table. Raises: ManifestError, ImageError; UsageError where the images would go among the scans.
    """
    manifest, folder = read_manifest(table, data_root=data_root), folder_of(out)
    if any(path.is_relative_to(folder.resolve()) for case in manifest.cases for path in case.paths.values()):
        raise UsageError("the images are where the registered ones would go", fix="choose another --out", file=out.name)
    clean(folder)
    problems, done = list[MedsegError](), 0

    def work(case: Case) -> "_Done | MedsegError":
        try:
            return _register(case, to, folder / case.name, overwrite=overwrite)
        except MedsegError as error:
            return error.without_trace()

    for case, found in zip(
        manifest.cases, in_parallel("registering", manifest.cases, work, workers=workers), strict=True
    ):
        if isinstance(found, MedsegError):
            problems += found.problems if isinstance(found, Problems) else [found]
            continue
        done += found.before
        for warning in found.warnings:
            log.warning("[%s] %s", case.name, warning)
    if done:
        log.info("%s already registered", f"{counted(done, 'case')} {'was' if done == 1 else 'were'}")
    raise_all(problems)
    write_manifest(out, _rows(manifest, folder, out))
    log.info("look at %s/*/%s before training", folder.name, PICTURE)
    return out


def _rows(manifest: Manifest, folder: Path, out: Path) -> list[dict[str, str]]:
    """Those of the table, with the registered images in place of the others."""
    rows = manifest.rows()
    for case, row in zip(manifest.cases, rows, strict=True):
        row |= {name: (folder / case.name / f"{name}.nii.gz").relative_to(out.parent).as_posix() for name in case.paths}
    return rows


@dataclass(frozen=True)
class _Done:
    """A case that is complete, by this call or by one `before`."""

    warnings: tuple[str, ...]
    before: bool = False


def _register(case: Case, to: str, folder: Path, *, overwrite: bool) -> _Done:
    """Raises: ManifestError where the channel is not there, ImageError, Problems of all that is wrong with the case."""
    if to not in case.images:
        has = ", ".join(case.images) or "a 4D file, whose channels are already on one grid"
        found = f"has no {to} to register to (it has {has})"
        raise ManifestError(found, fix="drop the row, or name another channel", case=case.name)
    identity = {"method": METHOD, "to": to, "inputs": _digests(case)}
    known = read_facts(folder / FACTS)
    if not overwrite and all(known.get(key) == value for key, value in identity.items()) and _is_whole(folder, known):
        return _Done(tuple(known["warnings"]), before=True)
    (folder / FACTS).unlink(missing_ok=True)  # what is written from here on is of another registration
    images, masks, twins = _read(case)
    fixed, warnings = images[to], [f"{name}: {text}" for name, image in images.items() for text in image.warnings]
    moves = {name: _move(name, image, fixed, case, warnings) for name, image in images.items() if name != to}
    brought = {name: _brought(image, fixed, moves.get(name)) for name, image in images.items()}
    brought |= {name: _brought(twin, fixed, moves.get(name.removeprefix(TWIN))) for name, twin in twins.items()}
    for name, mask in masks.items():
        brought[name] = _brought(mask, fixed, _move_of_mask(name, mask, images, moves, warnings))
        if mask.voxels.any() and not brought[name].voxels.any():
            warnings.append(f"{name}: no part of it is inside {to}")
    if moves:
        shown = {
            name: Shown(_brought(images[name], fixed, None), brought[name], move.words) for name, move in moves.items()
        }
        with DRAWING:
            draw_registration(fixed, to, shown, folder / PICTURE)
    for name, volume in brought.items():
        write_volume(folder / f"{name}.nii.gz", volume.voxels, fixed.affine, code=fixed.code)
    written = [*(f"{name}.nii.gz" for name in brought), *([PICTURE] if moves else [])]
    facts = {
        "case": case.name,
        "channels": {name: move.as_dict() for name, move in moves.items()},
        "warnings": warnings,
        "outputs": {name: sha256_of(folder / name) for name in written},
    }
    write_json(folder / FACTS, identity | facts)  # last: with it the case is complete
    return _Done(tuple(warnings))


def _digests(case: Case) -> dict[str, str]:
    """Of every image and mask. Raises: ImageError."""
    found = {}
    for name, path in case.paths.items():
        place = {"case": case.name, "channel": name, "file": path.name}
        try:
            found[name] = digest_of_image(path)
        except ImageError as error:
            raise ImageError(error.found, fix=error.fix, **place) from None
        except OSError as error:
            found_out = f"cannot be read ({error.strerror or 'input/output error'})"
            raise ImageError(found_out, fix="check the path and its permissions", **place) from None
    return found


def _is_whole(folder: Path, known: Mapping[str, Any]) -> bool:
    """Whether all that was written is there as it was written."""
    paths = {folder / name: digest for name, digest in known["outputs"].items()}
    return all(path.is_file() and sha256_of(path) == digest for path, digest in paths.items())


def _read(case: Case) -> tuple[dict[str, Volume], ...]:
    """Channels, masks and lesion-free twins, each on its own grid. Raises: ImageError, Problems of all."""
    problems, found = list[MedsegError](), dict[str, Volume]()
    for name, path in case.paths.items():
        try:
            found[name] = (read_labels if name in case.references else read_volume)(path, case=case.name, channel=name)
        except MedsegError as error:
            problems.append(error.without_trace())
    raise_all(problems)
    twins = (TWIN + channel for channel in case.twins)
    return tuple({name: found[name] for name in kind} for kind in (case.images, case.references, twins))


@dataclass(frozen=True)
class _Move:
    """How a channel is brought onto the other: as it was found, or, where it is `kept`, not at all."""

    found: Alignment
    kept: bool

    @property
    def matrix(self) -> np.ndarray:
        """[4, 4]: RAS mm of the channel as scanned → RAS mm of the one that it is registered to."""
        return np.eye(4) if self.kept else self.found.matrix

    @property
    def words(self) -> str:
        found = f"{self.found.surface_mm:.1f} mm, {self.found.degrees:.1f}°"
        return f"{found}:\nleft as it was" if self.kept else found

    def as_dict(self) -> dict[str, Any]:
        """Plain data; what the search found is told where it was not followed too."""
        found = self.found
        return {
            "matrix": np.round(self.matrix, 9).tolist(),
            "kept": self.kept,
            "surface_mm": round(found.surface_mm, 3),
            "middle_mm": round(found.mm, 3),
            "degrees": round(found.degrees, 3),
            "information_before": None if found.before is None else round(found.before, 5),
            "information_after": round(found.after, 5),
            "start": found.start,
        }


def _move(name: str, image: Volume, fixed: Volume, case: Case, warnings: list[str]) -> _Move:
    """Raises: ImageError."""
    try:
        found = align(image, fixed)
    except ImageError as error:
        place = {"case": case.name, "channel": name, "file": case.images[name].name}
        raise ImageError(error.found, fix=error.fix, **place) from None
    if found.surface_mm < SMALLEST_MM:
        return _Move(found, kept=True)  # better or not: the very grid of the other image flatters what lies on it
    if not found.is_better:
        said = f"the search ended {found.surface_mm:.0f} mm away, with no better fit than the scanner's position"
        warnings.append(f"{name}: {said}: left as it was; look at {PICTURE}")
    elif found.mm > LARGEST_MM or found.degrees > LARGEST_DEGREES:
        warnings.append(f"{name}: moved by {found.mm:.0f} mm and {found.degrees:.0f}°; look at {PICTURE}")
    return _Move(found, kept=not found.is_better)


def _move_of_mask(
    name: str, mask: Volume, images: Mapping[str, Volume], moves: Mapping[str, _Move], warnings: list[str]
) -> _Move | None:
    """That of the channel on whose grid it was drawn; None where that is the one that all are registered to."""
    lies_on = [channel for channel, image in images.items() if same_grid(_turned(mask, image), image)]
    if not lies_on:
        warnings.append(f"{name}: is on no channel's grid, and is left at the scanner's position")
        return None
    drawn_on = next((channel for channel in lies_on if channel not in moves), lies_on[0])
    others = [channel for channel in lies_on if channel != drawn_on and channel in moves and not moves[channel].kept]
    if others:
        warnings.append(
            f"{name}: is on the grid of {drawn_on} and of {', '.join(others)}: assumed to be drawn on {drawn_on}"
        )
    return moves.get(drawn_on)


def _brought(volume: Volume, fixed: Volume, move: _Move | None) -> Volume:
    """On the grid of `fixed`; nothing is interpolated where only axes have to be turned."""
    placed = Volume(volume.voxels, volume.affine if move is None else move.matrix @ volume.affine)
    turned = _turned(placed, fixed)
    if same_grid(turned, fixed):
        return turned
    return onto_grid(placed, fixed)


def _turned(volume: Volume, fixed: Volume) -> Volume:
    return reoriented(volume, axes_of(fixed.affine))
