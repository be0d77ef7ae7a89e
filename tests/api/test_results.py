"""Results as Python sees them, read from folders that were made by hand."""

import json

import numpy as np
import pytest

import medseg_diff
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.tables.case import Case
from medseg_diff.errors import ImageError, UsageError
from medseg_diff.tasks.apply.case_folder import tell

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
REGIONS = {"whole": [1, 2], "core": [1]}
LABELS = [{"label": 1, "name": "core", "regions": ["whole", "core"]}, {"label": 2, "name": "rim", "regions": ["whole"]}]
VOLUMES = {
    "whole": {"mask": 45.3, "low": 38.1, "high": 53.9, "level": 0.9, "calibrated_on": 12},
    "core": {
        "mask": 5.0,
        "low": None,
        "high": None,
        "level": None,
        "calibrated_on": 0,
        "members": {"low": 4.0, "high": 6},
    },
}


@pytest.fixture
def folder(tmp_path):
    """OUT/CASE of two regions."""
    folder = tmp_path / "out" / "case"
    mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3
    write_volume(folder / "mask.nii.gz", mask, AFFINE)
    for place, region in enumerate(REGIONS):
        for kind in ("probability", "uncertainty"):
            write_volume(folder / f"{kind}_{region}.nii.gz", np.full((2, 3, 4), place / 4, np.float32), AFFINE)
    presence = {"whole": {"probability": 0.98}, "core": {"probability": None}}
    facts = {"task": "segment", "regions": REGIONS, "mask_labels": LABELS, "volume_ml": VOLUMES, "warnings": ["odd"]}
    tell(folder, Case("case", "case"), "case", None, {**facts, "lesion_presence": presence, "promises_apply": True})
    return folder


@pytest.fixture
def result(folder):
    return medseg_diff.SegmentationResult.read(folder)


def test_maps_of_several_regions_are_by_region(result):
    assert result.regions == ("whole", "core") and list(result.probability) == ["whole", "core"]
    assert (result.uncertainty["core"] == 0.25).all() and result.probability["core"].shape == (2, 3, 4)
    assert result.labels == {1: "core", 2: "rim"}
    assert np.array_equal(result.mask_of("whole"), result.mask > 0)
    assert np.array_equal(result.mask_of("core"), result.mask == 1)
    assert result.volume_ml == {"whole": 45.3, "core": 5.0}
    assert result.interval_ml == {"whole": (38.1, 53.9), "core": None}
    assert np.array_equal(result.affine, AFFINE)


def test_it_shows_regions_intervals_and_warnings(result):
    assert repr(result).splitlines() == [
        "SegmentationResult of case",
        "  whole: 45.3 ml, with 90% between 38.1 and 53.9; a lesion with probability 0.98",
        "  core: 5.0 ml; its members range from 4.0 to 6.0; not calibrated (0 patients)",
        "  warning: odd",
    ]


def test_what_is_not_there_is_said(result, tmp_path):
    with pytest.raises(UsageError, match=r"this case has no `variance_models`. Fix: ask for one of mask, prob"):
        result.image("variance_models")
    with pytest.raises(UsageError, match="there is no region `rim`"):
        result.mask_of("rim")
    with pytest.raises(UsageError, match="holds no results of `anomaly`"):
        medseg_diff.AnomalyResult.read(result.folder)
    with pytest.raises(UsageError, match="holds no results of `segment`"):
        medseg_diff.SegmentationResult.read(tmp_path)


def test_arrays_are_read_when_they_are_asked_for(result, folder):
    assert result.mask is result.mask
    (folder / "probability_core.nii.gz").unlink()
    with pytest.raises(ImageError, match=r"probability_core.nii.gz: cannot be read"):
        _ = result.probability
    (folder / "uncertainty_core.nii.gz").write_bytes((folder / "mask.nii.gz").read_bytes())
    with pytest.raises(ImageError, match="has changed since it was written"):
        _ = result.uncertainty


def test_in_memory_it_needs_no_folder(result, folder):
    kept = result.in_memory()
    for path in folder.iterdir():
        path.unlink()
    assert kept.folder is None and (kept.probability["core"] == 0.25).all()


def test_what_lies_outside_of_the_folder_is_not_read(folder, tmp_path):
    (tmp_path / "secret.nii.gz").write_bytes(b"secret")
    facts = json.loads((folder / "case.json").read_text())
    facts["outputs"] |= {"../../secret.nii.gz": "0"}
    (folder / "case.json").write_text(json.dumps(facts))
    assert "../../secret.nii.gz" not in medseg_diff.SegmentationResult.read(folder).files


def test_it_is_saved_as_it_was_written(result, folder, tmp_path):
    place = result.save(tmp_path / "saved")
    assert place == tmp_path / "saved" / "case"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in place.iterdir()} == files
    assert (tmp_path / "saved" / "summary.csv").is_file()
    result.save(tmp_path / "saved")  # the same once more
    (place / "case.json").write_text('{"task": "segment"}')
    with pytest.raises(UsageError, match="is there already, with other results"):
        result.save(tmp_path / "saved")
