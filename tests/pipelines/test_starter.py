"""A training cut down to a starter model: what stays of it, and that it is used as the whole run is, to rounding."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medseg_diff.errors import CheckpointError
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.trained import open_run
from medseg_diff.run import Run
from medseg_diff.training.weights import read_tensors
from pipelines.starter import cut_down

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(trained, tmp_path):
    return cut_down(Run(trained.folder), tmp_path / "starter", patients=7)


def test_what_inference_needs_stays(trained, small):
    names = {path.relative_to(small.folder).as_posix() for path in small.folder.rglob("*") if path.is_file()}
    measured = {path.name for path in trained.folder.glob("*.json")} & {"calibration.json", "typicality.json"}
    assert measured
    assert names == {
        "recipe.yaml",
        "environment.json",
        "run.json",
        "weights/best.safetensors",
        "SHA256SUMS",
        *measured,
    }
    assert small.facts["patients"] == 7 and small.facts["finished"]
    assert "started" not in small.facts and "ended" not in small.facts
    text = "".join(path.read_text() for path in small.folder.glob("*.*"))
    assert not re.search(r"(?<![\w.:/])/\w+/\w", text)  # no path of some machine


def test_its_weights_are_the_runs_rounded(trained, small):
    whole, stored = (read_tensors(run.weights("best")) for run in (Run(trained.folder), small))
    assert {each.dtype for each in stored.values()} == {torch.bfloat16}
    opened = open_run(small, SegmentationRecipe, device="cpu").networks["best"].state_dict()
    for name, tensor in whole.items():
        assert opened[name].dtype == torch.float32 and torch.equal(opened[name], tensor.bfloat16().float())


def test_the_same_run_gives_the_same_files(trained, small, tmp_path):
    again = cut_down(Run(trained.folder), tmp_path / "again", patients=7)
    for path in small.folder.rglob("*.*"):
        assert path.read_bytes() == (again.folder / path.relative_to(small.folder)).read_bytes()


def test_a_run_that_is_not_whole_is_refused(trained, tmp_path):
    run = Run(shutil.copytree(trained.folder, tmp_path / "tiny"))
    with run.weights("best").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        cut_down(run, tmp_path / "starter", patients=1)


def test_it_runs_as_a_script(trained, tmp_path):
    asked = [sys.executable, "pipelines/starter.py", "--data", trained.table, "--run", trained.folder]
    done = subprocess.run([*asked, "--out", tmp_path / "out"], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0 and "MB" in done.stdout, done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["patients"] == 10
