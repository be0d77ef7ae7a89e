"""Every anomaly recipe that ships can be read, built and healed with, and says which paper it is; wrong ones are refused."""

import re

import pytest
import torch

from medseg_diff.diffusion.condition import Condition
from medseg_diff.errors import MedsegError, UsageError
from medseg_diff.methods.anomaly.inversion import heal
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.lookup import configs_folder, load_recipe, recipe_names
from medseg_diff.settings import parse_settings, read_yaml, write_yaml

NAMES = recipe_names("anomaly")


def test_the_recipes_that_there_are():
    full = {"wolleb", "guided", "classifier_free", "guided_t1"}
    assert full | {f"quick/{name}" for name in full} | {"quick/phantom"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_names_its_paper(name):
    recipe = load_recipe(name, task="anomaly")
    assert recipe.task == "anomaly" and re.search(r"arXiv \d{4}\.\d{5}", recipe.paper)
    first = (configs_folder() / "anomaly" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(".")  # says what it is for


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_runs_without_memory(name):
    recipe = load_recipe(name, task="anomaly")
    image = torch.empty(2, len(recipe.channels), *recipe.view.size, device="meta")
    with torch.device("meta"):
        denoiser, classifier = recipe.build_denoiser(), recipe.build_classifier()
        out = denoiser.network(image, torch.ones(2), recipe.healing.way_back(image))
        logits = classifier(image, torch.ones(2), Condition())
    assert out.shape == (2, len(recipe.channels) * (1 + recipe.denoiser.learned_variance), *recipe.view.size)
    assert logits.shape == (2, 2)
    levels = recipe.heals().levels(recipe.schedule)
    assert (levels[0], levels[-1], len(levels)) == (0, recipe.healing.depth, recipe.healing.steps + 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_copy_is_the_recipe(name, tmp_path):
    recipe = load_recipe(name, task="anomaly")
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    assert parse_settings(AnomalyRecipe, read_yaml(tmp_path / "recipe.yaml"), source="recipe.yaml") == recipe


@pytest.mark.parametrize("engine", ["classifier", "classifier_free"])
def test_what_it_builds_heals(engine):
    words = ["network.width=8", "network.multipliers=[1,2]", "network.attention=[1]", "healing.steps=2"]
    words += ["classifier.width=8", "classifier.multipliers=[1,2]", f"healing.engine={engine}"]
    recipe = load_recipe("quick/phantom", task="anomaly", overrides=words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser, classifier = recipe.build_denoiser().eval(), recipe.build_classifier().eval()
    image = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    healing = recipe.heals(scale=3)
    found = heal(
        image,
        denoiser=denoiser,
        guided=healing.guided(denoiser, classifier),
        levels=healing.levels(recipe.schedule),
        image_scale=recipe.image_scale,
        way_back=healing.way_back(image),
        classifier=classifier,
    )
    assert found.healed.shape == image.shape and found.healed.isfinite().all()
    assert found.believed.shape == (3, 2) and not found.healed.requires_grad


def test_the_papers_recipe_is_the_papers():
    recipe = load_recipe("wolleb", task="anomaly")
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in module.parameters())
            for module in (recipe.build_denoiser().network, recipe.build_classifier())
        ]
    assert sizes[0] == pytest.approx(113.7e6, rel=0.001) and sizes[1] == 5_444_642
    healing = recipe.healing
    assert (healing.depth, healing.scale, recipe.schedule.length, recipe.network.classes) == (500, 100.0, 1000, 0)
    assert recipe.heals().levels(recipe.schedule) == list(range(501))  # every step of the 1000 below L
    assert recipe.denoiser.target == "noise" and recipe.healing.way_back(torch.zeros(1)) == Condition()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("healing.engin=classifier", "did you mean `engine`"),
        ("healing.depth=600", "depth 600 is deeper than the networks have learned (500)"),
        ("healing.steps=600", "600 steps from 0 to"),
        ("deepest=1001", "deepest 1001 is beyond the schedule's 1000"),
        ("denoiser.target=logits", "denoiser.target logits is for masks"),
        ("network.classes=3", "network.classes is 2"),
        ("network.covariates=1", "no covariates"),
        ("diseased=[0]", "diseased needs labels, 1 or higher"),
        ("channels=[t1,t1]", "a channel is named twice"),
        ("findings.map_channels=[pd]", "findings.map_channels names pd; the recipe reads t1, t1ce, t2, flair"),
        ("findings.median=2", "a median needs an odd number"),
        ("findings.threshold=high", "`findings.threshold"),
        ("view.context=1", "view.context is 0"),
        ("augmentation.channel_dropout=0.1", "augmentation.channel_dropout is 0"),
        ("classifier_training.accumulate=3", "classifier_training.batch 32 does not divide by accumulate 3"),
        ("classifier_training.precision=fp32", "one precision serves both networks"),
        ("classifier.attention=[7]", "attention at level 7"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_that_says_what_is_right(override, said):
    overrides = ["deepest=500", "classifier_training.batch=32", override]
    with pytest.raises(MedsegError) as caught:
        load_recipe("guided", task="anomaly", overrides=overrides)
    assert said in " ".join(caught.value.lines) and caught.value.exit_code == 2


def test_classifier_free_needs_a_denoiser_that_knows_labels():
    with pytest.raises(MedsegError, match=r"so network\.classes must be 2"):
        load_recipe("wolleb", task="anomaly", overrides=["healing.engine=classifier_free"])


def test_healing_takes_the_changes_that_are_given():
    recipe = load_recipe("quick/phantom", task="anomaly")
    changed = recipe.heals(depth=100, steps=4, scale=7, network_batch=None)
    assert (changed.depth, changed.steps, changed.scale) == (100, 4, 7)
    assert changed.network_batch == recipe.healing.network_batch
    with pytest.raises(UsageError, match="deeper than the networks have learned"):
        recipe.heals(depth=recipe.deepest + 1)


def test_map_channels_are_found_by_name():
    recipe = load_recipe("guided", task="anomaly", overrides=["findings.map_channels=[flair, t2]"])
    assert recipe.map_channels == (3, 2)
    assert load_recipe("guided", task="anomaly", overrides=["findings.map_channels=[]"]).map_channels == ()
