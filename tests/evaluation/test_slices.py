"""Rows of slices add up to the volume, on any grid."""

import numpy as np
import pytest

from medseg_diff.data import geometry
from medseg_diff.evaluation.slices import slice_rows, sums_ml
from tests.made import BRAIN, LPS, TUMOUR, ball

SHEARED = LPS.copy()
SHEARED[0, 1] = 1.2  # voxels are no boxes: their volume is the determinant, not the product of the steps


@pytest.mark.parametrize("affine", [LPS, SHEARED])
def test_slices_add_up_to_the_volume(affine):
    voxel_ml, marked = geometry.voxel_ml(affine), ball((12, 11, 8), 4)
    rows = list(slice_rows(marked, TUMOUR, BRAIN, affine, {"ged2": {8: 0.5}}))
    assert sum(row["reference_ml"] for row in rows) == pytest.approx(TUMOUR.sum() * voxel_ml)
    assert sum(row["mask_ml"] for row in rows) == pytest.approx(marked.sum() * voxel_ml)
    assert [row["ged2"] for row in rows if row["slice"] == 8] == [0.5]
    uncertainty = np.where(marked, 0.25, 0).astype(np.float32)
    assert sum(sums_ml(uncertainty, affine).values()) == pytest.approx(0.25 * marked.sum() * voxel_ml)
    assert sums_ml(None, affine) == {}
