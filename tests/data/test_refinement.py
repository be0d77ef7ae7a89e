"""A scan in smaller voxels: the same place, the same field of view, and the brain that was drawn."""

import numpy as np
import pytest
import torch

from medseg_diff.data import geometry
from medseg_diff.data.refinement import refined
from medseg_diff.data.transforms import Preparation, prepare_case
from tests.data.test_transforms import head, turned

PREPARATION = Preparation(margin_mm=2.0)
OBLIQUE = np.array([[0.9, -0.2, 0.05, -31.0], [0.2, 1.7, -0.1, 12.0], [-0.05, 0.1, 2.4, 7.0], [0, 0, 0, 1]])


@pytest.mark.parametrize("factor", [2, 3])
def test_the_finer_grid_fills_the_same_field_of_view(factor):
    fine = geometry.finer(OBLIQUE, factor)
    size = np.array([5, 6, 7])
    for corner in np.ndindex(2, 2, 2):  # outer corners, half a voxel beyond the first and the last middle
        ends = np.array(corner)
        old, new = (OBLIQUE @ [*(ends * size - 0.5), 1], fine @ [*(ends * size * factor - 0.5), 1])
        np.testing.assert_allclose(new, old, atol=1e-12)
    np.testing.assert_allclose(geometry.spacing_of(fine), geometry.spacing_of(OBLIQUE) / factor)
    block = [fine @ [*index, 1] for index in np.ndindex(factor, factor, factor)]
    np.testing.assert_allclose(np.mean(block, axis=0), OBLIQUE @ [0, 0, 0, 1], atol=1e-12)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "IRP"])
def test_what_is_drawn_lies_where_the_scan_does(axes):
    """Blocks that repeat the prepared image give the scan back, whatever the order of its axes."""
    images = turned(head(affine=OBLIQUE), axes)
    prepared = prepare_case(images, PREPARATION)
    fine = torch.nn.functional.interpolate(prepared.image[None], scale_factor=2, mode="nearest")[0]
    out = refined(images, prepared, fine, 2)
    np.testing.assert_allclose(out.affine, geometry.finer(images.affine, 2), atol=1e-9)
    assert out.channels == images.channels and out.image.dtype == np.float32
    blocks = out.image.reshape(len(out.image), *(n for side in images.image.shape[1:] for n in (side, 2)))
    means = blocks.mean(axis=(2, 4, 6))
    low, high = (np.percentile(images.image[images.image > 0], share) for share in (2, 98))
    kept = (images.image >= low) & (images.image <= high)
    assert np.abs(means - images.image)[kept].mean() < 1.0  # of 100: what was cut off lies between neighbours
    np.testing.assert_array_equal(means[images.image == 0], 0)


def test_the_brightest_stay_bright():
    images = head(channels=1)
    images.image[0, 10, 12, 11] = 1000  # far above the scale
    prepared = prepare_case(images, PREPARATION)
    fine = torch.nn.functional.interpolate(prepared.image[None], scale_factor=2, mode="nearest")[0]
    out = refined(images, prepared, fine, 2)
    assert fine.max() == 1 and out.image[0, 20:22, 24:26, 22:24].mean() > 400


def test_a_window_changes_no_grey_value():
    """The scale is that of the whole brain, also where the window cuts it."""
    images = head(channels=1)
    across = np.arange(images.image.shape[1], dtype=np.float32)[:, None, None]
    images.image[0] = np.where(images.image[0] > 0, images.image[0] + 10 * across, 0)  # one half is brighter
    for window in ((None, None, None), (12, None, None)):
        prepared = prepare_case(images, Preparation(margin_mm=2.0, window=window))
        fine = torch.nn.functional.interpolate(prepared.image[None], scale_factor=2, mode="nearest")[0]
        blocks = refined(images, prepared, fine, 2).image[0]
        means = blocks.reshape(*(n for side in images.image.shape[1:] for n in (side, 2))).mean(axis=(1, 3, 5))
        low, high = (np.percentile(images.image[images.image > 0], share) for share in (2, 98))
        kept = (images.image[0] >= low) & (images.image[0] <= high)
        assert np.abs(means - images.image[0])[kept].mean() < 0.1  # 0.45 by the scale of what the window shows
