"""`--init-from`: the same network goes on as it was, and what is new to it changes nothing that it knew."""

import json
import shutil

import pytest
import torch

from medseg_diff import train_anomaly, train_seg
from medseg_diff.diffusion import Condition
from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.warm_start import WarmStart
from medseg_diff.run import Run, create_run
from medseg_diff.settings import write_yaml
from medseg_diff.training.weights import save_weights
from tests.conftest import TINY, shake

SMALL = ("view.size=[16,16]", "network.width=8", "network.groups=4", "network.attention=[]", "training.precision=fp32")
PRIOR = (*SMALL, "network.correction.width=8", "network.correction.groups=4")
NETWORKS = {
    "prior": ("segment", "quick/mask_logits", PRIOR),
    "plain": ("segment", "quick/wolleb", SMALL),
    "neighbours": ("segment", "quick/mask_logits", (*PRIOR, "view.context=1")),
    "anomaly": ("anomaly", "quick/guided", (*SMALL, "classifier.width=8", "classifier.groups=4")),
}
PARTS = [(name, "best") for name in ("prior", "plain", "neighbours")]
PARTS += [("anomaly", "denoiser"), ("anomaly", "classifier")]


def recipe_of(kind, *overrides):
    task, config, small = NETWORKS[kind]
    return load_recipe(config, task=task, overrides=[*small, *overrides])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of each kind, of t1 and flair and one region, with random weights."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, (task, _, _) in NETWORKS.items():
        regions = ["regions={core: [1, 4]}"] if task == "segment" else []
        recipe = recipe_of(kind, "channels=[t1,flair]", *regions)
        run = create_run(folder / kind, task=task, recipe="tiny", settings=write_yaml(recipe))
        for number, (part, build) in enumerate(recipe.parts().items()):
            network = build()
            shake(network, torch.Generator().manual_seed(number))
            save_weights(network, run.weights(part))
        run.seal()
        run.note(finished=True, ended=1.0)
    return folder


def begun(runs, kind, part, *overrides):
    """The network of the run, and one of the changed recipe that began with it."""
    recipe = recipe_of(kind, *overrides)
    start = WarmStart.of(str(runs / kind), recipe, runs=runs)
    old, new = start.recipe.parts()[part](), recipe.parts()[part]()
    WarmStart.of(str(runs / kind), start.recipe, runs=runs).fill(part, old, start.recipe)
    start.fill(part, new, recipe)
    return old, new, start.recipe, recipe


def answer(network, recipe, channels, *, seed=0):
    """What a network says of one scan: `channels` maps each channel to its image [1, 1, X, Y]."""
    drawn = torch.Generator().manual_seed(seed)
    image = torch.cat([channels[name] for name in recipe.channels for _ in range(recipe.view.shown(1))], dim=1)
    if recipe.task == "anomaly":
        with torch.no_grad():
            return network(image, torch.tensor([7]), Condition())
    mask = torch.randn(1, 1, 16, 16, generator=drawn).expand(-1, len(recipe.regions), -1, -1)
    with torch.no_grad():
        return network(mask, torch.tensor([7]), Condition(image=image))


def scan():
    drawn = torch.Generator().manual_seed(3)
    return {name: torch.randn(1, 1, 16, 16, generator=drawn) for name in ("t1", "t1ce", "t2", "flair")}


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_the_same_recipe_begins_with_the_very_weights(runs, kind, part):
    same = ["channels=[t1,flair]"] + (["regions={core: [1, 4]}"] if kind != "anomaly" else [])
    old, new, *_ = begun(runs, kind, part, *same)
    assert all(torch.equal(own, new.state_dict()[name]) for name, own in old.state_dict().items())


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_channels_keep_their_weights_wherever_they_stand(runs, kind, part):
    """Another order of channels is another order of weights; a new channel is not looked at yet."""
    regions = ["regions={core: [1, 4]}"] if kind != "anomaly" else []
    for channels in ("[flair,t1]", "[flair,t1ce,t1]"):
        old, new, before, recipe = begun(runs, kind, part, f"channels={channels}", *regions)
        told, said = (answer(network, own, scan()) for network, own in ((old, before), (new, recipe)))
        if kind == "anomaly" and part == "denoiser":  # outputs stand in the order of the channels
            places = [recipe.channels.index(name) for name in before.channels]
            said = said[:, places]
        torch.testing.assert_close(said, told, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["prior", "plain"])
