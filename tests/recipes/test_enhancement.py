"""Every enhancement recipe is valid, names its paper and builds; what does not fit is refused in one line."""

import re

import pytest
import torch

from medseg_diff.diffusion import Condition
from medseg_diff.errors import ConfigError, Problems, UsageError
from medseg_diff.recipes.enhancement import EnhancementRecipe
from medseg_diff.recipes.lookup import configs_folder, load_recipe, recipe_names
from medseg_diff.settings import parse_settings, read_yaml, write_yaml

NAMES = recipe_names("enhance")
QUICK = "quick/cascade_x2"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_names_its_paper(name):
    recipe = load_recipe(name, task="enhance")
    assert recipe.task == "enhance" and re.search(r"arXiv \d{4}\.\d{5}", recipe.paper)
    first = (configs_folder() / "enhance" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_runs_without_memory(name):
    recipe = load_recipe(name, task="enhance")
    with torch.device("meta"):
        x = torch.empty(2, len(recipe.channels), *recipe.view.size)
        network = recipe.build_denoiser().module().eval()
        known = Condition(image=x, covariates=torch.empty(2, 1))
        assert network(x, torch.ones(2), known).shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_copy_is_the_recipe(name, tmp_path):
    recipe = load_recipe(name, task="enhance")
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    assert parse_settings(EnhancementRecipe, read_yaml(tmp_path / "recipe.yaml"), source="recipe.yaml") == recipe


def test_the_quick_one_refines_what_the_quick_synthesis_draws():
    first, second = load_recipe("quick/brain_ldm_3d", task="synthesise"), load_recipe(QUICK, task="enhance")
    assert first.channels == second.channels
    assert first.preparation.spacing_mm == tuple(mm * second.factor for mm in second.preparation.spacing_mm)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("network.classes=2", "follow from the condition's noise"),
        ("network.covariates=4", "follow from the condition's noise"),
        ("view.size=[33,32,32]", "a multiple of factor, 2"),
        ("view={kind: axial_slices, size: [32, 32]}", "`view`"),
        ("view.lesion_share=0.5", "view.lesion_share must be 0"),
        ("denoiser.target=logits", "to predict images"),
        ("space={kind: image, scale: 0.5}", "space must be that of the image"),
        ("preparation.intensity=robust preparation.background=-5", "preparation.intensity must be percentile"),
        ("condition_noise=2000", "may not exceed the schedule, 1000 times"),
        ("sampling.steps=2000", "may not exceed the schedule, 1000 times"),
        ("sampling.condition_noise=400", "beyond what is trained, condition_noise=300"),
        ("augmentation.channel_dropout=0.5", "the model would draw scans like that"),
        ("factor=1", "`factor`"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(override, said):
    with pytest.raises((ConfigError, Problems)) as error:
        load_recipe(QUICK, task="enhance", overrides=override.split(" ") if "{" not in override else [override])
    assert said in str(error.value).replace("\n", " ")


def test_how_it_draws_can_be_changed_and_is_checked():
    recipe = load_recipe(QUICK, task="enhance")
    now = recipe.enhancing(steps=4, condition_noise=0, network_batch=None)
    assert (now.evaluations, now.condition_noise, now.network_batch) == (4, 0, recipe.sampling.network_batch)
    for changes in ({"steps": 2000}, {"condition_noise": 301}, {"condition_noise": -1}):
        with pytest.raises((ConfigError, Problems, UsageError)):
            recipe.enhancing(**changes)
    whole = load_recipe(QUICK, task="enhance", overrides=["view={kind: volume, size: [96, 112, 96]}"])
    assert whole.enhancing().tile == (96, 112, 96) and whole.enhancing().tiles((48, 50, 40)) == 1
