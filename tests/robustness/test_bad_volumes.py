"""What `segment --volume`, `evaluate` and training find wrong with what they are given: told before anything is written."""

import json
import os
import shutil

import nibabel
import numpy as np
import pytest

from tests.made import facts_of

CHANNELS = ("t1", "t1ce", "t2", "flair")
SHAPE = (12, 13, 10)


def scan(seed, shape=SHAPE, affine=None):
    voxels = np.zeros(shape, np.float32)
    inside = tuple(slice(1, -1) for _ in shape)
    voxels[inside] = np.random.default_rng(seed).random(voxels[inside].shape, dtype=np.float32) + 1
    return nibabel.Nifti1Image(voxels, np.diag([5.0, 5, 5, 1]) if affine is None else affine)


def mask(*labels):
    voxels = np.zeros(SHAPE, np.uint8)
    for number, label in enumerate(labels):
        voxels[3 + number : 6, 3:8, 3:7] = label
    return nibabel.Nifti1Image(voxels, np.diag([5.0, 5, 5, 1]))


def flat(value):
    return nibabel.Nifti1Image(np.full(SHAPE, value, np.float32), np.diag([5.0, 5, 5, 1]))


@pytest.fixture
def case(tmp_path):
    """The folder of a sound case."""
    folder = tmp_path / "case"
    folder.mkdir()
    for number, channel in enumerate(CHANNELS):
        (folder / f"{channel}.nii").write_bytes(scan(number).to_bytes())
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def replaced(name, image):
    return lambda folder: (folder / name).write_bytes(image.to_bytes())


def one_file(folder):
    """Only a 4D file of the wrong number of volumes."""
    voxels = np.stack([np.asarray(scan(n).dataobj) for n in range(3)], -1)
    for path in folder.iterdir():
        path.unlink()
    (folder / "stack.nii").write_bytes(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes())


def named(damage, *words):
    """The same beside a dataset.json."""

    def change(folder):
        damage(folder)
        (folder / "dataset.json").write_text(json.dumps({"modality": dict(enumerate(words))}))

    return change


BAD = {
    "gone": (shutil.rmtree, 3, "no such file or folder"),
    "empty folder": (lambda f: [p.unlink() for p in f.iterdir()], 3, "case: is empty"),
    "a channel missing": (lambda f: (f / "t2.nii").unlink(), 3, "t2 not found"),
    "a channel twice": (lambda f: shutil.copy(f / "t2.nii", f / "x_t2.nii"), 3, "both look like t2"),
    "a channel cut": (lambda f: cut(f / "flair.nii"), 3, "/flair] flair.nii: is cut off"),
    "a channel empty": (lambda f: (f / "t1.nii").write_bytes(b""), 3, "[case/t1] t1.nii: is empty"),
    "a channel of text": (lambda f: (f / "t1.nii").write_text("hello"), 3, "not an image in a known format"),
    "a channel of NaN": (replaced("t1.nii", flat(np.nan)), 3, "finite"),
    "a constant channel": (replaced("t1ce.nii", flat(1)), 3, "is constant"),
    "another grid": (replaced("t2.nii", scan(2, (12, 13, 11))), 3, "not on the grid of t1"),
    "moved": (replaced("t2.nii", scan(2, affine=np.diag([5.0, 5, 5.1, 1]))), 3, "corners up to"),
    "4D without names": (one_file, 3, "stack.nii: its channels are only numbered"),
    "4D of too few": (named(one_file, "T1", "T1ce", "T2"), 3, "flair not found"),
    "4D of others": (named(one_file, "MRI", "CT", "T2"), 3, "names MRI, CT, T2"),
    "4D of fewer": (named(one_file, "T1", "T2"), 3, "holds 3 volumes, but dataset.json of case names T1, T2"),
    "4D of unclear names": (named(one_file), 3, "dataset.json: its modality do not name"),
}  # fmt: skip


@pytest.mark.parametrize("how", BAD)
def test_a_bad_volume_is_refused(refused, run_folder, case, tmp_path, how):
    damage, code, said = BAD[how]
    damage(case)
    volume = case / "stack.nii" if how.startswith("4D") else case
    words = ("segment", "--volume", volume, "--model", run_folder, "--out", tmp_path / "out", "--device", "cpu")
    refused(code, *words, says=said)


def test_words_that_make_no_case(refused, run_folder, case, tmp_path):
    words = ("segment", "--model", run_folder, "--out", tmp_path / "out", "--device", "cpu")
    t1, link = case / "t1.nii", case / "other.nii"
    link.symlink_to(t1)
    each = [part for channel in CHANNELS for part in ("--volume", f"{channel}={case / channel}.nii")]
    refused(2, *words, *each[:-2], says="no file is given for flair")
    refused(2, *words, *each, "--volume", f"t1={t1}", says="channel t1 is given twice")
    refused(2, *words, *each[:-1], f"flair={link}", says="one file is given for two channels")
    refused(2, *words, *each[:-1], f"pet={t1}", says="`pet` is not a channel of the model")
    refused(3, *words, *each[:-1], "flair=gone.nii", says="no such file")
    refused(3, *words, "--volume", tmp_path / "gone", says="no such file or folder")
    os.mkfifo(case / "pipe.nii")
    refused(3, *words, *each[:-1], f"flair={case / 'pipe.nii'}", says="not a regular file")


