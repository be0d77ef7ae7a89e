"""Every bad run folder, weights file or archive: exit code 4 in one line that names the file, before anything is written."""

import json
import os
import shutil
import struct
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.trained import open_run
from medseg_diff.run import Run


@pytest.fixture
def model(run_folder, tmp_path):
    """A copy of the run to damage."""
    shutil.copytree(run_folder, tmp_path / "tiny")
    return tmp_path / "tiny"


def weights(model):
    return model / "weights" / "best.safetensors"


def rewritten(model, change):
    """The weights changed by `change(state)` and sealed again, as someone would who means it."""
    state = load_file(weights(model))
    save_file(change(state) or state, weights(model))
    Run(model).seal()


def patched(model, place, byte):
    content = bytearray(weights(model).read_bytes())
    content[place] ^= byte
    weights(model).write_bytes(content)


def resealed(model, content):
    weights(model).write_bytes(content)
    Run(model).seal()


def header_of(length, text=b"{}"):
    return struct.pack("<Q", length) + text


def noted(model, **facts):
    path = model / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def without(model, *names):
    path = model / "run.json"
    path.write_text(
        json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name not in names})
    )


def calibrated(model, then):
    """The run sealed with a calibration, which `then` damages."""
    (model / "calibration.json").write_text("{}")
    Run(model).seal()
    then(model / "calibration.json")


def recipe(model, before, after, *, seal=True):
    path = model / "recipe.yaml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    if seal:
        Run(model).seal()


def first(state):
    return next(name for name, tensor in state.items() if tensor.is_floating_point() and tensor.numel() > 4)


def spoilt(value):
    def change(state):
        state[first(state)].view(-1)[3] = value

    return change


def cast(kind):
    return lambda state: state | {first(state): state[first(state)].to(kind)}


def archived(model, kind):
    """The run as an archive, with a member that would land outside."""
    path = model.with_suffix(f".{kind}")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../../evil.txt", "x")
    else:
        with tarfile.open(path, "w") as archive:
            archive.add(model, arcname="../../evil")
    shutil.rmtree(model)
    path.rename(model)


