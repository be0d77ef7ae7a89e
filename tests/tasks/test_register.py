"""`prepare --register`: channels come onto one, masks go with them, inputs stay, and what is done stays done."""

import csv
import json
import logging
import math

import numpy as np
import pytest
from scipy import ndimage

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import Volume, same_grid
from medseg_diff.data.reading import read_case, read_labels, read_volume
from medseg_diff.data.registration import Alignment
from medseg_diff.data.tables.manifest import read_manifest, write_manifest
from medseg_diff.errors import ManifestError, MedsegError, UsageError
from medseg_diff.tasks import register
from medseg_diff.tasks.prepare import prepare

ANGLE = math.radians(6)
MOTION = np.eye(4)
MOTION[:2, :2] = [[math.cos(ANGLE), -math.sin(ANGLE)], [math.sin(ANGLE), math.cos(ANGLE)]]
MOTION[:3, 3] = (9.0, -4.0, 6.0)


def moved(path, motion, every=1):
    """Write an image anew, after its patient moved; of `every` so manieth slice."""
    image = read_labels(path) if path.name.startswith("seg") else read_volume(path)
    thick = np.diag([1, 1, every, 1.0])
    write_volume(path, image.voxels[:, :, ::every], motion @ image.affine @ thick)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two phantoms with their twins; of the first FLAIR, its twin and the mask drawn on it moved."""
    from medseg_diff.tasks.phantom import phantom

    folder = tmp_path_factory.mktemp("study") / "scans"
    table = phantom(folder, cases=2, shape=(44, 44, 36), healthy=0.0, twins=True, seed=3)
    rows = read_manifest(table).rows()
    write_manifest(table, [{name: cell for name, cell in row.items() if "t1ce" not in name} for row in rows])
    for name in ("flair", "healthy_flair", "seg"):
        moved(folder / "phantom_0000" / f"{name}.nii.gz", MOTION)
    return folder


@pytest.fixture(scope="module")
def registered(scans):
    """The table of the registered cases, and what their folders hold."""
    before = {path: path.read_bytes() for path in scans.rglob("*") if path.is_file()}
    out = prepare(scans, source="phantom", out=scans.parent / "cases.csv", register="t1")
    assert {path: path.read_bytes() for path in scans.rglob("*") if path.is_file()} == before
    return out


def facts_of(table, case="phantom_0000"):
    return json.loads((table.parent / f"{table.stem}_registered" / case / "registration.json").read_text())


def test_every_case_lies_on_one_grid_and_its_row_is_kept(registered, scans):
    then, now = read_manifest(scans / "cases.csv").cases, read_manifest(registered).cases
    assert [(case.name, case.patient, case.split, case.covariates) for case in now] == [
        (case.name, case.patient, case.split, case.covariates) for case in then
    ]
    for case in now:
        images = read_case(case)
        assert images.warnings == () and set(images.channels) == {"t1", "t2", "flair"}
    with registered.open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first["flair"] == "cases_registered/phantom_0000/flair.nii.gz"
    assert (registered.parent / "cases_unregistered.csv").is_file()


def test_the_channel_that_moved_comes_back_with_its_mask_and_no_other_is_touched(registered, scans):
    facts = facts_of(registered)
    assert facts["to"] == "t1" and facts["warnings"] == []
    back = np.array(facts["channels"]["flair"]["matrix"]) @ MOTION
    points = np.concatenate([np.eye(3), -np.eye(3)]) * 80
    assert np.linalg.norm(points @ back[:3, :3].T + back[:3, 3] - points, axis=1).max() < 2  # of voxels of 4 mm
    assert facts["channels"]["flair"]["degrees"] == pytest.approx(6, abs=0.7)
    assert facts["channels"]["flair"]["information_after"] > facts["channels"]["flair"]["information_before"]
    case = read_manifest(registered).cases[0]
    for channel in ("t1", "t2"):
        was = read_volume(scans / case.name / f"{channel}.nii.gz")
        if channel != "t1":
            assert facts["channels"][channel]["kept"]
        np.testing.assert_array_equal(read_volume(case.images[channel]).voxels, was.voxels)
    seg, drawn = read_labels(case.seg), read_labels(scans / case.name / "seg.nii.gz")
    undone = Volume(drawn.voxels, np.linalg.inv(MOTION) @ drawn.affine)
    assert same_grid(undone, read_volume(case.images["t1"]))
    both = ((seg.voxels > 0) & (undone.voxels > 0)).sum()
    assert 2 * both / ((seg.voxels > 0).sum() + (undone.voxels > 0).sum()) > 0.85
    assert set(np.unique(seg.voxels)) <= set(np.unique(drawn.voxels))
    assert str(scans.parent) not in json.dumps(facts)


def test_a_lesion_free_twin_moves_as_its_channel_does(registered):
    case = read_manifest(registered).cases[0]
    flair, twin = (read_volume(path).voxels for path in (case.images["flair"], case.twins["flair"]))
    far = ndimage.binary_dilation(read_labels(case.seg).voxels > 0, iterations=5)
    assert np.array_equal(twin[~far], flair[~far]) and not np.array_equal(twin, flair)


def test_what_is_done_is_not_done_again(registered, scans, caplog):
    folder = registered.parent / "cases_registered"
    kept = folder / "phantom_0001" / "flair.nii.gz"
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    (folder / "phantom_0000" / "t2.nii.gz").write_bytes(b"cut")
    with pytest.raises(ManifestError, match="exists already"):
        prepare(scans, source="phantom", out=registered, register="t1")
    table, picture = registered.read_bytes(), (folder / "phantom_0000" / "registration.png").read_bytes()
    registered.unlink()  # as where the first call was killed
    with caplog.at_level(logging.INFO):
        prepare(scans, source="phantom", out=registered, register="t1")
    assert registered.read_bytes() == table and "1 case was already registered" in caplog.text
    assert kept.stat().st_mtime_ns == stamps[kept]
    assert read_volume(folder / "phantom_0000" / "t2.nii.gz").voxels.any()
    assert (folder / "phantom_0000" / "registration.png").read_bytes() == picture
    assert not list(folder.rglob(".*"))


def test_a_bad_case_is_named_and_the_others_are_done(scans, tmp_path):
    from shutil import copytree

    copytree(scans, tmp_path / "scans")
    flair = tmp_path / "scans/phantom_0000/flair.nii.gz"
    sound = flair.read_bytes()
    flair.write_bytes(sound[:-50])
    out = tmp_path / "cases.csv"
    with pytest.raises(MedsegError, match=r"\[phantom_0000/flair\] flair.nii.gz: "):
        prepare(tmp_path / "scans", source="phantom", out=out, register="t1")
    assert not out.exists() and facts_of(out, "phantom_0001")["outputs"]
    assert not (tmp_path / "cases_registered/phantom_0000/registration.json").exists()
    flair.write_bytes(sound)
    moved(flair, np.array([[1.0, 0, 0, 60], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), every=2)
    moved(tmp_path / "scans/phantom_0000/seg.nii.gz", np.eye(4), every=4)
    prepare(tmp_path / "scans", source="phantom", out=out, register="t1")
    far, alone = facts_of(out)["warnings"]
    assert far.startswith("flair: moved by 6") and "look at registration.png" in far
    assert alone == "seg: is on no channel's grid, and is left at the scanner's position"
    assert read_case(read_manifest(out).cases[0]).warnings == ()


def test_a_search_that_ends_without_a_better_fit_is_not_followed(scans, tmp_path, monkeypatch, caplog):
    def misled(image, fixed):
        return Alignment(MOTION, before=0.5, after=0.4, start="scanner", middle=np.zeros(3))

    monkeypatch.setattr(register, "align", misled)
    out = prepare(scans, source="phantom", out=tmp_path / "cases.csv", register="t2")
    (case, _), facts = read_manifest(out).cases, facts_of(out)
    assert facts["channels"]["t1"]["kept"] and facts["channels"]["t1"]["surface_mm"] > 10
    assert facts["channels"]["t1"]["matrix"] == np.eye(4).tolist()
    np.testing.assert_array_equal(
        read_volume(case.images["t1"]).voxels, read_volume(scans / case.name / "t1.nii.gz").voxels
    )
    assert "[phantom_0000] t1: the search ended 1" in caplog.text and "left as it was; look at" in caplog.text


def test_a_mask_on_the_grid_of_several_channels_is_said_to_be(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(register, "align", lambda image, fixed: Alignment(MOTION, 0.4, 0.5, "scanner", np.zeros(3)))
    out = prepare(scans, source="phantom", out=tmp_path / "cases.csv", register="t1")
    said = facts_of(out, "phantom_0001")["warnings"]
    assert said == ["seg: is on the grid of t1 and of t2, flair: assumed to be drawn on t1"]
    case = read_manifest(out).cases[1]
    np.testing.assert_array_equal(read_labels(case.seg).voxels, read_labels(scans / case.name / "seg.nii.gz").voxels)


def test_registered_images_are_never_written_over_those_that_they_come_from(registered, tmp_path):
    before = {path: path.read_bytes() for path in registered.parent.glob("cases_registered/*/*")}
    with pytest.raises(UsageError, match="the images are where the registered ones would go"):
        register.register_cases(registered, registered, to="t1")
    assert {path: path.read_bytes() for path in registered.parent.glob("cases_registered/*/*")} == before


def test_what_is_refused(scans, tmp_path):
    with pytest.raises(UsageError, match="choose an --out outside of scans"):
        prepare(scans, source="phantom", out=scans / "new.csv", register="t1")
    (tmp_path / "all_registered" / "scans").mkdir(parents=True)
    with pytest.raises(UsageError, match="would be among the scans"):
        prepare(tmp_path / "all_registered" / "scans", source="phantom", out=tmp_path / "all.csv", register="t1")
    with pytest.raises(MedsegError) as caught:
        prepare(scans, source="phantom", out=tmp_path / "cases.csv", register="dwi")
    assert len(caught.value.lines) == 2 and "has no dwi to register to (it has t1, t2, flair)" in str(caught.value)
