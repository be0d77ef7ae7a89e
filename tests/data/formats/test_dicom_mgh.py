"""DICOM files of several frames: their voxels where they lie, and a word where nobody can be sure of that."""

import numpy as np
import pytest

pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from medseg_diff.data.formats.dicom_series import read_series  # noqa: E402
from medseg_diff.data.geometry import axes_of, reoriented, spacing_of  # noqa: E402
from medseg_diff.data.reading import read_volume  # noqa: E402
from medseg_diff.errors import ImageError  # noqa: E402
from tests.dicom_series import sources_of, write_series  # noqa: E402

VOXELS = np.random.default_rng(3).integers(1, 1000, (5, 7, 11)).astype(np.uint16)


def in_one_file(folder, **options):
    """The series as one file."""
    sources = sources_of(write_series(folder / "series", VOXELS, **options))
    whole = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        [sources[place] for place in sorted(sources, key=lambda place: place[2])],
        series_instance_uid="1.2.9",
        series_number=9,
        sop_instance_uid="1.2.9.1",
        instance_number=1,
    )
    (folder / "whole").mkdir()
    whole.save_as(folder / "whole" / "whole.dcm")
    return folder / "whole"


def test_frames_at_even_distances(tmp_path):
    volume, series = read_volume(in_one_file(tmp_path)), read_volume(tmp_path / "series")
    np.testing.assert_allclose(spacing_of(volume.affine), (0.9, 1.2, 3.0), rtol=1e-5)
    volume = reoriented(volume, axes_of(series.affine))  # the frames may be stored from the top
    np.testing.assert_allclose(volume.affine, series.affine, atol=1e-4)
    np.testing.assert_array_equal(volume.voxels, series.voxels)
    assert not [warning for warning in volume.warnings if "1×1×1" in warning]


def test_frames_at_uneven_distances_are_doubtful_and_get_no_object(tmp_path):
    folder = in_one_file(tmp_path, heights=[0, 3, 6.2, 9, 12.1])
    volume = read_volume(folder)
    assert "one file of several slices, read with voxels of 1×1×1 mm: check the spacing" in volume.warnings
    with pytest.raises(ImageError, match="are not on the grid that was read"):
        read_series(folder, volume.affine, volume.shape)


def test_slices_of_a_tilted_gantry_lie_where_their_headers_say(tmp_path):
    voxels = np.arange(12 * 20 * 24, dtype=np.uint16).reshape(12, 20, 24)
    write_series(tmp_path / "upright", voxels)
    write_series(tmp_path / "tilted", voxels, shift=1.5)
    upright, tilted = (read_volume(tmp_path / name) for name in ("upright", "tilted"))
    assert not upright.warnings and any("sheared" in warning for warning in tilted.warnings)
    assert np.array_equal(upright.voxels, tilted.voxels)
    moved = (tilted.affine - upright.affine) @ [0, 0, 11, 1]  # of the last slice, down its columns: to the back
    assert moved[:3] == pytest.approx([0, -11 * 1.5, 0], abs=1e-3)
