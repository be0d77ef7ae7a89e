"""What `segment` wrote for one case, read back: its regions, mask, maps and members, all checked to lie on one grid."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg_diff.data.brain import find_brain, find_head
from medseg_diff.data.geometry import Volume, axes_of, difference, reoriented, same_grid
from medseg_diff.data.reading import read_labels, read_map, read_volume
from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import ImageError, UsageError
from medseg_diff.files import read_json

SEGMENT_AGAIN = "segment the case again with --overwrite"


@dataclass(frozen=True)
class SegmentedCase:
    """The folder of one segmented case.

    `regions` maps each region, outermost first, to the labels of the reference that belong to it. `mask` holds how
    many of the `nested` regions a voxel lies in: 0 outside, 1 in the first region only, and so on. Where they do not
    nest each has a mask file of its own, and `mask` is that of the first.
    """

    name: str
    folder: Path
    regions: dict[str, tuple[int, ...]]
    mask: Volume
    nested: bool = True

    def region_mask(self, region: str) -> npt.NDArray[np.bool_]:
        """Where the final mask lies in a region, [X, Y, Z]. Raises: ImageError where a region's own file is damaged."""
        depth = list(self.regions).index(region)
        if self.nested or depth == 0:
            return np.asarray(self.mask.voxels > (depth if self.nested else 0))
        path = self.folder / f"mask_{region}.nii.gz"
        mask = read_labels(path, case=self.name, channel="mask")
        if not same_grid(mask, self.mask):
            place = {"case": self.name, "channel": "mask", "file": path.name}
            raise ImageError("not on the grid of the first region's mask", fix=SEGMENT_AGAIN, **place)
        return np.asarray(mask.voxels > 0)

    def map(self, kind: str, region: str) -> npt.NDArray[np.float32] | None:
        """`kind` is probability, calibrated, spread, ambiguity or uncertainty → [X, Y, Z], or None where not written.

        Raises: ImageError where the file is damaged or not on the grid of the mask.
        """
        path = self.folder / f"{kind}{self._suffix(region)}.nii.gz"
        return self._read_map(path, kind) if path.is_file() else None

    def members(self, region: str) -> Iterator[npt.NDArray[np.float32]]:
        """Each member's probability or mask [X, Y, Z] in the order of their numbers; none without --save-members.

        One at a time, because all of them as floats would be gigabytes. Raises: ImageError.
        """
        name = re.compile(rf"\d+{re.escape(self._suffix(region))}\.nii\.gz")
        paths = sorted(path for path in self.folder.glob("members/*.nii.gz") if name.fullmatch(path.name))
        yield from (self._read_map(path, "members") for path in paths)

    def on_grid(self, volume: Volume, channel: str, file: str) -> Volume:
        """An image or reference on the grid of the mask; axes may be turned, nothing is interpolated.

        Raises: ImageError where that is not enough.
        """
        turned = volume if same_grid(volume, self.mask) else reoriented(volume, axes_of(self.mask.affine))
        if same_grid(turned, self.mask):
            return turned
        raise ImageError(
            f"not on the grid of the predicted mask: {difference(turned, self.mask)}",
            fix="segment the case on the grid of its reference, or resample the reference",
            case=self.name,
            channel=channel,
            file=file,
        )

    def _suffix(self, region: str) -> str:
        return f"_{region}" if len(self.regions) > 1 else ""

    def _read_map(self, path: Path, kind: str) -> npt.NDArray[np.float32]:
        """Unlike an image of a patient, a map may be constant: nothing found, with certainty."""
        place = {"case": self.name, "channel": kind, "file": path.name}
        try:
            found = read_map(path)
        except ImageError as error:
            raise ImageError(error.found, fix=SEGMENT_AGAIN, **place) from None
        voxels = found.voxels
        if not same_grid(found, self.mask):
            raise ImageError("not on the grid of mask.nii.gz", fix=SEGMENT_AGAIN, **place)
        if not (voxels.min() >= 0 and voxels.max() <= 1):
            raise ImageError("holds values outside 0 to 1", fix=SEGMENT_AGAIN, **place)
        return voxels


def is_segmented(folder: Path) -> bool:
    """Whether a case is complete: its case.json, which is written last, and a mask are there; the rest is optional."""
    return (folder / "case.json").is_file() and any(folder.glob("mask*.nii.gz"))


def read_segmented_case(folder: Path, name: str) -> SegmentedCase:
    """Read case.json and the (first) mask of one case's folder; maps and members are read when asked for.

    Raises: UsageError where case.json or its regions are missing or unreadable, ImageError for the mask.
    """
    try:
        stated = read_json(folder / "case.json")
        regions = {str(region): tuple(int(label) for label in labels) for region, labels in stated["regions"].items()}
    except FileNotFoundError:
        raise UsageError("has no case.json", fix="segment the case first", case=name) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        regions = {}
    if not regions:
        raise UsageError("names no regions with their labels", fix=SEGMENT_AGAIN, case=name, file="case.json")
    nested = bool(stated.get("nested", True)) or len(regions) == 1
    file = "mask.nii.gz" if nested else f"mask_{next(iter(regions))}.nii.gz"
    return SegmentedCase(name, folder, regions, read_labels(folder / file, case=name, channel="mask"), nested)


def read_references(case: Case, segmented: SegmentedCase) -> dict[str, npt.NDArray[np.int16]]:
    """The labels [X, Y, Z] of seg, seg_1 … as far as the manifest names them, on the grid of the mask.

    Raises: ImageError.
    """
    named = {name: path for name, path in case.paths.items() if name == "seg" or name.startswith("seg_")}
    return {
        name: segmented.on_grid(read_labels(path, case=case.name, channel=name), name, path.name).voxels
        for name, path in named.items()
    }


def read_channel(case: Case, channel: str, segmented: SegmentedCase) -> npt.NDArray[np.float32]:
    """One channel of the case [X, Y, Z] on the grid of the mask. Raises: ImageError."""
    path = case.images[channel]
    return segmented.on_grid(read_volume(path, case=case.name, channel=channel), channel, path.name).voxels


def read_brain(case: Case, segmented: SegmentedCase) -> npt.NDArray[np.bool_]:
    """Where the brain is in the first channel of the case [X, Y, Z], on the grid of the mask. Raises: ImageError."""
    return brain_of(read_channel(case, case.channels[0], segmented))


def brain_of(image: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """What differs from a constant background, or the head where there is none: image [X, Y, Z] → [X, Y, Z]."""
    brain = find_brain(image[None])
    return find_head(image[None]) if brain is None else brain
