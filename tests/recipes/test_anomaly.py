"""Every anomaly recipe that ships can be read and built, and says which paper it is; wrong ones are refused."""

import re

import pytest
import torch

from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.hiding import shown
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.errors import ConfigError, MedsegError
from medseg_diff.files import configs_folder
from medseg_diff.methods.anomaly.engine import Comparison, Networks
from medseg_diff.methods.anomaly.inversion import healthy_label
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.lookup import load_recipe, recipe_names
from medseg_diff.settings import parse_settings, read_yaml, write_yaml

NAMES = recipe_names("anomaly")


def test_the_recipes_that_there_are():
    full = {
        "wolleb",
        "guided",
        "classifier_free",
        "guided_t1",
        "anoddpm",
        "conditional_difference",
        "inpainting",
        "autoddpm",
        "patched",
        "mahalanobis",
        "salient",
        "cddpm",
        "dae",
        "autoencoder",
        "pinaya_latent",
    }
    demos = {"quick/phantom", "quick/phantom_inpainting"}
    assert full | {f"quick/{name}" for name in full} | demos == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_names_its_paper(name):
    recipe = load_recipe(name, task="anomaly")
    assert recipe.task == "anomaly" and re.search(r"arXiv \d{4}\.\d{5}|(CVPR Workshops|MIDL) \d{4}", recipe.paper)
    first = (configs_folder() / "anomaly" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and first.endswith(".")  # says what it is for


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_runs_without_memory(name):
    recipe = load_recipe(name, task="anomaly")
    size = [n // recipe.space.step for n in recipe.view.size]
    image = torch.empty(2, len(recipe.x_channels), *size, device="meta")
    with torch.device("meta"):
        denoiser, classifier = recipe.build_denoiser(), recipe.build_classifier()
        condition = healthy_label(image) if recipe.engine.needs_labels else Condition()
        if recipe.engine.conditioned_on != "nothing":
            hidden = image[:, :1] > 0
            condition = shown(image, hidden) if recipe.engine.conditioned_on == "rest" else Condition(image=image)
        out = denoiser.network(image, torch.ones(2), condition)
        logits = classifier(image, torch.ones(2), Condition())
    assert out.shape == (2, len(recipe.x_channels) * recipe.denoiser.outputs, *size)
    assert logits.shape == (2, 2)
    if isinstance(recipe.engine, Comparison):
        times = recipe.engine.times(recipe.schedule)
        assert (times[0], times[-1], len(times)) == (0, recipe.engine.depth, recipe.engine.steps + 1)
    latent = {"autoencoder"} if recipe.engine.in_latent else set()
    assert set(recipe.parts()) == {*recipe.engine.networks, *latent}


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_copy_is_the_recipe(name, tmp_path):
    recipe = load_recipe(name, task="anomaly")
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    assert parse_settings(AnomalyRecipe, read_yaml(tmp_path / "recipe.yaml"), source="recipe.yaml") == recipe


@pytest.mark.parametrize(
    "name",
    ["quick/phantom", "quick/classifier_free", "quick/inpainting", "quick/cddpm", "quick/dae", "quick/autoencoder"],
)
def test_what_it_builds_reconstructs(name):
    words = ["network.width=8", "network.multipliers=[1,2]", "network.attention=[1]"]
    words += [
        "classifier.width=8",
        "classifier.multipliers=[1,2]",
        "classifier.attention=[]",
        "classifier.head_width=8",
    ]
    recipe = load_recipe(name, task="anomaly", overrides=words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = Networks(
            recipe.build_denoiser().eval(), recipe.build_classifier().eval(), recipe.channels, recipe.space
        )
    image = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    evidence = recipe.engine.score(image, networks, SeededNoise([0, 1], recipe.noise))
    assert evidence.healthy.shape == image.shape and evidence.healthy.isfinite().all()
    assert not evidence.healthy.requires_grad


def test_the_papers_recipe_is_the_papers():
    recipe = load_recipe("wolleb", task="anomaly")
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in module.parameters())
            for module in (recipe.build_denoiser().network, recipe.build_classifier())
        ]
    assert sizes[0] == pytest.approx(113.7e6, rel=0.001) and sizes[1] == 5_444_642
    engine = recipe.engine
    assert (engine.depth, engine.scale, recipe.schedule.length, recipe.network.classes) == (500, 100.0, 1000, 0)
    assert engine.times(recipe.schedule) == list(range(501))  # every step of the 1000 below L
    assert recipe.denoiser.target == "noise" and not engine.needs_labels
    assert recipe.space.encode(torch.tensor([-1.0, 1.0])).tolist() == [0, 1]
    assert recipe.classifier_training.weight_decay == 0 and not recipe.findings.normative


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("engine.scal=3", "did you mean `scale`"),
        ("image_scale=0.5", "setting `image_scale` is now called `space.scale`. Fix: write `space.scale`"),
        ("space.scale=0", "`space.scale`: input should be greater than 0"),
        ("healing.depth=600", "setting `healing` is now called `engine`"),
        ("engine.depth=600", "depth 600 is deeper than the networks learn (deepest 500)"),
        ("engine.steps=600", "600 steps from 0 to"),
        ("deepest=1001", "deepest 1001 is beyond the schedule's 1000"),
        ("denoiser.target=logits", "denoiser.target logits is for masks"),
        ("network.classes=3", "network.classes must be 2"),
        ("network.covariates=1", "without covariates"),
        ("findings.normative=false", "without a normative mean there is no healthy threshold"),
        ("diseased=[0]", "diseased needs labels, 1 or higher"),
        ("channels=[t1,t1]", "a channel is named twice"),
        ("findings.map=positive", "is now called `engine.map`"),
        ("engine.map_channels=[pd]", "the engine names pd; the recipe reads t1, t1ce, t2, flair"),
        ("findings.median=2", "a median needs an odd number"),
        ("findings.threshold=high", "`findings.threshold"),
        ("view.context=1", "these settings do not go together: view.context must be 0"),
        ("augmentation.channel_dropout=0.1", "augmentation.channel_dropout must be 0"),
        ("augmentation.lesion_paste=0.5", "augmentation.lesion_paste must be 0"),
        ("classifier_training.accumulate=3", "classifier_training.batch 32 does not divide by accumulate 3"),
        ("classifier.pooling=levels classifier_training.batch=1", "classifier_training.batch must be 2 or more"),
        ("classifier_training.precision=fp32", "one precision serves all networks"),
        ("classifier.attention=[7]", "attention at level 7"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line_that_says_what_is_right(override, said):
    overrides = ["deepest=500", "classifier_training.batch=32", *override.split(" ")]
    with pytest.raises(MedsegError) as caught:
        load_recipe("guided", task="anomaly", overrides=overrides)
    assert said in " ".join(caught.value.lines) and caught.value.exit_code == 2


def test_classifier_free_needs_a_denoiser_that_knows_labels():
    with pytest.raises(MedsegError, match=r"so network\.classes must be 2"):
        load_recipe("wolleb", task="anomaly", overrides=["engine={kind: classifier_free}"])


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        (
            "cddpm",
            "network={kind: unet}",
            "cddpm conditions its denoiser on a code of the image: set network.kind=with_encoder",
        ),
        ("cddpm", "network={kind: bottleneck}", "set network.kind=with_encoder"),
        (
            "anoddpm",
            "network={kind: with_encoder}",
            "anoddpm gives network with_encoder no image to encode: set network.kind=unet",
        ),
        ("inpainting", "network={kind: with_encoder}", "inpainting gives network with_encoder no image to encode"),
        (
            "inpainting",
            "network={kind: bottleneck}",
            "engine inpainting needs a condition, which a bottleneck does not take: set network.kind=unet",
        ),
        (
            "classifier_free",
            "network={kind: bottleneck}",
            "engine classifier_free needs a condition, which a bottleneck does not take",
        ),
        ("dae", "denoiser.target=noise", "takes its network's output as an image: set denoiser.target=clean"),
        ("dae", "engine.depth=1001", "1 steps from 0 to 1001 do not fit"),
        ("dae", "deepest=50", "depth 80 is deeper than the networks learn (deepest 50)"),
        ("dae", "noise.cells=1", "`noise.cells`: input should be greater than or equal to 2"),
        ("cddpm", "network.covariates=3", "network.covariates"),
        (
            "cddpm",
            "network.kind=monai_unet",
            "kind is unet, with_encoder or bottleneck",
        ),
    ],
)
def test_an_engine_and_a_network_that_do_not_go_together_are_refused(name, override, said):
    with pytest.raises(MedsegError) as caught:
        load_recipe(name, task="anomaly", overrides=[override])
    assert said in " ".join(caught.value.lines)


