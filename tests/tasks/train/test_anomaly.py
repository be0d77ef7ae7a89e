"""Training an anomaly system on phantoms: what its run holds, that it goes on where it stopped, what is refused."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.run import Run
from medseg_diff.tasks.apply.anomaly_volume import open_system
from medseg_diff.tasks.options import Compute
from medseg_diff.tasks.train import anomaly as module
from medseg_diff.tasks.train.anomaly import train_anomaly
from medseg_diff.tasks.train.normative import find_source
from medseg_diff.tasks.train.train import Material
from medseg_diff.training.fit import Progress

TINY = (
    "fewest_voxels=1",
    "view.size=[32,32]",
    "network.width=8",
    "network.multipliers=[1,2]",
    "network.attention=[]",
    "classifier.width=8",
    "classifier.multipliers=[1,2]",
    "classifier.groups=4",
    "training.steps=4",
    "training.batch=8",
    "training.precision=fp32",
    "training.validate_every=2",
    "classifier_training.steps=6",
    "classifier_training.batch=8",
    "classifier_training.validate_every=3",
    "validation.slices=8",
    "engine.steps=2",
    "engine.depth=20",
    "deepest=40",
)


def rows_of(table):
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def few(phantoms, tmp_path_factory):
    """Four of the phantoms: two to train on, one to validate, one never seen."""
    splits = ("train", "train", "val", "test")
    rows = [row | {"split": split} for row, split in zip(rows_of(phantoms), splits, strict=False)]
    return write_rows(tmp_path_factory.mktemp("few") / "cases.csv", rows)


@pytest.fixture(scope="module")
def train(phantoms, few, tmp_path_factory):
    """Trains a tiny system; all runs of this file share one cache."""
    runs = tmp_path_factory.mktemp("anomaly")

    def run(name, *overrides, data=few, **options):
        return train_anomaly(
            data,
            config="quick/phantom",
            out=runs / name,
            overrides=(*TINY, *overrides),
            data_root=phantoms.parent,
            device="cpu",
            runs=runs,
            mlflow=False,
            **options,
        )

    return run


@pytest.fixture(scope="module")
def trained(train):
    return train("whole")


def test_what_a_run_folder_holds(trained):
    names = {path.relative_to(trained.folder).as_posix() for path in trained.folder.rglob("*") if path.is_file()}
    names = {name for name in names if not name.startswith("checkpoints/")}
    assert names - {".lock", "lock"} == {
        "recipe.yaml",
        "environment.json",
        "run.json",
        "metrics.csv",
        "classifier.csv",
        "calibration.json",
        "typicality.json",
        "SHA256SUMS",
        "weights/denoiser.safetensors",
        "weights/classifier.safetensors",
        "figures/training.png",
        "figures/classifier.png",
        *(f"figures/trajectories/denoiser-000000{step}.png" for step in (0, 2, 4)),
        *(f"figures/trajectories/classifier-000000{step}.png" for step in (0, 3, 6)),
    }
    assert trained.facts["finished"] and trained.facts["task"] == "anomaly"


def test_both_phases_tell_their_numbers(trained):
    found = {(row["name"], int(row["step"])) for row in rows_of(trained.metrics_file)}
    assert {("denoiser_loss", 4), ("denoiser_val_loss", 2), ("denoiser_val_loss", 4)} <= found
    assert {("classifier_accuracy", 6), ("classifier_val_auroc", 3), ("classifier_val_accuracy", 6)} <= found


def test_the_classifiers_skill_is_told_by_time(trained):
    rows = rows_of(trained.folder / "classifier.csv")
    times = [int(row["t"]) for row in rows]
    assert times[0] == 1 and times[-1] == 40 and 20 in times and times == sorted(times)
    told = json.loads((trained.folder / "calibration.json").read_text())["classifier"]["by_time"]
    assert [{name: float(value) for name, value in row.items()} for row in rows] == told


def test_it_is_a_model_that_maps(trained, monkeypatch):
    monkeypatch.setattr("medseg_diff.recipes.calibration.BETTER_THAN_CHANCE", 0.0)  # six steps teach little
    system, image = open_system(trained, compute=Compute(device="cpu")), torch.zeros(2, 4, 12, 12)
    said = system.evidence(image, [("a", 0), ("a", 1)])
    assert said.score.shape == (2, 1, 12, 12) and said.healthy.shape == image.shape


class Knowing(torch.nn.Module):
    """The velocity of an image that it knows: (alpha x_t - x_0) / sigma."""

    def __init__(self, clean, schedule):
        super().__init__()
        self.clean, self.schedule = clean, schedule

    def forward(self, x_t, t, condition):
        alpha, sigma = self.schedule.level(t, like=x_t)
        return (alpha * x_t - self.clean) / sigma


class Listening(torch.nn.Module):
    """A classifier that keeps what it is shown and says nothing."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, x_t, t, condition):
        self.shown.append((x_t, t))
        return torch.zeros(len(x_t), 2)


