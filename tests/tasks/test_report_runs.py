"""`report` of trainings: a run, a study with its folds, a folder of runs."""

import html
import json
import logging
import re
import shutil

import pytest

from medseg_diff import report
from medseg_diff.errors import UsageError
from medseg_diff.files import write_json
from medseg_diff.reporting.curves import curves_of
from medseg_diff.reporting.page.charts import training_chart
from medseg_diff.run import Point, Run
from medseg_diff.studies import FoldStudy

METRICS = {
    "dice": {"value": 0.8125, "low": 0.75, "high": 0.875, "unit": "1", "over": "cases with a lesion", "cases": 2},
    "hd95_mm": {"value": 4.5, "low": None, "high": None, "unit": "mm", "over": "cases", "cases": 2},
}


def text_of(page):
    """What a reader sees, without tags."""
    said = re.sub(r"<(script|style).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", said).split())


def evaluated(folder):
    """As `evaluate` leaves it in a run's folder."""
    place = folder / "evaluations" / "phantom-test"
    write_json(place / "metrics.json", {"data": "phantom", "split": "test", "cases": 2, "metrics": METRICS})
    (place / "per_case.csv").write_text("case,dice\na,0.8\n")
    (place / "report.html").write_text("its page")


@pytest.fixture
def runs(trained, tmp_path):
    """A folder with a finished run that was evaluated, and one that was stopped."""
    for name in ("first", "second"):
        shutil.copytree(trained.folder, tmp_path / "runs" / name)
    evaluated(tmp_path / "runs" / "first")
    Run(tmp_path / "runs" / "second").note(finished=False, ended=None)
    return tmp_path / "runs"


def test_a_run_says_what_it_learned_and_what_it_came_to(runs):
    picture = runs / "first" / "figures" / "trajectories" / "segmentation-0000010.png"
    picture.parent.mkdir(exist_ok=True)
    shutil.copy(runs / "first" / "figures" / "training.png", picture)
    page = report(runs / "first", mlflow=False)
    assert page == runs / "first" / "report.html"
    said, facts = text_of(page), json.loads((runs / "first" / "run.json").read_text())
    wanted = [
        f"Segmentation with the recipe {facts['recipe']}",
        f"{facts['cases']['train']} train",
        "medseg-diff segment --model first --volume PATIENT_FOLDER --out results",
        "Evaluated on phantom-test",
        "Dice 0.812 0.75 to 0.875",
        "How training went",
        "Denoising trajectories of validation images, drawn at step 10. 1 picture in all",
        "training.learning_rate",
        "weights/last.safetensors",
        "torch 2.",
    ]
    assert [words for words in wanted if words not in said] == []
    assert 'href="evaluations/phantom-test/report.html"' in page.read_text()
    assert str(runs.parent) not in page.read_text()


def test_settings_given_by_hand_are_marked(runs):
    Run(runs / "first").note(overrides=["training.steps=20", "augmentation.noise=0.1"])
    said = text_of(report(runs / "first", mlflow=False))
    assert re.search(r"training\.steps \S+ changed", said) and not re.search(r"training\.batch \S+ changed", said)


def test_an_unfinished_run_says_so_and_is_not_offered(runs):
    said = text_of(report(runs / "second", mlflow=False))
    assert "1 warning The training was stopped. Continue it: medseg-diff train-seg" in said and "Use it" not in said


def test_a_folder_of_runs_lists_all_and_links_them(runs):
    page = report(runs, mlflow=False)
    assert page == runs / "report.html"
    listed = page.read_text()
    assert [name in listed for name in ('href="first/report.html"', 'href="second/report.html"')] == [True, True]
    said = text_of(page)
    assert "2 runs" in said and "Dice (test)" in said and "0.812" in said and "stopped" in said
    assert (runs / "second" / "report.html").is_file()


