"""`runs` from the terminal: which there are, which is best, what changed between two and what it did."""

import csv
import json
import os
import subprocess
import sys

import pytest

from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.run import Run, create_run
from medseg_diff.runs import find_run
from medseg_diff.tasks.runs import best_run, compare_runs, list_runs
from medseg_diff.tracking import record_evaluation
from medseg_diff.tracking.names import numbers_of

RECIPE = "task: segment\nchannels: [t1, flair]\nnetwork: {kind: unet, width: %d}\ntraining: {steps: 20, seed: 0}\n"


def make(folder, *, dice=0.5, width=8, started=1000.0, task="segment", finished=True, losses=(0.5, 0.25)):
    run = create_run(folder, task=task, recipe="tiny", settings=RECIPE % width)
    for step, loss in zip((10, 20), losses, strict=True):
        run.log(step, {"loss": loss, "val_dice": dice if step == 10 else dice - 0.1})
    run.weights("best").write_bytes(f"{width} {dice}".encode())
    run.seal()
    run.note(data="cases.csv", data_digest="00ff", started=started, best_step=10, best_val_dice=dice)
    if finished:
        run.note(finished=True, ended=started + 90)
    return run


def evaluated(run, dice, *, split="test"):
    """The run's evaluation on six cases, recorded in its folder."""
    found = {"value": dice, "low": None, "high": None, "unit": "1", "over": "cases", "cases": 6}
    table = run.folder / "made.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "patient", "split", "region", "reference_ml", "dice"))
        writer.writerows([f"c{n}", f"p{n}", split, "tumour", 9, dice + n / 100] for n in range(6))
    summary = {"data": "cases", "split": split, "metrics": {"dice": found}}
    return record_evaluation(run, summary, table)


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    make(folder / "early", dice=0.6, started=1000.0)
    make(folder / "late", dice=0.7, width=16, started=2000.0, losses=(0.4, 0.3))
    make(folder / "study" / "runs" / "fold", dice=0.9, started=1500.0, finished=False)
    return folder


def cli(*words, cwd):
    done = subprocess.run([sys.executable, "-m", "medseg_diff", *words], cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_the_list_says_what_there_is_the_newest_first(runs):
    listed = list_runs(runs)
    assert [each.name for each in listed] == ["late", "study/runs/fold", "early"]
    assert [each.state for each in listed] == ["finished", "stopped", "finished"]
    late = listed[0]
    assert (late.task, late.recipe, late.metric, late.best) == ("segment", "tiny", "val/dice", 0.7)
    assert (late.step, late.started, late.seconds, late.data) == (20, 2000.0, 90.0, "cases.csv")
    assert list_runs(runs, task="anomaly") == [] and list_runs(runs / "nowhere") == []


def test_a_run_is_running_while_the_process_that_holds_it_lives(runs):
    lock = runs / "study" / "runs" / "fold" / ".lock"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for text, state in ((str(os.getpid()), "running"), (str(ended.pid), "stopped"), ("", "stopped"), ("x", "stopped")):
        lock.write_text(text)
        assert list_runs(runs)[1].state == state


ODD = ("yesterday", float("nan"), float("inf"), 10**400, -5, 1e300, [1], {"a": 1}, None)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:12])
def test_an_odd_time_or_number_is_unknown(runs, odd):
    run = Run(runs / "early")
    (run.folder / "run.json").write_text(json.dumps(run.facts | {"started": odd, "ended": odd, "best_val_dice": odd}))
    (listed,) = (each for each in list_runs(runs) if each.name == "early")
    assert listed.best is None or abs(listed.best) < 1e308
    assert (listed.started, listed.seconds) == (None, None)
    assert (
        best_run(runs, metric="val_dice")["name"] == "late" and find_run(None, task="segment", runs=runs).name == "late"
    )
    code, said, error = cli("runs", "list", cwd=runs.parent)
    assert code == 0 and "early" in said, error


STEERING = "\x1b[2J\x9b1mred\u202e\ud800\nnew line\x07"


