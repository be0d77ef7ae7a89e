"""A run folder explains itself, and says when something in it has changed."""

import json
import subprocess
from pathlib import Path

import pytest

from medseg_diff import run as run_module
from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.run import Point, Run, create_run, environment
from medseg_diff.seeds import seed_of
from medseg_diff.studies import FoldStudy


@pytest.fixture
def run(tmp_path):
    """A finished run with two weights files."""
    run = create_run(tmp_path / "runs" / "one", task="segment", recipe="quick", settings="task: segment\n")
    for which in ("best", "last"):
        run.weights(which).write_bytes(which.encode())
    run.seal()
    run.note(finished=True, ended=10.0)
    return run


def test_what_a_new_run_holds(tmp_path):
    run = create_run(tmp_path / "a", task="segment", recipe="quick", settings="x: 1\n")
    assert run.recipe_file.read_text() == "x: 1\n" and run.name == "a"
    assert run.facts == {"format": 1, "task": "segment", "recipe": "quick", "finished": False}
    run.note(finished=True, best=0.5)
    assert run.facts["finished"] and run.facts["recipe"] == "quick" and run.facts["best"] == 0.5


def test_a_folder_in_use_is_not_written_to(run):
    with pytest.raises(
        UsageError, match=r"one already exists. Fix: choose another --out, continue it with --resume auto"
    ):
        create_run(run.folder, task="segment", recipe="quick", settings="")
    with pytest.raises(UsageError, match=r"recipe.yaml already exists"):
        create_run(run.recipe_file, task="segment", recipe="quick", settings="")
    assert run.facts["finished"]


def test_metrics_are_appended_line_by_line(run):
    run.log(10, {"loss": 0.123456789, "val_dice": 1.0})
    run.log(20, {"loss": 1e-9})
    assert run.metrics_file.read_text() == "step,name,value\n10,loss,0.123457\n10,val_dice,1\n20,loss,1e-09\n"


