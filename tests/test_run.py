"""A run folder explains itself, and says when something in it has changed."""

import json
import subprocess
from pathlib import Path

import pytest

from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.run import Run, all_runs, create_run, environment, find_run, finished_runs, locate
from medseg_diff.seeds import seed_of


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
    with pytest.raises(UsageError, match=r"one already exists. Fix: choose another --out, go on with --resume auto"):
        create_run(run.folder, task="segment", recipe="quick", settings="")
    with pytest.raises(UsageError, match=r"recipe.yaml already exists"):
        create_run(run.recipe_file, task="segment", recipe="quick", settings="")
    assert run.facts["finished"]


def test_metrics_are_appended_line_by_line(run):
    run.log(10, {"loss": 0.123456789, "val_dice": 1.0})
    run.log(20, {"loss": 1e-9})
    assert run.metrics_file.read_text() == "step,name,value\n10,loss,0.123457\n10,val_dice,1\n20,loss,1e-09\n"


def test_metrics_are_cut_to_what_a_checkpoint_knew(run):
    assert run.metrics_size() == 0
    run.cut_metrics(0)
    run.log(10, {"loss": 0.5})
    known, before = run.metrics_size(), run.metrics_file.read_bytes()
    run.log(20, {"loss": 0.25})
    run.metrics_file.write_bytes(run.metrics_file.read_bytes() + b"30,lo")  # killed while writing
    run.cut_metrics(known)
    assert run.metrics_file.read_bytes() == before
    with pytest.raises(CheckpointError, match=r"one/metrics.csv: is shorter than the checkpoint says"):
        run.cut_metrics(known + 1)


def test_checksums_are_those_of_sha256sum(run):
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=run.folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("OK") == 3
    assert len(run.verify(run.weights("best"))) == 64


@pytest.mark.parametrize("which", ["recipe.yaml", "weights/best.safetensors"])
def test_a_changed_byte_is_found(run, which):
    path = run.folder / which
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(CheckpointError, match=f"one/{which}: differs from its checksum. Fix: copy the run"):
        run.verify(path)


def test_swapped_weights_are_found(run):
    run.weights("last").replace(run.weights("best"))
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        run.verify(run.weights("best"))


def test_missing_parts_are_named(run):
    (run.folder / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match="has no SHA256SUMS"):
        run.verify(run.weights("best"))
    run.weights("best").unlink()
    with pytest.raises(CheckpointError, match=r"one/weights/best.safetensors: is missing"):
        run.verify(run.weights("best"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', "not json"])
def test_what_is_no_run_is_refused(run, content):
    (run.folder / "run.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        _ = run.facts
    assert "one: " in caught.value.line and caught.value.exit_code == 4


def test_the_newest_finished_run_of_the_right_kind_is_found(run, tmp_path):
    runs = tmp_path / "runs"
    for name, task, ended in (("older", "segment", 5.0), ("newer", "segment", 20.0), ("other", "anomaly", 30.0)):
        create_run(runs / name, task=task, recipe="r", settings="").note(finished=True, ended=ended)
    create_run(runs / "unfinished", task="segment", recipe="r", settings="")
    (runs / "stranger").mkdir()
    (runs / "stranger" / "run.json").write_text("[]")
    assert find_run(None, task="segment", runs=runs).name == "newer"
    assert find_run(run.folder, task="segment", runs=runs) == run
    assert {found.name for found in finished_runs(runs)} == {"one", "older", "newer", "other"}
    with pytest.raises(CheckpointError, match="other: is a run for `anomaly`, not `segment`"):
        find_run(runs / "other", task="segment", runs=runs)


def test_a_run_is_found_by_folder_name_or_the_beginning_of_one(run, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    for name in ("20260101-quick", "20260102-quick", "study/runs/segment", "study/runs/other", "cache/one"):
        create_run(runs / name, task="segment", recipe="r", settings="")
    (runs / "study" / "results" / "case").mkdir(parents=True)
    for named, folder in (
        (runs / "one", "one"),
        (Path("one"), "one"),
        (Path("20260101"), "20260101-quick"),
        (Path("study/runs/segment"), "study/runs/segment"),
        (Path("segment"), "study/runs/segment"),
        (Path("study/runs/o"), "study/runs/other"),
    ):
        assert locate(named, runs).folder == runs / folder
    assert [found.folder.relative_to(runs).as_posix() for found in all_runs(runs)] == [
        "20260101-quick",
        "20260102-quick",
        "one",
        "study/runs/other",
        "study/runs/segment",
    ]
    with pytest.raises(UsageError, match=r"`2026` may be 20260101-quick, 20260102-quick. Fix: write more of it"):
        locate(Path("2026"), runs)
    with pytest.raises(CheckpointError, match="nothing: is not a run folder"):
        find_run(Path("nothing"), task="segment", runs=runs)
    monkeypatch.chdir(tmp_path)
    assert find_run(Path("one"), task="segment", runs=Path("runs")).folder == Path("runs/one")


def test_without_any_run_the_command_that_makes_one_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no finished run for `segment` below runs/. Fix: train one \(medseg-diff"):
        find_run(None, task="segment", runs=tmp_path / "runs")
    with pytest.raises(CheckpointError, match="gone: is not a run folder"):
        find_run(tmp_path / "gone", task="segment", runs=tmp_path)


def test_the_environment_names_no_host_user_or_path():
    found = environment()
    assert set(found) == {"medseg_diff", "python", "system", "machine", "packages"}
    assert found["packages"]["torch"].startswith("2.") and "/" not in json.dumps(found)


def test_a_run_is_its_folder(run):
    assert Run(run.folder) == run and run.figures.parent == run.folder


def test_seeds_differ_for_every_owner_and_have_63_bits():
    owners = [(), ("a",), ("a", 1), ("a1",), ("a", 1, 2), ("a", 12), (1, "a"), ("1",)]
    seeds = {seed_of(seed, *owner) for seed in range(20) for owner in owners}
    assert len(seeds) == 20 * len(owners) and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "BraTS_0012", 77, 3) == seed_of(0, "BraTS_0012", 77, 3)
