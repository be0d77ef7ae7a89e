"""From maps to findings: the mask, what was removed from it, its volume, and the slices a person should look at."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_SLICES = 5
FEWEST_ML = 0.05  # an axial slice with less expected error than this needs no second look
INTERVAL = (2.5, 97.5)


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