DAMAGED = {
    "a flipped bit": b"20,l\xefss,0.25\n",
    "no letter": "20,l\ufffdss,0.25\n".encode(),
    "a number": b"20,loss,0.x5\n",
    "not finite": b"20,loss,nan\n",
    "a quote": b'20,"loss,0.25\n',
    "a step": b"2 0,loss,0.25\n",
    "a step beyond any": b"2" * 30 + b",loss,0.25\n",
    "two lines in one": b"20,loss,0.25M20,val_dice,0.5\n",
    "nothing": b"\n\0\n",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_numbers_are_read_past_damaged_lines(run, line):
    assert list(run.numbers()) == []
    run.log(10, {"loss": -0.123456789, "val_dice": 1.0})
    with run.metrics_file.open("ab") as file:
        file.write(line)
    run.log(30, {"loss": 1e-9})
    with run.metrics_file.open("ab") as file:
        file.write(b"40,loss,0.2")  # and what should follow was not written
    first = [Point(10, "loss", -0.123457), Point(10, "val_dice", 1.0)]
    assert list(run.numbers()) == [*first, Point(30, "loss", 1e-9)]
    assert list(run.numbers(last_bytes=27 + len(line))) == [Point(30, "loss", 1e-9)]
    run.metrics_file.write_bytes(b"stEp" + run.metrics_file.read_bytes()[4:])
    assert len(list(run.numbers())) == 3


def test_metrics_are_cut_to_what_a_checkpoint_knew(run):
    assert run.metrics_size() == 0
    run.cut_metrics(0)
    run.log(10, {"loss": 0.5})
    known, before = run.metrics_size(), run.metrics_file.read_bytes()
    run.log(20, {"loss": 0.25})
    run.metrics_file.write_bytes(run.metrics_file.read_bytes() + b"30,lo")  # killed while writing
    run.cut_metrics(known)
    assert run.metrics_file.read_bytes() == before
    with pytest.raises(CheckpointError, match=r"one/metrics.csv: is shorter than its checkpoint records"):
        run.cut_metrics(known + 1)


def test_checksums_are_those_of_sha256sum(run):
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=run.folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("OK") == 3
    found = run.verified()
    assert {path.name: len(digest) for path, digest in found.items()} == dict.fromkeys(
        ("recipe.yaml", "best.safetensors", "last.safetensors"), 64
    )


@pytest.mark.parametrize("which", ["recipe.yaml", "weights/best.safetensors", "calibration.json"])
def test_a_changed_byte_is_found(run, which):
    path = run.folder / which
    run.calibration_file.write_text("{}")
    run.seal()
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(CheckpointError, match=f"one/{which}: differs from its checksum. Fix: copy the run"):
        run.verified()


def test_swapped_weights_are_found(run):
    run.weights("last").replace(run.weights("best"))
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        run.verified()


@pytest.mark.parametrize("which", ["recipe.yaml", "weights/last.safetensors", "calibration.json"])
def test_what_is_listed_may_not_be_missing(run, which):
    run.calibration_file.write_text("{}")
    run.seal()
    (run.folder / which).unlink()
    with pytest.raises(CheckpointError, match=f"one/{which}: is missing"):
        run.verified()


def test_what_is_needed_or_measured_has_to_be_listed(run):
    run.calibration_file.write_text("{}")
    with pytest.raises(CheckpointError, match=r"one/calibration.json: differs from its checksum"):
        run.verified()
    (run.folder / "SHA256SUMS").write_text("")
    run.calibration_file.unlink()
    assert run.verified() == {}
    with pytest.raises(CheckpointError, match=r"one/recipe.yaml: differs from its checksum"):
        run.verified(run.recipe_file)
    (run.folder / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=r"has no SHA256SUMS. Fix: copy the whole run folder; an unfinished"):
        run.verified()


@pytest.mark.parametrize("name", ["../secret", "/etc/hosts", "weights/../../x", ""])
def test_checksums_of_files_elsewhere_are_not_its_own(run, name):
    (run.folder / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(CheckpointError, match="an invalid SHA256SUMS"):
        run.verified()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', "not json"])
def test_what_is_no_run_is_refused(run, content):
    (run.folder / "run.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        _ = run.facts
    assert "one: " in caught.value.line and caught.value.exit_code == 4


def test_the_environment_names_no_host_user_or_path():
    found = environment()
    assert set(found) - {"commit", "commit_changed"} == {"medseg_diff", "python", "system", "machine", "packages"}
    assert found["packages"]["torch"].startswith("2.") and "/" not in json.dumps(found)


def test_a_run_is_its_folder(run):
    assert Run(run.folder) == run and run.figures.parent == run.folder


def test_seeds_differ_for_every_owner_and_have_63_bits():
    owners = [(), ("a",), ("a", 1), ("a1",), ("a", 1, 2), ("a", 12), (1, "a"), ("1",)]
    seeds = {seed_of(seed, *owner) for seed in range(20) for owner in owners}
    assert len(seeds) == 20 * len(owners) and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "BraTS_0012", 77, 3) == seed_of(0, "BraTS_0012", 77, 3)


def test_trajectories_are_found_again(tmp_path):
    run = Run(tmp_path)
    drawn = [run.trajectory("segmentation", 20), run.trajectory("segmentation", 100), run.trajectory("two-words", 5)]
    for picture in drawn:
        picture.path.parent.mkdir(parents=True, exist_ok=True)
        picture.path.touch()
    assert run.trajectories == drawn and drawn[0].series == "trajectories/segmentation"


def test_the_folder_one_stands_in_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    assert Run(Path()).name == FoldStudy(Path()).name == "first"


def test_two_runs_that_begin_in_one_second_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "new_name", lambda recipe: f"20260102-030405-{recipe}")
    folders = [run_module.new_folder(tmp_path / "runs", "tiny").name for _ in range(3)]
    assert folders == [f"20260102-030405-tiny{ending}" for ending in ("", "-2", "-3")]