def test_any_engine_without_condition_may_have_a_bottleneck():
    recipe = load_recipe("quick/anoddpm", task="anomaly", overrides=["network={kind: bottleneck}"])
    assert recipe.network.kind == "bottleneck" and not recipe.learns_labels


def test_engine_and_findings_alone_may_change_after_training():
    recipe = load_recipe("quick/phantom", task="anomaly")
    changed = recipe.with_overrides(["engine.depth=100", "engine.steps=4", "findings.rim_mm=1"])
    assert (changed.engine.depth, changed.engine.steps, changed.findings.rim_mm) == (100, 4, 1)
    assert changed.but(engine=recipe.engine.model_dump(), findings=recipe.findings.model_dump()) == recipe
    assert recipe.with_overrides([]) is recipe
    for word in ("network.width=8", "engine.kind=classifier_free", "deepest=5"):
        with pytest.raises(MedsegError, match="fixed by the training"):
            recipe.with_overrides([word])
    with pytest.raises(MedsegError, match="deeper than the networks learn"):
        recipe.with_overrides([f"engine.depth={recipe.deepest + 1}"])


def test_labels_of_a_lesion_are_those_that_the_recipe_counts():
    labels = torch.tensor([0, 1, 2, 4])
    assert load_recipe("guided", task="anomaly").lesion_in(labels).tolist() == [False, True, True, True]
    some = load_recipe("guided", task="anomaly", overrides=["diseased=[4]"])
    assert some.lesion_in(labels).tolist() == [False, False, False, True]