WORDS = {
    "members": (["--members", "1000000000"], "less than or equal to 1000"),
    "steps": (["--steps", "1000000000"], "less than or equal to 100000"),
    "steps beyond its schedule": (["--steps", "50000"], "but the schedule has"),
    "batch": (["--network-batch", "1000000000"], "less than or equal to 4096"),
    "no members": (["--members", "0"], "'--members'"),
    "device": (["--device", "tpu"], "no device is called `tpu`"),
    "precision": (["--precision", "fp8"], "unknown precision `fp8`"),
    "noise": (["--noise", "pink"], "unknown noise `pink`"),
    "fusion": (["--fusion", "median"], "unknown fusion `median`"),
    "shard": (["--shard", "3/2"], "shard 3 of 2 does not exist"),
    "no shard": (["--shard", "0/0"], "shard 0 of 0 does not exist"),
    "registered model": (["--model", "models:/../../etc/passwd"], "does not name a model"),
    "no volume": (["--volume", " "], "--volume"),
}


@pytest.mark.parametrize("how", WORDS)
def test_a_number_or_word_beyond_sense_is_refused(refused, run_folder, case, tmp_path, how):
    extra, said = WORDS[how]
    words = ("segment", "--model", run_folder, "--out", tmp_path / "out", "--device", "cpu")
    volume = () if how == "no volume" else ("--volume", case)
    refused(2, *words, *volume, *extra, says=said)


PREDICTIONS = {
    "mask cut": (lambda f: cut(f / "mask.nii.gz"), 3, "mask.nii.gz: is"),
    "mask gone": (lambda f: (f / "mask.nii.gz").unlink(), 2, "no complete result"),
    "mask of fractions": (replaced("mask.nii.gz", scan(0)), 3, "not whole numbers"),
    "mask elsewhere": (replaced("mask.nii.gz", nibabel.Nifti1Image(np.eye(3, dtype=np.uint8), np.eye(4))), 3, "grid"),
    "no word": (lambda f: (f / "case.json").write_text(""), 2, "case.json"),
    "too deep": (lambda f: (f / "case.json").write_text("[" * 10**5), 2, ""),
    "no regions": (lambda f: (f / "case.json").write_text('{"regions": {}}'), 2, "does not name its regions"),
    "a map beyond one": (replaced("probability.nii.gz", scan(0)), 3, "values outside 0 to 1"),
    "a map of NaN": (replaced("probability.nii.gz", flat(np.nan)), 3, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("how", PREDICTIONS)
def test_bad_predictions_are_refused(refused, case, tmp_path, how):
    damage, code, said = PREDICTIONS[how]
    folder = tmp_path / "predicted" / "a"
    folder.mkdir(parents=True)
    (folder / "mask.nii.gz").write_bytes(mask(1).to_bytes())
    (folder / "case.json").write_text(json.dumps(facts_of({"tumour": [1]})))
    damage(folder)
    (tmp_path / "seg.nii").write_bytes(mask(1).to_bytes())
    (tmp_path / "cases.csv").write_text("case,t1,seg\na,case/t1.nii,seg.nii\n")
    refused(code, "evaluate", "--predictions", tmp_path / "predicted", "--data", tmp_path / "cases.csv", says=said)


@pytest.fixture
def cases(case, tmp_path):
    """A table of the sound case with a reference of label 1."""
    (tmp_path / "seg.nii").write_bytes(mask(1).to_bytes())
    cells = [f"case/{channel}.nii" for channel in CHANNELS]
    (tmp_path / "cases.csv").write_text(f"case,{','.join(CHANNELS)},seg\na,{','.join(cells)},seg.nii\n")
    return tmp_path / "cases.csv"


@pytest.mark.parametrize(
    "how", ["a channel cut", "a channel of NaN", "another grid", "an unknown label", "no reference"]
)
def test_training_on_a_bad_case_leaves_no_run(call, cases, tmp_path, how):
    code, said = 3, BAD.get(how, ("", 3, ""))[2]
    if how in BAD:
        BAD[how][0](tmp_path / "case")
    elif how == "an unknown label":
        (tmp_path / "seg.nii").write_bytes(mask(1, 7).to_bytes())
        said = "holds the label 7, which no region of the recipe names"
    else:
        cases.write_text(cases.read_text().replace(",seg.nii", ","))
        code, said = 2, "no training case has a reference"
    before = set(tmp_path.rglob("*"))
    words = ("train-seg", "--data", cases, "--config", "quick/phantom", "--runs", tmp_path / "runs", "--device", "cpu")
    got, out, err = call(*words, "training.steps=1", "view.size=[16,16]")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (got, out) == (code, "") and "Traceback" not in err and said in lines[0] and "Fix: " in lines[0], err
    left = {path.relative_to(tmp_path).parts[:2] for path in set(tmp_path.rglob("*")) - before}
    assert left <= {("runs",), ("runs", "cache")}, left
