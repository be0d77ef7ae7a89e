"""Every synthesis recipe is valid, names its paper and builds; what does not fit is refused in one line."""

import re

import pytest
import torch

from medseg_diff.diffusion import Condition
from medseg_diff.errors import ConfigError, Problems, UsageError
from medseg_diff.files import configs_folder
from medseg_diff.recipes.lookup import load_recipe, recipe_names
from medseg_diff.recipes.synthesis import SynthesisRecipe
from medseg_diff.settings import parse_settings, read_yaml, write_yaml
from medseg_diff.spaces import PLAIN

NAMES = recipe_names("synthesise")
QUICK = "quick/brain_ldm_3d"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_names_its_paper(name):
    recipe = load_recipe(name, task="synthesise")
    assert recipe.task == "synthesise" and re.search(r"arXiv \d{4}\.\d{5}", recipe.paper)
    first = (configs_folder() / "synthesise" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_runs_without_memory(name):
    recipe = load_recipe(name, task="synthesise")
    with torch.device("meta"):
        parts = {part: build().eval() for part, build in recipe.parts().items()}
        x = torch.empty(2, len(recipe.x_channels), *recipe.grid)
        known = Condition(covariates=torch.empty(2, len(recipe.covariates)) if recipe.covariates else None)
        assert parts["denoiser"](x, torch.ones(2), known).shape[:2] == (
            2,
            len(recipe.x_channels) * recipe.denoiser.outputs,
        )
        image = torch.empty(1, len(recipe.channels), *recipe.view.size)
        if "autoencoder" in parts:
            assert parts["autoencoder"].raw(image).shape == (1, len(recipe.x_channels), *recipe.grid)
        if "regressor" in parts:
            assert parts["regressor"](image, torch.ones(1)).shape == (1, len(recipe.covariates))


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_copy_is_the_recipe(name, tmp_path):
    recipe = load_recipe(name, task="synthesise")
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    assert parse_settings(SynthesisRecipe, read_yaml(tmp_path / "recipe.yaml"), source="recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("covariates=[age_years,age_years]", "names a column twice"),
        ("network.covariates=2", "network.covariates follows from covariates"),
        ("network.classes=2", "there are no classes"),
        ("view.size=[40,48,42]", "a multiple of 4"),
        ("denoiser.target=logits", "logits predict masks"),
        ("sampling.steps=2000", "2000 sampling steps, but the schedule has 1000"),
        ("sampling.guidance=3.0 covariate_dropout=0", "sampling.guidance needs covariates"),
        ("space.compression.perceptual=1.0 covariates=[]", "which needs covariates"),
        ("regressor.pooling=max_mean", "regressor.pooling must be levels"),
        ("regressor_training.batch=1", "regressor_training.batch must be 2 or more"),
        ("augmentation.channel_dropout=0.5", "the model would draw scans like that"),
        ("space.training.precision=fp32 training.precision=bf16", "one precision serves all networks"),
        ("space.training.batch=3 space.training.accumulate=2", "does not divide by accumulate"),
        ("space={kind: video}", "kind is image or latent"),
        ("space.autoencoder.kind=gan", "`space.autoencoder`"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(override, said):
    with pytest.raises((ConfigError, Problems)) as error:
        load_recipe(QUICK, task="synthesise", overrides=override.split(" ") if "{" not in override else [override])
    assert said in str(error.value).replace("\n", " ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("network.kind=unet", "are for network.kind spade"),
        ("regions={}", "set regions, such as"),
        ("covariates=[age_years]", "not on covariates: set covariates=[]"),
        ("regions={lesion: []}", "every region needs labels"),
        ("regions={lesion: [1, 2], core: [1]}", "label 1 is in two"),
        ("other_labels=[2]", "label 2 is in two"),
        ("network.map_channels=5", "network.map_channels follows from regions"),
        ("network.kind=monai_unet", "kind is unet, spade or generator"),
        ("space={kind: latent, passes: 2}", "space.passes must be 0 with regions"),
        ("sampling.guidance=3.0 covariate_dropout=0", "covariate_dropout above 0"),
    ],
)
def test_a_mask_that_cannot_be_painted_is_refused_in_one_line(override, said):
    with pytest.raises((ConfigError, Problems)) as error:
        overrides = override.split(" ") if "{" not in override else [override]
        load_recipe("quick/mask_to_mr", task="synthesise", overrides=overrides)
    assert said in str(error.value).replace("\n", " ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("view.size=[40,48,44]", "network.widths: sides must be multiples of 8, at least 24, not 40×48×44"),
        ("view.size=[40,48,16]", "network.widths: sides must be multiples of 8, at least 24, not 40×48×16"),
        ("network.size=[40,48,48]", "network.size follows from view.size"),
        ("adversarial=null", "set adversarial={}"),
        ("adversarial.encoder.code=3", "`adversarial.encoder.code`"),
        ("network={kind: unet}", "adversarial is for network.kind generator"),
        ("covariates=[age_years]", "is conditioned on nothing"),
        ("regions={lesion: [1]}", "is conditioned on nothing"),
        ("space={kind: latent}", "leave space and noise as they are"),
        ("noise={kind: coarse}", "leave space and noise as they are"),
        ("schedule.length=10", "set schedule.length=1 and denoiser.target=clean"),
        ("denoiser.target=noise", "set schedule.length=1 and denoiser.target=clean"),
        ("sampling.steps=2", "2 sampling steps, but the schedule has 1"),
        ("sampling.guidance=2.0", "sampling.guidance needs covariates"),
    ],
)
def test_what_is_no_gan_is_refused_in_one_line(override, said):
    with pytest.raises((ConfigError, Problems)) as error:
        load_recipe("quick/vae_gan", task="synthesise", overrides=[override])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_regions_are_the_channels_of_the_mask_in_either_space():
    for space in ("space={kind: image}", "space={kind: latent, passes: 0, autoencoder: {kind: kl, widths: [32, 32]}}"):
        recipe = load_recipe("quick/mask_to_mr", task="synthesise", overrides=[space])
        with torch.device("meta"):
            network = recipe.build_denoiser().module().eval()
            x, mask = torch.empty(2, len(recipe.x_channels), *recipe.grid), torch.empty(2, 4, *recipe.view.size)
            assert network(x, torch.ones(2), Condition(mask=mask)).shape == x.shape
        assert recipe.can_be_guided and not recipe.but(covariate_dropout=0.0, sampling={}).can_be_guided


def test_how_it_draws_can_be_changed_and_is_checked():
    recipe = load_recipe(QUICK, task="synthesise")
    drawing = recipe.drawing(PLAIN, steps=4, guidance=2.0, network_batch=None)
    assert (len(drawing.times), drawing.guidance, drawing.network_batch) == (5, 2.0, recipe.sampling.network_batch)
    assert drawing.shape == (len(recipe.x_channels), *recipe.grid)
    with pytest.raises(UsageError, match="do not fit a schedule"):
        recipe.drawing(PLAIN, steps=2000)
    with pytest.raises((ConfigError, Problems)):
        recipe.drawing(PLAIN, guidance=-1.0)