def test_a_region_that_it_knows_is_said_as_before(runs, kind):
    old, new, before, recipe = begun(
        runs, kind, "best", "channels=[t1,flair]", "regions={whole: [1, 2, 4], core: [1, 4]}"
    )
    told, said = (answer(network, own, scan()) for network, own in ((old, before), (new, recipe)))
    named = recipe._said_of(("whole", "core"))
    assert said.shape[1] == told.shape[1] * 2
    torch.testing.assert_close(said[:, named.index("core")], told[:, 0], rtol=1e-4, atol=1e-5)
    assert (said[:, named.index("whole")] == 0).all()  # as an untrained network says it


def test_what_is_new_and_what_is_gone_is_said(runs, caplog):
    with caplog.at_level("INFO", "medseg_diff"):
        begun(runs, "prior", "best", "channels=[t1,t2]", "regions={core: [1, 4]}", "preparation.spacing_mm=[1,1,1]")
    assert "the best starts from the weights of prior; new to it: t2; no longer there: flair" in caplog.text
    assert "prior was trained on other preprocessing: preparation.spacing_mm differs" in caplog.text


@pytest.mark.parametrize(
    ("kind", "part", "overrides", "found"),
    [
        (
            "prior",
            "best",
            ["network.width=16"],
            r"differs from the recipe's network \(first at prior\..*--config prior",
        ),
        ("prior", "best", ["network.multipliers=[1,2]"], r"differs from the recipe's network"),
        ("plain", "best", ["view={kind: patches, size: [8, 8, 8]}"], r"differs from the recipe's network"),
        ("prior", "best", ["network.stem=1"], r"differs from the recipe's network"),
    ],
)
def test_another_network_is_refused_with_what_to_do(runs, kind, part, overrides, found):
    with pytest.raises(CheckpointError, match=found):
        begun(runs, kind, part, *overrides)


def test_weights_that_are_not_there_or_damaged_are_refused(runs, tmp_path):
    recipe = recipe_of("anomaly")
    with pytest.raises(CheckpointError, match="is a run for `segment`, not `anomaly`"):
        WarmStart.of(str(runs / "prior"), recipe, runs=runs)
    shutil.copytree(runs / "anomaly", tmp_path / "half")
    half = Run(tmp_path / "half")
    half.weights("classifier").unlink()
    half.seal()
    start = WarmStart.of(str(half.folder), recipe, runs=tmp_path)
    with pytest.raises(CheckpointError, match=r"has no weights for a classifier"):
        start.fill("classifier", recipe.build_classifier(), recipe)
    half.weights("denoiser").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        WarmStart.of(str(half.folder), recipe, runs=tmp_path)
    with pytest.raises((CheckpointError, UsageError)):
        WarmStart.of("nowhere", recipe, runs=tmp_path)


def test_a_training_begins_there_says_so_and_resumes_with_the_same_only(trained, tmp_path):
    options = {"config": "quick/phantom", "device": "cpu", "runs": tmp_path, "mlflow": False}
    short = [*TINY, "training.steps=1", "training.validate_every=1"]
    words = {"overrides": [*short, "training.learning_rate=1e-7"], "out": tmp_path / "warm"}
    run = train_seg(trained.table, **options, **words, init_from=str(trained.folder))
    before, after = (read_state(each) for each in (Run(trained.folder), run))
    assert all(torch.allclose(after[name], before[name], atol=1e-5) for name in before)
    facts = json.loads((run.folder / "run.json").read_text())["init_from"]
    assert facts["model"] == trained.folder.name and set(facts["weights"]) == {"best"}
    with pytest.raises(CheckpointError, match=r"was started with other weights \(--init-from\)"):
        train_seg(trained.table, **options, **words, resume="auto")
    again = train_seg(trained.table, **options, **words, resume="auto", init_from=str(trained.folder))
    assert again.folder == run.folder


def test_anomaly_networks_begin_there_too(runs, phantoms, tmp_path, caplog):
    _, config, small = NETWORKS["anomaly"]
    quick = [f"{which}.{key}" for which in ("training", "classifier_training") for key in ("steps=1", "batch=2")]
    quick += ["training.validate_every=1", "classifier_training.validate_every=1", "validation.slices=4"]
    with caplog.at_level("INFO", "medseg_diff"):
        train_anomaly(
            phantoms,
            config=config,
            overrides=[*small, *quick, "validation.trajectories=0"],
            out=tmp_path / "run",
            runs=tmp_path,
            device="cpu",
            mlflow=False,
            init_from=str(runs / "anomaly"),
        )
    assert "the denoiser starts from the weights of anomaly; new to it: t1ce, t2" in caplog.text
    assert "the classifier starts from the weights of anomaly; new to it: t1ce, t2" in caplog.text


def read_state(run):
    from medseg_diff.training.weights import read_tensors

    return read_tensors(run.weights("best"))
