"""Real files that break naive readers: each is read right or refused with its reason, and none goes unmentioned."""

from itertools import pairwise

import nibabel
import numpy as np
import pytest

from medseg_diff.data.geometry import Volume, axes_of, reoriented, same_grid
from medseg_diff.data.reading import count_volumes, read_case, read_volume, read_volumes
from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import ImageError
from tests.scans import SCANS, needs_scans

AWKWARD = SCANS / "awkward"
pytestmark = [
    *needs_scans("awkward"),
]

REFUSED = {
    "6_ax_asc_35sl.nii": "several volumes (64×64×35×2)",
    "V1.nii.gz": "several volumes (84×92×56×3)",
    "papaya_series.nii.gz": "several volumes",
    "complex.nii.gz": "complex",
    "ct_perfusion.nii.gz": "RGB",
    "ras.img": "give its .hdr",
}
# Where its axes point, and what is said of it.
READ = {
    "minimal.nii.gz": ("LAS", ["left and right are a guess"]),
    "papaya_zstat1.nii.gz": ("RAS", ["4D, but with only one volume"]),
    "ras.hdr": ("RAS", []),
    "shear.nii.gz": ("RAS", ["sform and qform differ", "sheared"]),
    "strokez.nii.gz": ("LAS", []),
    "brainmask.mgz": ("LIA", []),
    "mha.mha": ("LAS", []),
}


def test_every_file_is_known_here():
    assert {path.name for path in AWKWARD.iterdir() if path.is_file()} == {*REFUSED, *READ}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_one_volume_is_refused(name):
    with pytest.raises(ImageError) as caught:
        read_volume(AWKWARD / name)
    assert REFUSED[name] in caught.value.line and "Fix: " in caught.value.line


@pytest.mark.parametrize("name", READ)
def test_what_is_whole_is_read_right(name):
    axes, said = READ[name]
    volume = read_volume(AWKWARD / name)
    assert axes_of(volume.affine) == axes and len(volume.warnings) == len(said)
    assert all(words in warning for words, warning in zip(said, volume.warnings, strict=True))
    if name.endswith(".mha"):
        import SimpleITK

        expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(AWKWARD / name))).T
        np.testing.assert_array_equal(volume.voxels, expected.astype(np.float32))
    else:
        expected = nibabel.load(AWKWARD / name)
        np.testing.assert_allclose(volume.voxels, expected.get_fdata().reshape(volume.shape), rtol=1e-6)
        np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)


def test_two_volumes_in_one_file_are_two_channels():
    path = AWKWARD / "6_ax_asc_35sl.nii"
    assert count_volumes(path) == 2
    parts, expected = read_volumes(path), np.asarray(nibabel.load(path).dataobj)
    for number, part in enumerate(parts):
        np.testing.assert_allclose(part.voxels, expected[..., number], rtol=1e-6)


def test_nine_orientations_of_one_head_are_one_volume():
    heads = [reoriented(read_volume(path), "RAS") for path in sorted((AWKWARD / "nifti_space").iterdir())]
    assert len(heads) == 9
    for head in heads[1:]:
        np.testing.assert_array_equal(head.voxels, heads[0].voxels)
        assert same_grid(head, heads[0])


def test_any_two_of_the_nine_are_channels_of_one_case():
    paths = sorted((AWKWARD / "nifti_space").iterdir())
    for first, second in pairwise(paths):
        images = read_case(Case("head", "head", images={"t1": first, "t2": second}))
        np.testing.assert_array_equal(images.image[0], images.image[1])
        assert same_grid(Volume(images.image[1], images.affine), read_volume(first))