def test_what_steers_a_terminal_reaches_none(runs):
    for name in ("early", "late"):
        run = Run(runs / name)
        (run.folder / "run.json").write_text(
            json.dumps(run.facts | {"recipe": STEERING, "data": STEERING + name, "task": f"segment{STEERING}"})
        )
        (run.folder / "environment.json").write_text(json.dumps({"python": STEERING + name}))
    (runs / "late").rename(runs / STEERING.replace("\ud800", ""))
    for words in (("list",), ("list", "--json"), ("best",), ("best", "--json"), ("compare", "early", "\x1b")):
        code, said, error = cli("runs", *words, cwd=runs.parent)
        assert code == 0, error
        assert all(line.isprintable() for line in said.split("\n")), said
        assert "x1b[2J" in said or "u001b[2J" in said
    code, _, error = cli("segment", "--volume", "x", "--model", "early", "--out", "out", cwd=runs.parent)
    assert code == 4 and error.rstrip("\n").isprintable() and "is a run for `segment" in error


def test_damaged_and_foreign_folders_do_not_stop_the_list(runs):
    (runs / "early" / "metrics.csv").write_text("step,name,value\n10,loss,1\n20,lo")
    (runs / "stranger").mkdir()
    (runs / "stranger" / "run.json").write_text("{}")
    assert {each.name: each.step for each in list_runs(runs)} == {"early": 10, "late": 20, "study/runs/fold": 20}


def test_a_run_is_as_good_as_the_weights_that_it_kept(runs):
    """`early` was best in its middle, and kept its last weights all the same."""
    early = Run(runs / "early")
    with early.metrics_file.open("a") as file:
        file.write("15,val_dice,0.99\n20,val_dice,0.4\n20,val_loss,0.9\n")
    (early.folder / "run.json").write_text(json.dumps(early.facts | {"best_val_dice": 0.4}))
    assert best_run(runs, metric="val_dice")["name"] == "late"


def test_the_best_run_by_what_runs_chose_by_or_by_a_name(runs):
    best = best_run(runs)
    assert best == {"name": "late", "model": str(runs / "late"), "task": "segment"} | {
        "metric": "val/dice",
        "value": 0.7,
        "compared": 2,
    }
    lowest = best_run(runs, metric="loss")
    assert (lowest["name"], lowest["value"]) == ("early", 0.25)  # a loss wants to be small
    evaluated(make(runs / "judged", started=1.0), 0.8)
    assert best_run(runs, metric="test_dice")["name"] == "judged"
    with pytest.raises(
        UsageError, match=r"no finished run under runs/ has test_iou. Fix: use one of test/dice, train/loss"
    ):
        best_run(runs, metric="test_iou")
    run = make(runs / "other", task="anomaly")
    run.note(best_val_dice=None, classifier_best_val_auroc=0.9)
    with pytest.raises(UsageError, match="these runs chose by val/classifier_auroc, val/dice"):
        best_run(runs)
    with pytest.raises(UsageError, match=r"no finished run under empty/ has a best number.*train-seg\|train-anomaly"):
        best_run(runs.parent / "empty")
    with pytest.raises(UsageError, match="medseg-diff train-anomaly --data"):
        best_run(runs.parent / "empty", task="anomaly")


def test_a_comparison_says_what_changed_and_what_it_did(runs):
    first, second = (runs / name for name in ("early", "late"))
    (second / "environment.json").write_text(json.dumps({"python": "3.99", "packages": {"torch": "9.9"}}))
    found = compare_runs(first, second, runs=runs)
    assert (found["first"], found["second"], found["same_weights"]) == ("early", "late", False)
    assert found["settings"] == {"network.width": [8, 16]} and found["facts"] == {}
    assert found["environment"]["python"][1] == "3.99" and found["environment"]["packages.torch"][1] == "9.9"
    assert found["numbers"]["val/dice"] == pytest.approx([0.5, 0.6]) and found["numbers"]["train/loss"] == [0.25, 0.3]
    assert found["paired"] == {}
    same = compare_runs(first, first, runs=runs)
    assert same["same_weights"] and not same["settings"] and not same["environment"]


