"""A segmentation slice by slice: which axial slices hold the errors, and whether their uncertainty said so."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from medseg_diff.data import geometry
from medseg_diff.data.geometry import axial_axis
from medseg_diff.evaluation.summary import Floats, Mask, Values, axial_slices
from medseg_diff.metrics import overlap

SLICE_COLUMNS = ("axis", "slice", "reference_ml", "mask_ml", "dice", "error_ml", "expected_error_ml", "ged2")


def slice_rows(
    mask: Mask, reference: Mask, brain: Mask, affine: Floats, known: Mapping[str, Mapping[int, float]]
) -> Iterator[Values]:
    """A row for each axial slice that holds brain or is marked, from the first to the last; `known` are further columns."""
    voxel_ml = geometry.voxel_ml(affine)
    for z, marked, truth, tissue in axial_slices(affine, mask, reference, brain):
        if tissue.any() or marked.any() or truth.any():
            yield {
                "axis": axial_axis(affine),
                "slice": z,
                "reference_ml": np.count_nonzero(truth) * voxel_ml,
                "mask_ml": np.count_nonzero(marked) * voxel_ml,
                "dice": overlap.dice(marked, truth) if marked.any() or truth.any() else None,
                "error_ml": np.count_nonzero(marked != truth) * voxel_ml,
                **{name: numbers.get(z) for name, numbers in known.items()},
            }


def sums_ml(uncertainty: npt.NDArray[np.float32] | None, affine: Floats) -> dict[int, float]:
    """How many ml of each axial slice may be wrong: the sum of its uncertainty."""
    if uncertainty is None:
        return {}
    voxel_ml = geometry.voxel_ml(affine)
    return {z: float(plane.sum(dtype=np.float64) * voxel_ml) for z, plane in axial_slices(affine, uncertainty)}
