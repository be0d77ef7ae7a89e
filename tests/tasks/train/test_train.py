"""What every train verb says before it begins."""

import logging
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric

from medseg_diff.recipes.lookup import load_recipe, recipe_names
from medseg_diff.tasks.train import anomaly, segmentation, synthesis
from medseg_diff.tasks.train.train import say_how_long
from medseg_diff.tasks.training_options import TrainingRun
from medseg_diff.training.estimate import Work, forward_flops

QUICK = {
    "segment": ("view.size=[32,32]", "network.width=8", "training.steps=4", "training.batch=8"),
    "anomaly": ("view.size=[32,32]", "network.width=8", "classifier.width=8", "training.steps=4", "training.batch=8"),
}


@pytest.fixture
def bench():
    """Of this machine; nothing has been trained yet."""
    return SimpleNamespace(
        fabric=Fabric(accelerator="cpu", devices=1), precision="fp32", left=lambda name, whole: whole
    )


@pytest.mark.parametrize("task", QUICK)
def test_the_time_that_a_training_takes_grows_with_its_steps(bench, task):
    def seconds(*words):
        recipe = load_recipe("quick/phantom", task=task, overrides=(*QUICK[task], *words))
        works = anomaly.works_of(recipe, bench) if task == "anomaly" else [segmentation.work_of(recipe, bench)]
        return works[0].seconds(bench.fabric.device, "fp32")

    quick, longer = seconds(), seconds("training.steps=4000")
    assert 0 < quick < 60 and longer > 20 * quick


def test_where_it_takes_weeks_a_quicker_recipe_is_named(bench, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    works = anomaly.works_of(load_recipe("wolleb", task="anomaly"), bench)
    for seconds, said in ((30 * 86400.0, "; try --config quick/guided, or a machine with a GPU"), (60.0, "")):
        monkeypatch.setattr(Work, "seconds", lambda *_, seconds=seconds, **__: seconds)
        with caplog.at_level("INFO", "medseg_diff"):
            say_how_long(works, bench, quick="quick/guided")
        assert caplog.messages[-1].endswith(f"for 60000 steps of 10 and 20000 steps of 10 (fp32){said}")
    assert "about 60 days" in caplog.text and "about 2 min" in caplog.text


def test_a_file_is_taken_by_its_whole_path(trained, tmp_path, monkeypatch):
    recipe = (trained.folder / "recipe.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "segment").mkdir()
    (tmp_path / "segment" / "mine.yaml").write_text(recipe.replace("steps: 20", "steps: 7"))
    (tmp_path / "mine.yaml").write_text(recipe)
    options = TrainingRun(config="segment/mine.yaml", mlflow=False)
    found = segmentation.VERB.material(trained.table, options, data_root=None)
    assert found.recipe.training.steps == 7 and found.name == "mine"
    assert found.command[-1] == "--no-mlflow"  # what is said to go on with is the same command again


@pytest.mark.parametrize("name", recipe_names("synthesise"))
def test_every_network_of_a_synthesis_is_counted(bench, name):
    recipe, meta = load_recipe(name, task="synthesise"), torch.device("meta")
    for work in synthesis.works_of(recipe, bench):
        assert forward_flops(work.build, lambda network, work=work: work.forward(network, 1, meta)) > 0