def test_evaluations_on_the_same_cases_are_paired(runs):
    one, two = make(runs / "one"), make(runs / "two")
    places = [evaluated(run, dice).folder for run, dice in ((one, 0.7), (two, 0.75))]
    evaluated(one, 0.5, split="val")  # only one of them has this
    assert numbers_of(one)["test/dice"] == 0.7 and numbers_of(one)["on_val/dice"] == 0.5
    found = compare_runs(one.folder, two.folder, runs=runs)
    assert list(found["paired"]) == ["cases-test"]
    compared = found["paired"]["cases-test"]
    assert compared["cases"] == 6 and compared["metrics"]["dice"]["difference"] == pytest.approx(0.05)
    assert compared["metrics"]["dice"]["better"] == "second" and compared["metrics"]["dice"]["p"] < 0.05
    named = compare_runs(one.folder, two.folder, runs=runs, predictions=(places[1], places[0]))
    assert named["paired"]["predictions"]["metrics"]["dice"]["difference"] == pytest.approx(-0.05)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("metrics.json", b"{"),
        ("metrics.json", b'{"metrics": {"dice": 0.7}}'),
        ("metrics.json", b"\xff\xfe"),
        ("per_case.csv", b""),
        ("per_case.csv", b"\xff\xfe"),
    ],
)
def test_a_damaged_evaluation_is_left_out_with_a_warning(runs, caplog, file, damage):
    one, two = make(runs / "one"), make(runs / "two")
    for run, dice in ((one, 0.7), (two, 0.75)):
        evaluated(run, dice)
        evaluated(run, dice, split="val")
    (one.folder / "evaluations" / "cases-test" / file).write_bytes(damage)
    with caplog.at_level("WARNING", logger="medseg_diff"):
        found = compare_runs(one.folder, two.folder, runs=runs)
        best = best_run(runs, metric="test_dice")
    assert list(found["paired"]) == ["cases-val"] and best["compared"] == 1
    assert "one: its evaluation cases-test cannot be read" in caplog.text


def test_the_terminal_shows_them_without_torch_or_mlflow(runs):
    code, said, _ = cli("runs", "list", cwd=runs.parent)
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == ["name", "late", "study/runs/fold", "early"]
    assert "val/dice 0.7" in said and "0:01:30" in said and "stopped" in said
    check = (
        "import sys; from pathlib import Path; from medseg_diff.tasks.runs import best_run, compare_runs, list_runs; "
        "runs = Path('runs'); list_runs(runs), best_run(runs), compare_runs(runs / 'early', runs / 'late', runs=runs); "
        "heavy = {'torch', 'mlflow', 'pandas'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=runs.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, said, _ = cli("runs", "best", "--json", cwd=runs.parent)
    assert code == 0 and json.loads(said)["name"] == "late"
    code, said, _ = cli("runs", "compare", "early", "late", cwd=runs.parent)
    assert code == 0 and "early → late (other weights)" in said
    lines = {line.split()[0]: line.split() for line in said.splitlines() if line.startswith("  ")}
    assert lines["network.width"] == ["network.width", "8", "→", "16"]
    assert lines["val/dice"] == ["val/dice", "0.5", "→", "0.6", "+0.1"]
    assert "environment: the same" in said and "no common evaluation" in said
    best = subprocess.run(
        [sys.executable, "-m", "medseg_diff", "runs", "best"], cwd=runs.parent, capture_output=True, text=True
    )
    assert best.stdout == "runs/late\n" and best.stderr == "val/dice 0.7, best of 2\n"  # --model "$(…)"
    assert find_run(runs.parent / best.stdout.strip(), task="segment", runs=runs) == Run(runs / "late")


def test_what_only_one_run_has_takes_a_line_and_no_rows(runs):
    Run(runs / "early").log(20, {"gone": 1.0, "gone_too": 2.0})
    (runs / "late" / "recipe.yaml").write_text((RECIPE % 16).replace("seed: 0", "seed: 0, ema: 0.5"))
    code, said, _ = cli("runs", "compare", "early", "late", cwd=runs.parent)
    assert code == 0 and "only early: train/gone 1, train/gone_too 2" in said and "only late: training.ema 0.5" in said
    assert "→  -" not in said and "-  →" not in said


def test_what_is_no_run_is_said(runs):
    with pytest.raises(CheckpointError, match="nothing: is not a run folder"):
        compare_runs(runs / "nothing", runs / "early", runs=runs)
    code, said, error = cli("runs", "best", cwd=runs.parent / "runs" / "early")
    assert code == 2 and said == "" and error.startswith("error: no finished run under runs/")
    code, said, _ = cli("runs", "list", cwd=runs.parent / "runs" / "early")
    assert code == 0 and said.startswith("no runs under runs") and "train-seg|train-anomaly" in said
    code, said, _ = cli("runs", "list", "--task", "anomaly", cwd=runs.parent / "runs" / "early")
    assert code == 0 and "next: medseg-diff train-anomaly" in said


def test_a_task_that_is_none_is_refused(runs):
    code, said, error = cli("runs", "list", "--task", "segmentation", cwd=runs.parent)
    assert code == 2 and said == "" and "unknown task `segmentation`. Fix: use one of segment, anomaly" in error
    with pytest.raises(UsageError, match="unknown task `seg`"):
        best_run(runs, task="seg")
