"""Every recipe that ships can be read, built and sampled from, and says which paper it is."""

import re

import pytest
import torch

from medseg_diff.diffusion.condition import Condition
from medseg_diff.errors import ConfigError, MedsegError, UsageError
from medseg_diff.files import configs_folder
from medseg_diff.methods.components import Findings
from medseg_diff.recipes.lookup import RECIPES, load_recipe, recipe_names
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.settings import parse_settings, read_yaml, write_yaml

NAMES = recipe_names("segment")
SMALL = {
    "paper": "none",
    "channels": ["t1", "flair"],
    "regions": {"whole": [1, 2], "core": [1]},
    "schedule": {"kind": "cosine"},
}


def small(**changes):
    return parse_settings(SegmentationRecipe, SMALL | changes, source="small.yaml")


def test_every_file_in_configs_is_a_recipe_that_a_name_reaches():
    files = {path.relative_to(configs_folder()).as_posix() for path in configs_folder().rglob("*.yaml")}
    tasks = {path.name for path in configs_folder().iterdir()}
    assert tasks <= set(RECIPES)
    assert files == {f"{task}/{name}.yaml" for task in tasks for name in recipe_names(task)}
    assert {"mask_logits", "wolleb", "quick/mask_logits", "quick/wolleb"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_names_its_paper(name):
    recipe = load_recipe(name, task="segment")
    assert recipe.task == "segment" and len(recipe.paper) > 20
    assert re.search(r"arXiv \d{4}\.\d{5}", recipe.paper)
    first = (configs_folder() / "segment" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(".")  # says what it is for


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_runs_without_memory(name):
    recipe = load_recipe(name, task="segment")
    with torch.device("meta"):
        denoiser = recipe.build_denoiser()
        image = torch.empty(2, recipe.view.shown(len(recipe.channels)), *recipe.view.size)
        mask = torch.empty(2, len(recipe.regions), *recipe.view.size)
        out = denoiser.network(mask, torch.ones(2), Condition(image=image))
    parts = 1 + recipe.denoiser.learned_variance + denoiser.says_prior
    assert out.shape == (2, len(recipe.regions) * parts, *recipe.view.size)
    plan = recipe.plan()
    assert plan.times[0] == recipe.schedule.length and plan.times[-1] == 0
    assert len(plan.times) == recipe.sampling.steps + 1 and plan.members_at_once == plan.members


@pytest.mark.parametrize("name", NAMES)
def test_whatever_the_network_says_the_mask_stays_in_its_range_and_explains_what_was_seen(name):
    recipe = load_recipe(name, task="segment")

    def wild(x_t, t, condition):
        return 30 * torch.ones_like(x_t).repeat(1, 1 + recipe.denoiser.learned_variance, 1, 1)

    denoiser = recipe.for_masks(recipe.denoiser.around(wild, recipe.schedule))
    x = torch.randn(2, len(recipe.regions), 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (recipe.schedule.length, recipe.schedule.length // 2):
        seen, (alpha, sigma) = denoiser(x, t, Condition()), recipe.schedule.level(t)
        assert float(recipe.space.decode(seen.clean).abs().max()) == pytest.approx(1)
        torch.testing.assert_close(alpha * seen.clean + sigma * seen.noise, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_copy_is_the_recipe(name, tmp_path):
    recipe = load_recipe(name, task="segment")
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    assert parse_settings(SegmentationRecipe, read_yaml(tmp_path / "recipe.yaml"), source="recipe.yaml") == recipe


def test_the_papers_recipe_has_the_papers_network():
    recipe = load_recipe("wolleb", task="segment")
    with torch.device("meta"):
        network = recipe.build_denoiser().network
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 113.7
    assert (recipe.schedule.kind, recipe.schedule.length, recipe.sampling.members) == ("linear", 1000, 5)
    assert recipe.space.encode(torch.tensor([-1.0, 1.0])).tolist() == [0, 1]
    brain = torch.ones(1, 4, 4, 155, dtype=torch.bool)
    assert recipe.view.for_training(brain) == recipe.view.for_sampling(brain) == list(range(80, 129))
    assert recipe.validation.weights == "last"


def test_overrides_and_paths(tmp_path):
    recipe = load_recipe(
        "mask_logits", task="segment", overrides=["training.steps=7", "network.width=32", "channels=[t1]"]
    )
    assert (recipe.training.steps, recipe.network.width, recipe.channels) == (7, 32, ("t1",))
    (tmp_path / "mine.yaml").write_text(write_yaml(recipe))
    assert load_recipe(str(tmp_path / "mine.yaml"), task="segment") == recipe


def test_an_unknown_recipe_is_answered_with_those_that_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe `mask` for segment. Fix: use one of mask_logits, .*quick/mask"):
        load_recipe("mask", task="segment")
    with pytest.raises(ConfigError, match=r"^gone.yaml: no such recipe file"):
        load_recipe(str(tmp_path / "gone.yaml"), task="segment")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.step=5", "mask_logits.yaml: unknown setting `training.step`. Fix: did you mean `steps`"),
        ("networks.width=5", "unknown setting `networks`. Fix: did you mean `network`"),
        ("sampling.solver.etta=0.5", "unknown setting `sampling.solver.etta`"),
        ("training.steps=many", "setting `training.steps`: input should be a valid integer"),
        ("training.steps=0", "greater than or equal to 1"),
        ("network.attention=[4]", "attention at level 4, but the levels are 0 … 3"),
        ("sampling.steps=1001", "1001 sampling steps, but the schedule has 1000"),
        ("training.accumulate=3", "training.batch 32 does not divide by accumulate 3"),
        ("denoiser.learned_variance=true", "network with_prior learns no variance"),
        ("schedule.betas=[0.0015,0.02]", "a cosine schedule has no betas to choose"),
        ("sampling.solver.variance=learned", "sampling.solver.variance is learned, but the denoiser learns none"),
        ("sampling.solver={kind: ddim, eta: 2}", "less than or equal to 1"),
        ("schedule.kind=cosin", "`schedule.kind`"),
        ("denoiser.target=logit", "`denoiser.target`"),
        ("channels=[t1,t1]", "a channel is named twice: t1, t1"),
        ("channels=[]", "`channels`"),
        ("regions.core=[]", "every region needs labels"),
        ("regions.all=[0]", "every region needs labels, 1 or higher"),
        (
            "regions.core=[1,9]",
            "regions must be nested, the outermost first; if they are not meant to, set nested=false",
        ),
        ("regions={a/b: [1]}", "`regions"),
        ("findings.fusion=median", "`findings.fusion`"),
        ("preparation.orientation=RAX", "an orientation names each axis once"),
        ("augmentation.flips=[2]", "augmentation.flips names axis 2, but the view has only 2 axes"),
        ("view.context=-1", "`view.context`"),
        ("view.kind=cubes", "`view`"),
        ("augmentation.channel_dropout=1.0", "`augmentation.channel_dropout`"),
        ("sampling.noise=pink", "`sampling.noise`"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_that_says_what_is_right(override, said):
    with pytest.raises(MedsegError) as caught:
        load_recipe("mask_logits", task="segment", overrides=[override])
    assert len(caught.value.lines) == 1 and said in caught.value.line
    assert caught.value.exit_code == 2


def unbounded(schema, path=""):
    """The dotted places of a JSON schema where any whole number may stand, however large."""
    if isinstance(schema, list):
        return [place for part in schema for place in unbounded(part, path)]
    if not isinstance(schema, dict):
        return []
    endless = schema.get("type") == "integer" and not {"maximum", "exclusiveMaximum", "const", "enum"} & set(schema)
    return [path] * endless + [place for key, part in schema.items() for place in unbounded(part, f"{path}.{key}")]


@pytest.mark.parametrize("task", RECIPES)
def test_every_whole_number_of_a_recipe_has_a_bound(task):
    """One digit too many must not fill a memory or run for ever."""
    assert unbounded(RECIPES[task].model_json_schema()) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("schedule.length=1000000000", "`schedule.length`: input should be less than or equal to 100000"),
        ("schedule.length=1e9", "`schedule.length`: input should be a valid integer"),
        ("schedule.betas=[-1.0,2.0]", "`schedule.betas.0`: input should be greater than 0"),
        ("view.size=[100000,100000]", "`view.size.0`: input should be less than or equal to 1024"),
        ("view.drop=[-1,0]", "`view.drop.0`: input should be greater than or equal to 0"),
        ("preparation.spacing_mm=[0.001,1,1]", "`preparation.spacing_mm.0`"),
        ("preparation.margin_mm=1e300", "number 1e+300 is beyond any setting"),
        ("preparation.margin_mm=1e9", "less than or equal to 1000"),
        ("training.batch=1000000", "less than or equal to 4096"),
        ("regions.all=[100000]", "less than or equal to 32767"),
        (
            "network={kind: monai_unet, widths: [2048, 2048], blocks: [32, 32], head_width: 64}",
            "a network of about 5.4e+09 parameters",
        ),
    ],
)
def test_what_would_fill_the_memory_is_refused(override, said):
    with pytest.raises(MedsegError) as caught:
        load_recipe("mask_logits", task="segment", overrides=[override])
    assert said in caught.value.line and caught.value.exit_code == 2


def test_a_plan_takes_the_changes_that_are_given():
    recipe = small(sampling={"steps": 3, "members": 4, "members_at_once": 2})
    assert recipe.plan(members=6, steps=None).members == 6
    assert recipe.plan().members_at_once == 2 and len(recipe.plan(steps=5).times) == 6
    with pytest.raises(UsageError, match=r"1001 steps, but the schedule has 1000. Fix: lower --steps"):
        recipe.plan(steps=1001)


@pytest.mark.parametrize(("flips", "mirrors"), [([0], [0, 0]), ([0], [1]), ([], [0])])
def test_mirrors_are_axes_that_training_mirrors_too(flips, mirrors):
    with pytest.raises(ConfigError, match=r"sampling.mirrors may name axes of augmentation.flips"):
        small(augmentation={"flips": flips}, sampling={"mirrors": mirrors})
    assert small(augmentation={"flips": [0, 1]}, sampling={"mirrors": [1, 0]}).plan().mirrors == (1, 0)


def test_a_view_of_patches_makes_a_network_of_three_dimensions_and_neighbours_widen_it():
    deep = load_recipe("quick/mask_logits_3d", task="segment", overrides=["augmentation.flips=[0,1,2]"])
    wide = load_recipe("quick/mask_logits", task="segment", overrides=["view.context=2"])
    with torch.device("meta"):
        assert isinstance(deep.build_denoiser().network.stem, torch.nn.Conv3d)
        network = wide.build_denoiser().network
        assert network.prior.stem.in_channels == 5 * 4 * 2**2  # the image alone
        assert network.correction.stem.in_channels == (1 + 5 * 4 + 1) * 4**2  # beside x_t and what the prior said
    assert (
        wide.but(augmentation={"flips": [0, 1], "channel_dropout": 0.1}).bears_missing_channels
        and not wide.bears_missing_channels
    )
    with pytest.raises(ConfigError, match=r"sampling.noise shared is for slices"):
        load_recipe("quick/mask_logits_3d", task="segment", overrides=["sampling.noise=shared"])
    assert wide.plan(noise="shared").shared_noise and not wide.plan().shared_noise


def test_learned_variance_doubles_the_outputs():
    for learned in (False, True):
        recipe = small(
            denoiser={"target": "noise", "learned_variance": learned},
            network={"kind": "unet", "width": 8, "multipliers": [1], "attention": []},
        )
        with torch.device("meta"):
            head = recipe.build_denoiser().network.head[-1]
        assert head.out_channels == 2 * (1 + learned)


def test_findings_keep_their_range():
    with pytest.raises(ValueError, match="threshold"):
        Findings(threshold=1.0)


@pytest.mark.parametrize(("task", "config"), [("segment", "mask_logits"), ("anomaly", "guided")])
def test_an_old_name_of_a_setting_is_refused_with_its_present_one(task, config):
    with pytest.raises(ConfigError, match=r"setting `validation.film` is now called `validation.trajectories`"):
        load_recipe(config, task=task, overrides=["validation.film=0"])