@pytest.fixture
def scaled():
    """A recipe of images at half their size, slices of the value 6 in place of its study, and a bench."""
    recipe = recipe_of("space={kind: image, scale: 0.5}", "network.classes=0", "engine.condition_on_healthy=false")
    slices = SimpleNamespace(image=torch.full((8, 4, 32, 32), 6.0), mask=torch.zeros(8, 1, 32, 32, dtype=torch.bool))
    study = SimpleNamespace(training=None, validation=slices, label=torch.arange(8) % 2, of_both_kinds=True)
    return recipe, study, SimpleNamespace(fabric=Fabric(accelerator="cpu", devices=1))


def is_standard(x_t, t, recipe):
    """Whether what is left of x_t without half of the image is standard normal."""
    alpha, sigma = recipe.schedule.level(t, like=x_t)
    noise = (x_t - alpha * 3.0) / sigma
    return abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05


def test_both_networks_are_trained_on_the_image_at_its_scale(scaled):
    recipe, study, bench = scaled
    batch, listening = Batch(study.validation.image, label=study.label), Listening()
    given = Material(recipe, "tiny", None, None, ())
    denoising = module._denoiser_phase(given, study, recipe.space, bench).objective
    classifying = module._classifier_phase(given, study, None, bench).objective
    denoising.adopt("denoiser", Knowing(0.5 * batch.image, recipe.schedule))
    classifying.adopt("classifier", listening)
    (turn,) = denoising.turns(batch, 0)
    assert float(turn.loss) < 1e-6
    list(classifying.turns(batch, 0))
    assert is_standard(*listening.shown[0], recipe)


def test_both_networks_are_validated_on_the_image_at_its_scale(scaled):
    recipe, study, bench = scaled
    knowing, listening = Knowing(0.5 * study.validation.image, recipe.schedule), Listening()
    progress = Progress(1, {}, {"denoiser": knowing})
    assert module.denoising_error(progress, recipe, study, recipe.space, bench.fabric)["val_loss"] < 1e-6
    skill = module.skill_of(listening, recipe, study, bench.fabric)
    assert all(is_standard(*shown, recipe) for shown in listening.shown) and len(listening.shown) == len(skill)


def test_a_training_that_is_broken_off_goes_on_to_the_same_bytes(train, trained, monkeypatch):
    turns, calls = module.NoisyClassification.turns, []

    def breaking(self, batch, step):
        calls.append(step)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return turns(self, batch, step)

    monkeypatch.setattr(module.NoisyClassification, "turns", breaking)
    with pytest.raises(KeyboardInterrupt):
        train("broken")
    assert not (trained.folder.parent / "broken" / "calibration.json").exists()
    denoiser = Run(trained.folder.parent / "broken").weights("denoiser").stat().st_mtime_ns
    again = train("broken", resume="must")
    assert again.weights("denoiser").stat().st_mtime_ns == denoiser  # that phase was done
    assert 0 < len(calls) - 5 < 6  # and this one half
    for name in ("weights/denoiser.safetensors", "weights/classifier.safetensors", "calibration.json", "metrics.csv"):
        assert (again.folder / name).read_bytes() == (trained.folder / name).read_bytes(), name


def recipe_of(*overrides):
    return load_recipe("quick/phantom", task="anomaly", overrides=(*TINY, *overrides))


def test_floor_and_threshold_come_from_validation_brains_and_slices_without_lesion(few, phantoms, tmp_path):
    first, second, val, _ = rows_of(few)
    bare = {key: value for key, value in second.items() if not key.startswith("seg")}
    healthy = bare | {"label": "healthy", "split": "val"}

    def source(*rows):
        return find_source(
            read_manifest(write_rows(tmp_path / "cases.csv", rows), data_root=phantoms.parent), recipe_of()
        )

    found = source(first, healthy, val)
    assert [case.name for case in found.cases] == [healthy["case"], val["case"]]
    assert found.unseen == {healthy["case"]} and found.separate
    assert found.words == "healthy validation brains (1) and slices without lesion of validation cases (1)"
    assert source(first, val).words == "slices without lesion of validation cases (1)"
    known = source(first, bare | {"label": "diseased", "split": "val"})
    assert known.words == "slices without lesion of training cases (1)" and not known.separate
    assert not source(bare | {"label": "diseased"}).cases