def test_of_many_the_newest_have_pages(runs):
    Run(runs / "second").note(started=4e9)
    report(runs, most=1, mlflow=False)
    assert (runs / "second" / "report.html").is_file() and not (runs / "first" / "report.html").exists()
    assert 'href="first/report.html"' not in (runs / "report.html").read_text()


def test_a_study_lists_its_folds(trained, tmp_path):
    study = FoldStudy(tmp_path / "study")
    for fold in (1, 2):
        shutil.copytree(trained.folder, study.run(fold).folder)
    study.begin(task="segment", recipe="tiny", folds=2, data_digest="ab" * 32)
    said = text_of(report(study.folder, mlflow=False))
    assert "The study is not finished" in said and "trained 2 times" in said
    study.finish()
    evaluated(study.folder)
    said = text_of(report(study.folder, mlflow=False))
    assert "fold_1" in said and "fold_2" in said and "medseg-diff segment --model study" in said
    assert "Evaluated on phantom-test" in said
    assert (study.run(2).folder / "report.html").is_file()
    report(tmp_path, mlflow=False)
    assert 'href="study/fold_1/report.html"' in (tmp_path / "report.html").read_text()


def test_the_same_run_gives_the_same_page(runs):
    before = report(runs / "first", mlflow=False).read_bytes()
    assert report(runs / "first", mlflow=False).read_bytes() == before


def test_a_run_has_no_scans_to_show(runs):
    with pytest.raises(UsageError, match="holds trainings, whose pages show no scans"):
        report(runs, data="cases.csv")
    with pytest.raises(UsageError, match="nor a run"):
        report(runs / "first" / "figures", mlflow=False)


def test_curves_begin_and_end_in_words():
    points = [Point(step, "loss", 1 / step) for step in range(1, 101)] + [Point(100, "val_loss", 0.5)]
    ((title, curves),) = curves_of(points).items()
    drawn = training_chart(title, curves)
    assert drawn.words == "Loss: loss 1 at step 1, 0.01 at step 100; val loss 0.5 at step 100, 0.5 at step 100."
    assert drawn.light.startswith("data:image/svg+xml;base64,") and drawn.light != drawn.dark


def test_each_phase_has_its_own_speed(runs):
    folder = runs / "first"
    lines = [(10, "denoiser_loss", 1), (20, "denoiser_val_loss", 1), (10, "classifier_loss", 1)]
    (folder / "metrics.csv").write_text("step,name,value\n" + "".join(f"{s},{n},{v}\n" for s, n, v in lines))
    speeds = [(50, 4), (100, 4), (30, 16)]
    system = "".join(f"{step},system/steps_per_second,{speed}\n" for step, speed in speeds)
    (folder / "system.csv").write_text("step,name,value\n" + system)
    page = report(folder, mlflow=False).read_text()
    assert "denoiser steps per second 4 at step 50, 4 at step 100; classifier steps per second 16 at step 30" in page


def test_a_damaged_run_among_others_has_no_page_and_is_named(runs, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    (runs / "second" / "figures" / "odd.png").write_bytes(b"")
    report(runs, mlflow=False)
    assert "second has no page: a file of its folder cannot be read" in caplog.text
    listed = (runs / "report.html").read_text()
    assert 'href="first/report.html"' in listed and 'href="second/report.html"' not in listed and "second" in listed


def test_pictures_that_are_being_written_and_others_are_no_trajectories(runs):
    place = runs / "first" / "figures" / "trajectories"
    place.mkdir(exist_ok=True)
    for name in (".99.segmentation-0000010.png", "my-notes.png"):
        (place / name).write_bytes(b"")
    assert Run(runs / "first").trajectories == []


def test_names_are_quoted_for_the_shell_and_for_links(runs):
    (runs / "first").rename(runs / "exp #1")
    report(runs, runs=runs, mlflow=False)
    assert 'href="exp%20%231/report.html"' in (runs / "report.html").read_text()
    assert "--model 'exp #1' --volume" in html.unescape(text_of(runs / "exp #1" / "report.html"))
