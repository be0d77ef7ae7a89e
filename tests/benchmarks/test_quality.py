"""The quality benchmark, whole, in miniature: what it measures means nothing, that it measures is the test."""

import json

import pytest

from benchmarks.quality import Size, at_the_size_of, measure, show, verdict
from medseg_diff.files import write_json
from medseg_diff.recipes.lookup import load_recipe

TINY = Size(
    cases=5,
    shape=(32, 32, 32),
    overrides=(
        "training.steps=2",
        "training.batch=2",
        "network.width=8",
        "network.groups=4",
        "view.size=[32,32]",
        "sampling.members=2",
        "validation.slices=2",
    ),
    paper_steps=2,
    sweep=((1, 2), (3, 2)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quality")


@pytest.fixture(scope="module")
def result(folder):
    return measure(folder, size=TINY, device="cpu")


def test_every_method_and_setting_is_measured(result, folder, tmp_path, dice_of):
    assert [row["name"] for row in result["methods"]] == [
        "default recipe",
        "the paper's recipe",
        "supervised U-Net, same size",
        "supervised, nested masks",
    ]
    assert [row["passes_per_slice"] for row in result["methods"]] == [6, 4, 1, 1]
    assert [(row["steps"], row["members"]) for row in result["sweep"]] == [(1, 2), (3, 2)]
    names = ("default_3x2", "paper", "supervised_1", "supervised_2", "default_1x2", "default_3x2")
    for name, row in zip(names, result["methods"] + result["sweep"], strict=True):
        expected = dice_of(folder / "predictions" / name, folder / "phantoms" / "cases.csv")
        assert row["metrics"]["dice"]["value"] == expected
        assert row["metrics"]["ged2"]["value"] >= 0
        assert row["seconds_per_case"] > 0
    write_json(tmp_path / "quality.json", result)
    assert json.loads((tmp_path / "quality.json").read_text())["benchmark"] == "quality"


def test_supervised_training_takes_the_same_seconds(result):
    pace = result["methods"][2]["pace"]
    wanted = pace["recipe_steps"] * pace["recipe_seconds_per_step"]
    taken = result["methods"][2]["training_steps"] * pace["baseline_seconds_per_step"]
    assert taken == pytest.approx(wanted, abs=pace["baseline_seconds_per_step"])


def test_the_rival_is_the_prior_alone(result):
    assert 0 < result["methods"][2]["parameters"] < result["parameters"]


def test_the_tables_say_whose_ged2_is_lower(result):
    text = show(result)
    assert "GED²: diffusion" in text
    assert "1 steps × 2 members" in text


def test_the_verdict_is_that_of_the_numbers():
    rows = [
        {"name": name, "metrics": {"ged2": {"value": value}}}
        for name, value in (("default recipe", 0.2), ("supervised A", 0.3), ("supervised B", 0.1))
    ]
    found = verdict(rows)
    assert found["supervised A"]["diffusion_is_lower"] is True
    assert found["supervised B"]["diffusion_is_lower"] is False


def test_the_paper_keeps_its_method_and_borrows_the_data():
    ours, paper = (load_recipe(f"quick/{name}", task="segment") for name in ("phantom", "wolleb"))
    both = at_the_size_of(ours, paper, steps=50)
    assert (both.schedule, both.denoiser) == (paper.schedule, paper.denoiser)
    assert both.sampling.steps == 50
    assert (both.view, both.augmentation, both.regions) == (ours.view, ours.augmentation, ours.regions)
    assert both.training.steps == ours.training.steps
