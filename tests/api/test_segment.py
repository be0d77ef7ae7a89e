"""From Python: every line of docs/python.md about what `volume` may be, and the options that are Python's own."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import medseg_diff
from medseg_diff.data.reading import read_labels, read_map
from medseg_diff.errors import ImageError, Problems, UsageError
from medseg_diff.tasks.apply import sharing
from medseg_diff.tasks.apply.segment import segment as on_command_line

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
CHANNELS = ["t1", "t1ce", "t2", "flair"]


def rows_under(title):
    """The code in the first cells of the tables of a section."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    return [row for row in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE) if row not in ("volume", "result.…")]


@pytest.fixture(scope="module")
def model(trained):
    return medseg_diff.load_model(trained.folder, device="cpu")


@pytest.fixture(scope="module")
def written(patient, trained, tmp_path_factory):
    """The folder that the command line writes for the patient."""
    out = tmp_path_factory.mktemp("written")
    (folder,) = on_command_line([str(patient.place / "patient")], out=out, model=trained.folder, device="cpu")
    return folder


def test_the_page_has_rows():
    assert len(rows_under("What `volume` may be")) == 7 and len(rows_under("What comes back")) == 24


@pytest.mark.parametrize("row", rows_under("What `volume` may be"))
def test_a_volume_may_be(row, patient, model, written, monkeypatch):
    monkeypatch.chdir(patient.place)
    options = {"channels": CHANNELS} if row == "image" else {}
    found = medseg_diff.segment(eval(row, dict(patient.names)), model=model, **options)
    assert isinstance(found, list) == row.startswith("[")
    for each in found if isinstance(found, list) else [found]:
        assert each.name.removesuffix("_2") == ("case_1" if row == "image" else "patient")
        assert each.folder is None
        if each.name == "patient":  # the noise belongs to the name
            assert np.array_equal(each.mask, read_labels(written / "mask.nii.gz").voxels)
            assert np.array_equal(each.probability, read_map(written / "probability.nii.gz").voxels)
        assert np.allclose(each.affine, patient.names["t1"].affine, atol=1e-4)
        assert each.mask.shape == patient.names["t1"].shape
    assert sorted(path.name for path in patient.place.iterdir()) == ["patient"]


SHAPES = {
    "result.mask": np.uint8,
    'result.mask_of("whole_tumour")': np.bool_,
    "result.probability": np.float32,
    "result.variance_between": np.float32,
    "result.variance_within": np.float32,
    "result.uncertainty": np.float32,
    'result.array("mask")': np.uint8,
}


@pytest.fixture(scope="module")
def result(patient, model):
    return medseg_diff.segment(patient.place / "patient", model=model)


OF_SEGMENTATIONS = [*rows_under("What comes back")[:9], *rows_under("What comes back")[15:]]


@pytest.mark.parametrize("row", OF_SEGMENTATIONS)
def test_a_segmentation_has(row, result, written, patient, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, facts = eval(row, {"result": result}), json.loads((written / "case.json").read_text())
    if row in SHAPES:
        assert found.dtype == SHAPES[row] and found.shape == patient.names["t1"].shape
        if found.dtype == np.float32:
            kind = row.removeprefix("result.")
            assert np.array_equal(found, read_map(written / f"{kind}.nii.gz").voxels)
        return
    seconds = {"seconds": facts.pop("seconds")}
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    check = {
        "result.labels": lambda: found == {1: "whole_tumour"},
        "result.volume_ml": lambda: found == {"whole_tumour": facts["volume_ml"]["whole_tumour"]["mask"]},
        "result.interval_ml": lambda: found == {"whole_tumour": None},
        "result.name": lambda: found == "patient",
        "result.affine": lambda: np.allclose(found, patient.names["t1"].affine, atol=1e-4),
        "result.warnings": lambda: found == tuple(facts["warnings"]),
        "result.facts": lambda: {**found, **seconds} == {**facts, **seconds},
        "result.files": lambda: set(found) == files and found["mask.nii.gz"] == (written / "mask.nii.gz").read_bytes(),
        'result.image("mask")': lambda: np.array_equal(found.get_fdata(), result.mask),
        "result.folder": lambda: found is None,
        'result.save("saved")': lambda: {path.name for path in Path("saved/patient").iterdir()} == files,
    }[row]
    assert check()


def test_out_holds_what_the_command_line_writes(patient, model, written, tmp_path):
    result = medseg_diff.segment(patient.place / "patient", model=model, out=tmp_path)
    assert result.folder == tmp_path / "patient"
    for path in written.iterdir():
        if path.name != "case.json":
            assert (result.folder / path.name).read_bytes() == path.read_bytes(), path.name
    one, other = (json.loads((folder / "case.json").read_text()) for folder in (written, result.folder))
    assert one.keys() == other.keys() and one["inputs"] == other["inputs"]
    assert one["source"] == other["source"] == f"{patient.place.name}/patient"
    again = medseg_diff.segment(patient.place / "patient", model=model, out=str(tmp_path))
    assert again.facts == result.facts  # seconds too: it was only read


def test_of_images_from_memory_nothing_tells_where_they_lay(patient, model, tmp_path):
    images = {channel: patient.names[channel] for channel in CHANNELS}
    first = medseg_diff.segment(images, model=model, out=tmp_path)
    assert "source" not in first.facts and first.name == "patient"
    assert medseg_diff.segment(images, model=model, out=tmp_path).facts == first.facts
    assert str(patient.place) not in (first.folder / "case.json").read_text()


def test_a_table_gives_a_list(trained, model, tmp_path):
    results = medseg_diff.segment(data=trained.table, split="test", model=model)
    assert len(results) == 2 and all(each.folder is None for each in results)
    (half,) = medseg_diff.segment(data=str(trained.table), split="test", shard=(2, 2), model=model)
    assert half.name == results[1].name and np.array_equal(half.mask, results[1].mask)


def test_words_of_the_command_line_are_one_case(patient, model, result):
    words = [f"{channel}={patient.place / 'patient' / channel}.nii.gz" for channel in CHANNELS]
    found = medseg_diff.segment(volumes=words, model=model)
    assert found.name == "patient" and np.array_equal(found.mask, result.mask)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "one of --volume and --data is needed"),
        ({"volume": []}, "volume is an empty list"),
        ({"volume": "patient", "data": "cases.csv"}, "three ways to name cases"),
        ({"volume": "patient", "split": "test"}, "--split is for the rows of a table"),
        ({"volume": "patient", "shard": (1, 2)}, "shard is for several cases"),
        ({"volume": "patient", "keep_going": True}, "without out nothing is left"),
        ({"volume": np.zeros((4, 4, 4))}, r"of type ndarray. Fix: give it an affine"),
        ({"volume": 7}, "of type int"),
        ({"volume": {}}, "empty dict"),
        ({"volume": "patient", "device": "cpu"}, "is already loaded on cpu. Fix: pass device"),
    ],
)
def test_what_makes_no_sense_is_said(options, said, model):
    with pytest.raises(UsageError, match=said):
        medseg_diff.segment(model=model, **options)


