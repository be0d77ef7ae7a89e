"""A checkpoint is the older or the newer one, whole, whenever the process ends."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from medseg_diff import files
from medseg_diff.errors import CheckpointError, EnvironmentFault
from medseg_diff.training import checkpoint
from medseg_diff.training.checkpoint import Checkpoints, Environment, Identity, Mark

IDENTITY = Identity(recipe_sha256="a", data_digest="b", examples=3, world_size=1)
HERE = Environment(device="cpu", precision="fp32", threads=1, torch="2")


def state(value):
    return {"a.weight": torch.full((3, 4), float(value)), "a.count": torch.tensor(value)}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "run" / "checkpoints" / "phase", IDENTITY, HERE)


def names_in(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def again(checkpoints):
    """The same folder in the eyes of a new process."""
    return Checkpoints(checkpoints.folder, IDENTITY, HERE)


def test_what_was_saved_comes_back_and_the_oldest_goes(checkpoints):
    assert checkpoints.load() is None and checkpoints.mark() is None
    for step in (0, 5, 10):
        checkpoints.save(Mark(step=step, best=0.1 * step, share=0.5, metrics_bytes=7), state(step))
    found = checkpoints.load()
    assert found.mark == Mark(step=10, best=0.1 * 10, share=0.5, metrics_bytes=7) == checkpoints.mark()
    assert found.environment == HERE and checkpoint.steps_done(checkpoints.folder) == 10
    assert all(torch.equal(value, found.state[name]) for name, value in state(10).items())
    two = ["latest.json", "previous.json", "step_00000005.safetensors", "step_00000010.safetensors"]
    assert found.damage == "" and names_in(checkpoints) == two
    checkpoints.save(Mark(step=20), state(20), final=True)
    assert names_in(checkpoints) == ["latest.json", "step_00000020.safetensors"]


def damaged(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("what", ["step_00000010.safetensors", "latest.json"])
@pytest.mark.parametrize("how", [damaged, Path.unlink])
def test_the_one_before_takes_the_place_of_one_that_is_damaged(checkpoints, what, how):
    for step in (0, 5, 10):
        checkpoints.save(Mark(step=step), state(step))
    how(checkpoints.folder / what)
    for _ in range(2):  # looking changes nothing
        found = again(checkpoints).load()
        assert found.mark.step == 5 and torch.equal(found.state["a.count"], torch.tensor(5))
        assert (what in found.damage) == ((what, how) != ("latest.json", Path.unlink))
    other = again(checkpoints)
    other.load()
    other.save(Mark(step=7), state(7))
    assert again(checkpoints).load().mark.step == 7 and other.load().damage == ""
    damaged(checkpoints.folder / "step_00000007.safetensors")
    assert again(checkpoints).load().mark.step == 5  # the damaged one never took its place


def test_two_that_are_damaged_are_refused_with_the_fault_of_the_newest(checkpoints):
    for step in (5, 10):
        checkpoints.save(Mark(step=step), state(step))
        damaged(checkpoints.folder / f"step_{step:08d}.safetensors")
    with pytest.raises(CheckpointError, match=r"step_00000010.safetensors: differs from its checksum"):
        again(checkpoints).load()


def test_another_training_is_refused_though_the_one_before_would_do(checkpoints):
    checkpoints.save(Mark(step=5), state(5))
    stranger = Checkpoints(checkpoints.folder, IDENTITY.but(examples=4), HERE)
    stranger.last = checkpoints.last
    stranger.save(Mark(step=10), state(10))
    with pytest.raises(CheckpointError, match="was trained with 4 examples, not 3"):
        again(checkpoints).load()


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"mark": {"step": "many"}}'])
def test_an_estimate_takes_a_checkpoint_that_cannot_be_read_for_none(tmp_path, content):
    if content is not None:
        (tmp_path / checkpoint.POINTER).write_text(content)
    assert checkpoint.steps_done(tmp_path) == 0


def in_a_child(work):
    """`work` in a process of its own; how it ended."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_kill_before_any_system_call_of_a_save_leaves_one_that_is_whole(checkpoints):
    """The process is killed before its first, second, … call that changes the disk, until one is not reached. The one
    before is whole as well, but for the moment when the newest takes its place."""
    for step in (0, 1):
        checkpoints.save(Mark(step=step), state(step))
    calls = ((files, "flush"), (Path, "replace"), (Path, "unlink"), (Path, "write_bytes"), (checkpoint, "sha256_of"))

    def save_and_die(step, at):
        count = 0

        def counted(call):
            def before(*arguments, **named):
                nonlocal count
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return call(*arguments, **named)

            return before

        with pytest.MonkeyPatch.context() as patch:
            for owner, name in calls:
                patch.setattr(owner, name, counted(getattr(owner, name)))
            checkpoints.save(Mark(step=step), state(step))

    seen, alone, at, ended = set(), 0, 0, -1
    while ended != 0:
        checkpoints = again(checkpoints)
        older = checkpoints.load().mark.step
        ended = in_a_child(lambda older=older, at=at: save_and_die(older + 1, at))
        assert ended in (0, signal.SIGKILL)
        checkpoints = again(checkpoints)
        found = checkpoints.load()
        assert found.mark.step in (older, older + 1) and found.state["a.count"] == found.mark.step and not found.damage
        alone += len(list(checkpoints.folder.glob("step_*"))) == 1
        seen.add(found.mark.step - older)
        at += 1
    assert at > 8 and seen == {0, 1} and alone < at / 2
    files.clean(checkpoints.folder)
    assert len(names_in(checkpoints)) == 4


def test_a_disk_that_fills_leaves_the_older_one(checkpoints):
    """A limit on the size of files stands for a full disk."""
    import resource

    checkpoints.save(Mark(step=1), state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(EnvironmentFault, match=r"step_00000002.safetensors: cannot be written") as caught:
            checkpoints.save(Mark(step=2), {"a.weight": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.exit_code == 5 and str(checkpoints.folder) not in caught.value.line
    assert checkpoints.load().mark.step == 1 and len(list(checkpoints.folder.iterdir())) == 2


def test_an_orphan_is_removed_and_not_read(checkpoints):
    checkpoints.save(Mark(step=1), state(1))
    (checkpoints.folder / "step_00000009.safetensors").write_bytes(b"half of")
    assert checkpoints.load().mark.step == 1
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["latest.json", "step_00000001.safetensors"]


def test_the_json_can_be_read_by_a_person(checkpoints):
    checkpoints.save(Mark(step=1, best=0.5), state(1))
    said = json.loads((checkpoints.folder / "latest.json").read_text())
    assert said["format"] == 1 and said["mark"]["step"] == 1 and said["identity"]["examples"] == 3
