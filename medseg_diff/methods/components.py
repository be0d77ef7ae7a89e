"""From a map to a mask: cut at a threshold, split into components, the small ones left out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medseg_diff.methods.fusion import Fusion
from medseg_diff.metrics.detection import components_of
from medseg_diff.settings import Settings


class Findings(Settings):
    """From members to mask: fused, above a threshold, without components smaller than a share of the largest.

    `threshold` is for the mean; null is the one that the run chose on patients it did not train on, 0.5 where it chose
    none. A vote and STAPLE are cut at one half. `calibrated`: also write the mean at the run's temperature.
    """

    fusion: Fusion = "mean"
    threshold: float | None = Field(default=None, gt=0, lt=1)
    calibrated: bool = False
    smallest_component: float = Field(default=0.1, ge=0, le=1)  # 0 keeps everything


HALF = 0.5


@dataclass(frozen=True)
class Removed:
    """Components left out of a mask, by volume."""

    components: int
    volume_ml: float


def find_mask(
    probability: npt.NDArray[np.float32], findings: Findings, voxel_ml: float, *, threshold: float | None = None
) -> tuple[npt.NDArray[np.bool_], Removed]:
    """Voxels [X, Y, Z] above the threshold, without components smaller than a share of the largest one.

    `threshold` defaults to that of the findings, and to one half where they name none. One remote blob can take HD95
    from 4 to 64 mm; keeping the largest alone would lose multifocal disease.
    """
    mask = probability > (threshold or findings.threshold or HALF)
    if findings.smallest_component == 0 or not mask.any():
        return mask, Removed(0, 0.0)
    labels, sizes = components_of(mask)
    small = sizes < findings.smallest_component * sizes.max()
    return np.append(False, ~small)[labels], Removed(int(small.sum()), float(sizes[small].sum() * voxel_ml))


LESION_COLUMNS = ("component", "volume_ml", "x_mm", "y_mm", "z_mm", "mean", "peak")


@dataclass(frozen=True)
class Lesions:
    """mask [X, Y, Z], a row for each component in the order of LESION_COLUMNS, and the components left out as too small."""

    mask: npt.NDArray[np.bool_]
    rows: list[list[Any]]
    removed: int

    @property
    def volume_ml(self) -> float:
        return round(sum(row[1] for row in self.rows), 3)


def find_lesions(
    score: npt.NDArray[np.float32],
    brain: npt.NDArray[np.bool_],
    *,
    threshold: float,
    smallest_ml: float,
    affine: npt.NDArray[np.float64],
) -> Lesions:
    """Components of {score > threshold} inside the brain, all [X, Y, Z], of at least `smallest_ml`, the largest first."""
    from scipy import ndimage

    labels, sizes = components_of((score > threshold) & brain)
    voxel_ml = float(abs(np.linalg.det(affine[:3, :3]))) / 1000
    large = sizes * voxel_ml >= smallest_ml
    measured = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if not large[number - 1]:
            continue
        inside = labels[box] == number
        voxels, values = np.argwhere(inside) + [axis.start for axis in box], score[box][inside]
        place = affine[:3, :3] @ voxels.mean(axis=0) + affine[:3, 3]
        numbers = [float(round(sizes[number - 1] * voxel_ml, 3)), *(round(float(mm), 1) for mm in place)]
        measured.append([*numbers, round(float(values.mean(dtype=np.float64)), 4), round(float(values.max()), 4)])
    measured.sort(key=lambda row: (-row[0], *row[1:]))  # equal volumes by their place, however the voxels are stored
    rows = [[number, *row] for number, row in enumerate(measured, start=1)]
    return Lesions(np.append(False, large)[labels], rows, int((~large).sum()))
