"""From maps to findings: the mask, what was removed from it, its volume, and the slices a person should look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_diff.recipes import Findings

MOST_SLICES = 5
FEWEST_ML = 0.05  # an axial slice with less expected error than this needs no second look
INTERVAL = (2.5, 97.5)
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
    from skimage.measure import label

    box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(mask))
    components = label(mask[box], connectivity=3)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    small = sizes < findings.smallest_component * sizes.max()
    small[0] = False
    removed = small[components]
    mask[box] &= ~removed
    return mask, Removed(int(small.sum()), float(removed.sum() * voxel_ml))


def volume_interval(voxels: Sequence[int], voxel_ml: float) -> dict[str, float]:
    """Mean volume over members and its central 95 %, in millilitres."""
    volumes = np.asarray(voxels, dtype=np.float64) * voxel_ml
    low, high = np.percentile(volumes, INTERVAL)
    return {"mean": round(float(volumes.mean()), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def slices_to_review(
    uncertainty: npt.NDArray[np.float32], affine: npt.NDArray[np.float64], voxel_ml: float
) -> list[dict[str, Any]]:
    """The axial slices whose expected error is largest, worst first; at most five, none below 0.05 ml.

    `slice` counts from 0 along `axis`, the voxel axis closest to the patient's long axis. The expected error of a mask cut
    at one half is at least the sum of m (1 - m) over its voxels.
    """
    axis = int(np.abs(affine[2, :3]).argmax())
    other = tuple(number for number in range(3) if number != axis)
    expected_ml = uncertainty.sum(axis=other, dtype=np.float64) * voxel_ml
    worst = [int(z) for z in np.argsort(-expected_ml, kind="stable")[:MOST_SLICES] if expected_ml[z] >= FEWEST_ML]
    return [{"axis": axis, "slice": z, "expected_error_ml": round(float(expected_ml[z]), 3)} for z in worst]
