"""Training an anomaly system on phantoms: what its run holds, that it goes on where it stopped, what is refused."""

import csv
import json

import numpy as np
import pytest
import torch

from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import UsageError
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.run import Run
from medseg_diff.tasks.apply.healer import load_healer
from medseg_diff.tasks.train import anomaly as module
from medseg_diff.tasks.train.anomaly import train_anomaly
from medseg_diff.tasks.train.anomaly_study import prepare_anomaly_study, validation_places
from medseg_diff.tasks.train.normative import find_source

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
    "healing.steps=2",
    "healing.depth=20",
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
        "SHA256SUMS",
        "weights/denoiser.safetensors",
        "weights/classifier.safetensors",
        "figures/training.png",
        "figures/classifier.png",
        *(f"figures/strips/denoiser-000000{step}.png" for step in (2, 4)),
        *(f"figures/strips/classifier-000000{step}.png" for step in (3, 6)),
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
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in ("auroc", "balanced_accuracy"))
    told = json.loads((trained.folder / "calibration.json").read_text())["classifier"]["by_time"]
    assert [each["t"] for each in told] == times


def test_it_is_a_model_that_heals(train, trained, monkeypatch):
    monkeypatch.setattr("medseg_diff.tasks.apply.healer.BETTER_THAN_CHANCE", 0.0)  # six steps teach little
    healer = load_healer(trained, device="cpu", precision=None)
    image = torch.zeros(2, 4, 12, 12)
    assert healer.heal(image).healed.shape == image.shape


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


def test_how_long_it_takes_is_said_and_what_to_do_where_that_is_weeks():
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    quick = module.training_seconds(recipe_of(), fabric, "fp32")
    longer = module.training_seconds(recipe_of("training.steps=4000"), fabric, "fp32")
    assert 0 < quick < 60 and longer > 20 * quick
    paper = load_recipe("wolleb", task="anomaly")
    assert module.estimate(paper, fabric, "fp32").endswith("try --config quick/guided, or a machine with a GPU")


def recipe_of(*overrides):
    return load_recipe("quick/phantom", task="anomaly", overrides=(*TINY, *overrides))


def study_of(few, phantoms, cache, rows, *overrides, by_slices=False):
    manifest = read_manifest(write_rows(cache / "cases.csv", rows), data_root=phantoms.parent)
    return prepare_anomaly_study(manifest, recipe_of(*overrides), cache=cache, by_slices=by_slices)


def test_cases_without_reference_are_healthy_by_their_word_or_teach_the_denoiser_only(few, phantoms, tmp_path):
    first, second, val, _ = rows_of(few)
    bare = {key: value for key, value in second.items() if not key.startswith("seg")}
    healthy = study_of(few, phantoms, tmp_path, [first, bare | {"label": "healthy"}, val])
    unknown = study_of(few, phantoms, tmp_path, [first, bare | {"label": "diseased"}, val])
    assert len(healthy.training) == len(unknown.training)
    counts = [[len(places) for places in study.classified.places] for study in (healthy, unknown)]
    assert counts[0][1] == counts[1][1] and counts[0][0] > counts[1][0]
    assert (unknown.training.classes == -1).sum() == counts[0][0] - counts[1][0]


def test_validation_is_half_healthy_half_diseased_and_held_out(few, phantoms, tmp_path):
    rows = rows_of(few)
    study = study_of(few, phantoms, tmp_path, rows)
    assert study.validation.label.tolist() == [0] * 4 + [1] * 4 and study.validation.of_both_kinds
    assert study.validation.image.shape == (8, 4, 32, 32)
    held = study_of(few, phantoms, tmp_path, rows[:2], by_slices=True)
    assert 0.05 < len(study.training) / len(held.training) - 1 < 0.2  # one in ten is left out


def test_validation_slices_of_both_kinds_lie_at_the_same_heights():
    """Healthy slices from all over, diseased ones from the middle: knowing heights must be no skill."""
    heights = np.tile(np.linspace(0, 1, 50), 4)
    classes = np.array([1 if case < 2 and 0.3 < height < 0.6 else 0 for case in range(4) for height in heights[:50]])
    chosen = validation_places(classes, heights, 20)
    assert classes[chosen].tolist() == [0] * 10 + [1] * 10 and len(set(chosen)) == 20
    assert heights[chosen[:10]] == pytest.approx(heights[chosen[10:]], abs=0.05)
    only = validation_places(np.zeros(50, dtype=int), heights[:50], 20)
    assert heights[only].tolist() == pytest.approx(np.linspace(0, 1, 10), abs=0.02)
    few = validation_places(np.array([1, 0, 0, 1, -1]), np.array([0.1, 0.9, 0.4, 0.5, 0.5]), 20)
    assert few == [2, 1, 0, 3]


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
    assert found.words == "healthy validation brains (1) and slices without lesion of validation cases (1)"
    assert source(first, val).words == "slices without lesion of validation cases (1)"
    assert (
        source(first, bare | {"label": "diseased", "split": "val"}).words
        == "slices without lesion of training cases (1)"
    )
    assert not source(bare | {"label": "diseased"}).cases


def test_which_labels_are_a_disease_is_the_recipes_word(few, phantoms, tmp_path):
    some = study_of(few, phantoms, tmp_path, rows_of(few), "diseased=[4]")
    every = study_of(few, phantoms, tmp_path, rows_of(few))
    assert 0 < len(some.classified.places[1]) < len(every.classified.places[1])
    with pytest.raises(UsageError, match="no training slice is diseased"):
        study_of(few, phantoms, tmp_path, rows_of(few), "diseased=[77]")