PICKLE = b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."
BAD = {
    # the weights' bytes against their checksum
    "flipped bit": (lambda m: patched(m, -5, 1), "best.safetensors: differs from its checksum"),
    "flipped header": (lambda m: patched(m, 20, 1), "best.safetensors: differs from its checksum"),
    "cut": (lambda m: weights(m).write_bytes(weights(m).read_bytes()[:-1]), "differs from its checksum"),
    "longer": (lambda m: weights(m).write_bytes(weights(m).read_bytes() + b"x"), "differs from its checksum"),
    "empty": (lambda m: weights(m).write_bytes(b""), "differs from its checksum"),
    "gone": (lambda m: weights(m).unlink(), "best.safetensors: is missing"),
    "a folder": (lambda m: (weights(m).unlink(), weights(m).mkdir()), "best.safetensors: is missing"),
    "a pipe": (lambda m: (weights(m).unlink(), os.mkfifo(weights(m))), "best.safetensors: is missing"),
    "a link to nothing": (lambda m: (weights(m).unlink(), weights(m).symlink_to("gone")), "is missing"),
    "another run's": (lambda m: rewritten_without_seal(m), "differs from its checksum"),
    # the calibration, without which a mask is cut elsewhere
    "calibration gone": (lambda m: calibrated(m, lambda path: path.unlink()), "calibration.json: is missing"),
    "calibration changed": (lambda m: calibrated(m, lambda path: path.write_text("[]")), "differs from its checksum"),
    "calibration added": (lambda m: (m / "calibration.json").write_text("{}"), "differs from its checksum"),
    # checksums
    "no checksums": (lambda m: (m / "SHA256SUMS").unlink(), "has no SHA256SUMS"),
    "checksums empty": (lambda m: (m / "SHA256SUMS").write_text(""), "differs from its checksum"),
    "checksums edited": (lambda m: (m / "SHA256SUMS").write_text("0" * 64 + "  recipe.yaml\n"), "differs from its checksum"),
    "checksums no text": (lambda m: (m / "SHA256SUMS").write_bytes(b"\xff\xfe\xff"), "has no SHA256SUMS"),
    "checksums a folder": (lambda m: ((m / "SHA256SUMS").unlink(), (m / "SHA256SUMS").mkdir()), "has no SHA256SUMS"),
    # sealed by someone who meant it
    "pickle": (lambda m: resealed(m, PICKLE), "best.safetensors: cannot be read"),
    "torch archive": (lambda m: (torch.save({}, weights(m)), Run(m).seal()), "best.safetensors: cannot be read"),
    "nothing": (lambda m: resealed(m, b""), "best.safetensors: cannot be read"),
    "seven bytes": (lambda m: resealed(m, b"\0" * 7), "best.safetensors: cannot be read"),
    "header of 2^63 bytes": (lambda m: resealed(m, header_of(2**63)), "best.safetensors: cannot be read"),
    "header of 90 MB": (lambda m: resealed(m, header_of(90_000_000)), "best.safetensors: cannot be read"),
    "header no JSON": (lambda m: resealed(m, header_of(4, b"{{{{")), "best.safetensors: cannot be read"),
    "header a list": (lambda m: resealed(m, header_of(2, b"[]")), "best.safetensors: cannot be read"),
    "tensor beyond the end": (
        lambda m: resealed(m, header_of(59, b'{"a":{"dtype":"F32","shape":[999999],"data_offsets":[0,8]}}')),
        "best.safetensors: cannot be read",
    ),
    "tensor beyond memory": (
        lambda m: resealed(m, header_of(73, b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}')),
        "best.safetensors: cannot be read",
    ),
    "NaN": (lambda m: rewritten(m, spoilt(float("nan"))), "holds NaN or infinity in"),
    "infinity": (lambda m: rewritten(m, spoilt(float("inf"))), "holds NaN or infinity in"),
    "a tensor missing": (lambda m: rewritten(m, lambda s: dict(list(s.items())[1:])), "does not fit the recipe's network"),
    "a tensor too many": (lambda m: rewritten(m, lambda s: s | {"evil": torch.zeros(1)}), "first evil"),
    "another shape": (lambda m: rewritten(m, lambda s: s | {first(s): torch.zeros(3)}), "does not fit the recipe's network"),
    "no tensor": (lambda m: rewritten(m, lambda s: {"a": torch.zeros(1)}), "does not fit the recipe's network"),
    "doubles": (lambda m: rewritten(m, cast(torch.float64)), "holds float64 numbers"),
    "integers": (lambda m: rewritten(m, cast(torch.int64)), "holds int64 numbers"),
    "halves": (lambda m: rewritten(m, cast(torch.float16)), "holds float16 numbers"),
    # the recipe
    "recipe changed": (lambda m: recipe(m, "width: 8", "width: 12", seal=False), "recipe.yaml: differs from its checksum"),
    "recipe of another network": (lambda m: recipe(m, "width: 8", "width: 16"), "does not fit the recipe's network"),
    "recipe gone": (lambda m: (m / "recipe.yaml").unlink(), "recipe.yaml: is missing"),
    # what the run says of itself
    "no run.json": (lambda m: (m / "run.json").unlink(), "is not a run folder"),
    "run.json cut": (lambda m: (m / "run.json").write_text('{"format": 1'), "is not a run folder"),
    "run.json no text": (lambda m: (m / "run.json").write_bytes(b"\xff\xfe"), "is not a run folder"),
    "run.json too deep": (lambda m: (m / "run.json").write_text("[" * 10**5), "is not a run folder"),
    "run.json a list": (lambda m: (m / "run.json").write_text("[]"), "was written in format None"),
    "newer format": (lambda m: noted(m, format=2), "was written in format 2, this version reads 1"),
    "format as text": (lambda m: noted(m, format="1"), "was written in format 1"),
    "no task": (lambda m: without(m, "task"), "`task`"),
    "no recipe name": (lambda m: without(m, "recipe"), "`recipe`"),
    "another task": (lambda m: noted(m, task="anomaly"), "is a run for `anomaly`, not `segment`"),
    # what is no folder
    "zip archive": (lambda m: archived(m, "zip"), "tiny: is not a run folder"),
    "tar archive": (lambda m: archived(m, "tar"), "tiny: is not a run folder"),
    "a folder of nothing": (lambda m: (shutil.rmtree(m), m.mkdir()), "tiny: is not a run folder"),
    "gone altogether": (lambda m: shutil.rmtree(m), "tiny: is not a run folder"),
}  # fmt: skip


def rewritten_without_seal(model):
    state = load_file(weights(model))
    save_file({name: tensor + 1 for name, tensor in state.items()}, weights(model))


@pytest.mark.parametrize("how", BAD)
def test_a_bad_model_is_refused(refused, model, tmp_path, how):
    damage, said = BAD[how]
    damage(model)
    words = ("segment", "--volume", tmp_path / "case", "--model", model, "--out", tmp_path / "out", "--device", "cpu")
    line = refused(4, *words, says=said)
    assert "tiny" in line or "best.safetensors" in line
    assert not (tmp_path.parent.parent / "evil").exists() and not (tmp_path.parent.parent / "evil.txt").exists()


BAD_RECIPES = {
    "unknown setting": ("paper: ", "zzz: 1\npaper: ", "unknown setting `zzz`"),
    "reference": ("paper: ", "augmentation2: ${oc.env:HOME}\npaper: ", "refers to something else"),
    "path as channel": ("- t1ce", "- ../../evil", "`channels.1`"),
    "absurd width": ("width: 8", "width: 80000", "`network.width`"),
}


@pytest.mark.parametrize("how", BAD_RECIPES)
def test_a_bad_recipe_of_a_model_is_refused_though_it_was_sealed(refused, model, tmp_path, how):
    before, after, said = BAD_RECIPES[how]
    recipe(model, before, after)
    words = ("segment", "--volume", tmp_path / "case", "--model", model, "--out", tmp_path / "out", "--device", "cpu")
    refused(4, *words, names="recipe.yaml: ", says=said)


def test_the_run_that_these_are_made_of_is_good(model):
    assert open_run(Run(model), SegmentationRecipe, device="cpu").facts["model"] == "tiny"
