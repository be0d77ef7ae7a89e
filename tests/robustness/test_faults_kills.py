"""SIGKILL at any moment: what stands under a final name is whole, and the next call finishes to the same bytes."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
import torch

from medseg_diff import files
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_map
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.training.checkpoint import Checkpoints, Environment, Identity, Mark

MAPS = {f"{name}.nii.gz" for name in ("mask", "probability", "variance_between", "variance_within", "uncertainty")}


def start(work):
    """`work` in a process of its own; returns its number once it says that it has begun."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work(lambda: os.write(write, b"."))
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    os.read(read, 1)
    os.close(read)
    return child


def end(child, *, after):
    """Kill it after so many seconds; how it ended."""
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.soak)])
def test_segment(shaken, two_cases, tmp_path, kills):
    options = {"data": two_cases, "model": shaken, "device": "cpu", "save_members": True}
    segment(out=tmp_path / "whole", **options)
    began = time.monotonic()
    segment(out=tmp_path / "whole", overwrite=True, **options)
    takes = time.monotonic() - began

    def work(ready):
        ready()
        segment(out=tmp_path / "out", overwrite=True, **options)

    chance, killed = random.Random(kills), 0
    while killed < kills:
        ended = end(start(work), after=chance.uniform(0, 0.9 * takes))
        assert ended in (0, -signal.SIGKILL)
        killed += ended == -signal.SIGKILL
        check_whole(tmp_path / "out")
    segment(out=tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")  # nothing hidden is left either


def check_whole(out):
    """Every file under a final name can be read, and a complete case has them all."""
    for path in out.glob("[!.]*/**/[!.]*"):
        if path.suffix == ".json":
            assert json.loads(path.read_text())["case"] == path.parent.name
            assert {file.name for file in path.parent.glob("[!.]*.gz")} == MAPS
            assert len(list(path.parent.glob("members/[!.]*.gz"))) == 2
        elif path.suffix == ".gz":
            assert read_map(path).shape == (32, 32, 10)


def contents(out):
    """Every file below a folder, hidden ones too: images as bytes."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes() if path.suffix == ".gz" else None
        for path in out.rglob("*")
        if path.is_file()
    }


def checkpoints_in(folder):
    identity = Identity(recipe_sha256="a", data_digest="b", examples=3, world_size=1)
    return Checkpoints(folder, identity, Environment(device="cpu", precision="fp32", threads=1, torch="2"))


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.soak)])
def test_saving_checkpoints(tmp_path, kills):
    """A process that does nothing but save, each kill a few saves later."""
    checkpoints, chance, steps = checkpoints_in(tmp_path), random.Random(0), [0]

    def save(ready):
        for step in range(steps[-1] + 1, 10**6):
            checkpoints.save(Mark(step=step), {"a.weight": torch.full((50_000,), float(step))})
            if step == steps[-1] + 1:
                ready()

    for _ in range(kills):
        assert end(start(save), after=chance.uniform(0, 0.05)) == -signal.SIGKILL
        found = checkpoints.load()
        assert found.mark.step > steps[-1] and (found.state["a.weight"] == found.mark.step).all()
        steps.append(found.mark.step)
    files.clean(tmp_path)
    checkpoints.save(Mark(step=10**7), {"a.weight": torch.zeros(1)}, final=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.json", "step_10000000.safetensors"]


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.soak)])
def test_saving_volumes(tmp_path, kills):
    path, chance = tmp_path / "map.nii.gz", random.Random(1)

    def save(ready):
        for number in range(1, 10**6):
            write_volume(path, np.full((40, 40, 40), number, np.float32), np.eye(4))
            if number == 1:
                ready()

    killed = temporary = 0
    while killed < kills or not temporary:  # some in the middle
        killed += 1
        assert end(start(save), after=chance.uniform(0, 0.05)) == -signal.SIGKILL
        voxels = read_map(path).voxels
        assert voxels.min() == voxels.max() >= 1
        temporary += len(list(tmp_path.iterdir())) - 1
        files.clean(tmp_path)
        assert list(tmp_path.iterdir()) == [path]
