"""The run that is meant is found, and what is no run is refused."""

from pathlib import Path

import pytest

from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.run import create_run
from medseg_diff.runs import all_runs, find_run, finished_runs, locate


@pytest.fixture
def run(tmp_path):
    """A finished one."""
    run = create_run(tmp_path / "runs" / "one", task="segment", recipe="quick", settings="")
    run.note(finished=True, ended=10.0)
    return run


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
    create_run(runs / "study" / "runs" / "newest", task="segment", recipe="r", settings="").note(
        finished=True, ended=40.0
    )
    assert find_run(None, task="segment", runs=runs).name == "newest"  # as `runs list` shows it
    (runs / "link").symlink_to(runs / "study" / "runs" / "newest")
    (runs / "round").symlink_to(runs)  # not walked into
    assert sum(found.name in ("newest", "link") for found in all_runs(runs)) == 2 and len(list(all_runs(runs))) == 7
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
    with pytest.raises(
        UsageError, match=r"`2026` could be 20260101-quick, 20260102-quick. Fix: write more of the name"
    ):
        locate(Path("2026"), runs)
    with pytest.raises(CheckpointError, match="nothing: is not a run folder"):
        find_run(Path("nothing"), task="segment", runs=runs)
    monkeypatch.chdir(tmp_path)
    assert find_run(Path("one"), task="segment", runs=Path("runs")).folder == Path("runs/one")


def test_without_any_run_the_command_that_makes_one_is_named(tmp_path):
    for task, verb in (
        ("anomaly", "train-anomaly"),
        ("other", r"train-seg\|train-anomaly\|train-synth\|train-enhance"),
    ):
        with pytest.raises(
            UsageError, match=rf"no finished run for `{task}` .*Fix: train one \(medseg-diff {verb} --data"
        ):
            find_run(None, task=task, runs=tmp_path / "runs")
    with pytest.raises(CheckpointError, match="gone: is not a run folder"):
        find_run(tmp_path / "gone", task="segment", runs=tmp_path)