def test_all_that_is_wrong_with_a_list_is_said_at_once(patient, model):
    with pytest.raises(Problems) as caught:
        medseg_diff.segment([patient.place / "nobody", {"tone": patient.names["t1"]}], model=model)
    first, second = caught.value.lines
    assert "nobody: no such file or folder" in first and "`tone` is not a channel of the model" in second


def test_a_4d_image_without_names_is_refused(patient, model):
    with pytest.raises(ImageError, match="its channels are only numbered"):
        medseg_diff.segment(patient.names["image"], model=model)


def test_another_process_at_work_is_said(patient, model, tmp_path, monkeypatch):
    monkeypatch.setattr("medseg_diff.tasks.apply.folder.Results.work_through", lambda *_: None)
    with pytest.raises(UsageError, match="another process is working on patient"):
        medseg_diff.segment(patient.place / "patient", model=model, out=tmp_path)


@pytest.fixture
def one_worker(monkeypatch):
    """A worker that is sent its work as one in another process would be."""
    sent = []

    def shared(opened, pieces, _):
        sent.append(len(pieces))
        work = pickle.loads(pickle.dumps(opened))()
        yield from ((piece, work(piece, 0)) for piece in pieces)

    monkeypatch.setattr(sharing, "shared", shared)
    monkeypatch.setattr("medseg_diff.tasks.options.check_sharing", lambda *_: None)
    return sent


def test_workers_give_what_one_process_gives(patient, trained, result, tmp_path, one_worker):
    options = {"model": trained.folder, "device": "cpu", "out": tmp_path, "cluster": "ray"}
    (found,) = medseg_diff.segment([patient.place / "patient"], **options)
    assert one_worker == [1] and np.array_equal(found.mask, result.mask)


def test_it_starts_from_masks_as_the_command_line_does_and_so_do_workers(patient, model, trained, tmp_path, one_worker):
    scan, masks = patient.place / "patient", tmp_path / "masks"
    masks.mkdir()
    shutil.copy(scan / "seg.nii.gz", masks / "patient.nii.gz")
    words = {"start_from": masks, "strength": 0.3}
    (folder,) = on_command_line([str(scan)], out=tmp_path / "a", model=trained.folder, device="cpu", **words)
    found = medseg_diff.segment(scan, model=model, **words | {"start_from": str(masks)})
    assert np.array_equal(found.probability, read_map(folder / "probability.nii.gz").voxels)
    assert found.facts["start_from"] == "masks" and found.facts["strength"] == 0.3
    options = {"model": trained.folder, "device": "cpu", "out": tmp_path / "b", "cluster": "ray"}
    (shared,) = medseg_diff.segment([scan], **options, **words)
    assert one_worker == [1] and np.array_equal(shared.probability, found.probability)
    with pytest.raises(UsageError, match="--strength says how far"):
        medseg_diff.segment(scan, model=model, strength=0.3)


def test_workers_need_files_and_a_folder(patient, model, trained, tmp_path, one_worker):
    images = {channel: patient.names[channel] for channel in CHANNELS}
    for options in ({"volume": images, "out": tmp_path}, {"volume": patient.place / "patient"}):
        with pytest.raises(UsageError, match="workers need scans that all of them can read"):
            medseg_diff.segment(**options, model=trained.folder, cluster="ray")
    with pytest.raises(UsageError, match=r"workers open models themselves. Fix: name its folder"):
        medseg_diff.segment(patient.place / "patient", model=model, out=tmp_path, cluster="ray")