def test_an_engine_without_its_kind_is_told_which_there_are():
    with pytest.raises(ConfigError, match=r"setting `engine.kind` is missing.*one of inversion, classifier_free"):
        load_recipe("guided", task="anomaly", overrides=["engine={depth: 100}"])


def test_what_the_training_fixed_cannot_be_changed_afterwards():
    recipe = load_recipe("guided", task="anomaly")
    for word in ("engine.kind=anoddpm", "engine={kind: classifier_free}", "findings.false_positive_rate=0.01"):
        with pytest.raises(ConfigError, match=r"`(engine.kind|findings.false_positive_rate)` is fixed by the training"):
            recipe.with_overrides([word])
    assert recipe.with_overrides(["engine.depth=100", "findings.smallest_ml=1"]).engine.depth == 100


def test_an_inversion_takes_no_solver_that_draws_noise():
    for solver in ("{kind: ddpm}", "{kind: ddim, eta: 0.5}"):
        with pytest.raises(ConfigError, match=r"solver draws noise, which an encoding cannot undo"):
            load_recipe("guided", task="anomaly", overrides=[f"engine.solver={solver}"])


def test_nothing_perceives_in_an_anomaly_recipe():
    with pytest.raises(MedsegError, match=r"space\.compression\.perceptual must be 0"):
        load_recipe("quick/pinaya_latent", task="anomaly", overrides=["space.compression.perceptual=1"])
