"""What the viewer is given: every volume in its place, with its values, in 256 steps."""

import base64
import gzip

import nibabel
import numpy as np
import pytest

from medseg_diff.data.results import read_result
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.reporting.page.scene import OUTSIDE, round_up, scene_of
from tests.made import BRAIN, LPS, TUMOUR, Study


@pytest.fixture
def scene(tmp_path):
    study = Study(tmp_path).add("a")
    study.predict("a", probability=np.where(TUMOUR, 0.8, 0.1) * BRAIN)
    case = read_manifest(study.table).cases[0]
    return scene_of(read_result(study.predictions / "a", "a"), case), case


def opened(file):
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(file)))


def at(volume, index):
    """The value of a volume at a voxel of the case's own grid, by way of the scanner's millimetres."""
    inside = np.linalg.inv(volume.affine) @ LPS @ [*index, 1]
    return volume.get_fdata()[tuple(np.rint(inside[:3]).astype(int))]


def test_volumes_keep_their_place_and_their_values(scene):
    found, case = scene
    (image,) = found.images
    scan, original = opened(image.file), nibabel.load(case.images["flair"]).get_fdata()
    overlays = {each.name: opened(each.file) for each in found.overlays}
    assert list(overlays) == ["mask", "reference", "probability", "uncertainty"]
    assert scan.shape != original.shape  # cut to the brain
    for index in np.argwhere(BRAIN)[::97]:
        assert at(scan, index) == pytest.approx(original[tuple(index)], abs=(image.most - image.least) / 255)
        assert at(overlays["mask"], index) == TUMOUR[tuple(index)] == at(overlays["reference"], index)
        assert at(overlays["probability"], index) == pytest.approx(0.8 if TUMOUR[tuple(index)] else 0.1, abs=1 / 255)


def test_a_map_is_clear_where_it_says_nothing_and_its_scale_is_stated(scene):
    (probability,) = [each for each in scene[0].overlays if each.name == "probability"]
    assert (probability.low, probability.high) == (OUTSIDE, 1.0)
    assert not probability.of_labels and not probability.shown


def test_without_scans_there_are_masks_and_maps(tmp_path):
    study = Study(tmp_path).add("a").predict("a", probability=TUMOUR * 0.9)
    found = scene_of(read_result(study.predictions / "a", "a"), None)
    assert found.images == [] and [each.name for each in found.overlays] == ["mask", "probability", "uncertainty"]


@pytest.mark.parametrize(
    ("largest", "end"), [(0.06, 0.08), (0.25, 0.25), (0.081, 0.1), (3.2, 4.0), (1.0, 1.0), (0.0, 1.0)]
)
def test_a_scale_ends_at_the_next_round_number(largest, end):
    assert round_up(largest) == pytest.approx(end)
