"""Training on phantoms: what a run folder holds, that the seed decides its bytes, and what is refused at the door."""

import csv
import json
import logging

import pytest
import torch
from lightning_fabric import Fabric

from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import CheckpointError, ConfigError, Diverged, MedsegError, UsageError
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.trained import open_run
from medseg_diff.reporting import curves
from medseg_diff.run import Point, Run
from medseg_diff.settings import parse_settings, read_yaml
from medseg_diff.tasks.train import segmentation
from medseg_diff.tasks.train import train as train_module
from medseg_diff.tasks.train.segmentation import train_seg, validate
from medseg_diff.tasks.train.study import ValidationSlices
from medseg_diff.training.fit import Progress


def rows_of(table):
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def train(trained, out, *overrides, data=None):
    """As the shared run was trained, for three steps; its cache is used."""
    settings = read_yaml(trained.folder / "recipe.yaml")
    overrides = ("training.steps=3", "training.validate_every=3", *overrides)
    (out.parent / "tiny.yaml").write_text((trained.folder / "recipe.yaml").read_text())
    assert settings["task"] == "segment"
    return train_seg(
        data or trained.table,
        config=str(out.parent / "tiny.yaml"),
        out=out,
        overrides=overrides,
        data_root=trained.table.parent,
        device="cpu",
        runs=trained.runs,
        mlflow=False,
    )


def test_what_a_run_folder_holds(trained):
    names = {path.relative_to(trained.folder).as_posix() for path in trained.folder.rglob("*") if path.is_file()}
    assert names - {"calibration.json"} == {
        "recipe.yaml",
        "environment.json",
        "run.json",
        "metrics.csv",
        "typicality.json",
        "SHA256SUMS",
        "weights/best.safetensors",
        "weights/last.safetensors",
        "figures/training.png",
        "checkpoints/segmentation/latest.json",
        "checkpoints/segmentation/step_00000020.safetensors",
    }
    facts = Run(trained.folder).facts
    assert facts["finished"] and facts["task"] == "segment" and facts["recipe"] == "quick-phantom"
    assert facts["data"] == f"{trained.table.parent.name}/cases" and facts["patients"] == 10
    assert sum(facts["cases"].values()) == 10 and "training.steps=20" in facts["overrides"]
    assert facts["best_step"] in (10, 20) and facts["precision"] == "fp32"
    text = "".join((trained.folder / name).read_text() for name in ("run.json", "environment.json", "recipe.yaml"))
    assert str(trained.runs) not in text and str(trained.table.parent) not in text


def test_a_training_is_finished_whatever_becomes_of_its_curves(trained, tmp_path, monkeypatch, caplog):
    """Bytes of metrics.csv that are no text do not even harm the picture."""
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    log = Run.log

    def damaging(run, step, numbers):
        log(run, step, numbers)
        with run.metrics_file.open("ab") as file:
            file.write(b"3,l\xefss,0.5\n")

    monkeypatch.setattr(Run, "log", damaging)
    run = train(trained, tmp_path / "damaged")
    assert run.facts["finished"] and (run.figures / "training.png").is_file() and caplog.text == ""

    def fail(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(curves, "training_curves", fail)
    run = train(trained, tmp_path / "undrawn")
    assert run.facts["finished"] and run.verified(run.weights("best")) and "Curves failed (RuntimeError)" in caplog.text


def test_the_recipe_is_stored_resolved(trained):
    recipe = parse_settings(SegmentationRecipe, read_yaml(trained.folder / "recipe.yaml"), source="recipe.yaml")
    assert (recipe.training.steps, recipe.network.width, recipe.view.size) == (20, 16, (32, 32))
    assert recipe.training.weight_decay == 0.01  # a default, spelled out


def test_metrics_hold_the_losses_and_the_validation(trained):
    with (trained.folder / "metrics.csv").open() as file:
        rows = [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]
    assert [(step, name) for step, name, _ in rows] == [
        (step, name)
        for step in (10, 20)
        for name in ("loss", "loss_simple", "loss_prior", "val_dice", "val_loss", "learning_rate")
    ]
    rates = [value for _, name, value in rows if name == "learning_rate"]
    assert 2e-3 > rates[0] > rates[1] >= 0
    losses = [value for _, name, value in rows if name == "loss"]
    assert losses[1] < losses[0] < 2 * 0.8  # the correction's and the prior's
    best = max(value for _, name, value in rows if name == "val_dice")
    assert Run(trained.folder).facts["best_val_dice"] == pytest.approx(best, rel=1e-4)


def test_slices_of_patients_that_are_trained_on_choose_no_weights(trained, tmp_path, monkeypatch):
    """Their Dice falls in every validation here: the best of separate patients is the first, of others the last."""
    dice = iter(range(100, 0, -1))
    monkeypatch.setattr(segmentation, "validate", lambda *_: {"val_dice": next(dice) / 100})
    rows = [row for row in rows_of(trained.table) if row["split"] != "val"]
    alone = write_rows(tmp_path / "alone.csv", [row | {"split": "train"} for row in rows])
    often = ("training.validate_every=1", "validation.calibration_slices=0")
    separate = train(trained, tmp_path / "separate", *often)
    same = train(trained, tmp_path / "same", *often, data=alone)
    asked = train(trained, tmp_path / "asked", *often, "validation.weights=last")
    assert [run.facts["best_step"] for run in (separate, same, asked)] == [1, 3, 3]
    for run in (same, asked):
        assert run.weights("best").read_bytes() == run.weights("last").read_bytes()
    assert separate.weights("best").read_bytes() != separate.weights("last").read_bytes()


def test_the_validation_dice_is_that_of_all_slices_together(trained):
    """The first slice: 8 voxels found of 16. The second: 4 of 4. Both: 2 · 12 / (12 + 20)."""
    recipe = parse_settings(SegmentationRecipe, read_yaml(trained.folder / "recipe.yaml"), source="recipe.yaml")
    mask, image = torch.zeros(2, 1, 8, 8, dtype=torch.bool), torch.full((2, 4, 8, 8), -1.0)
    mask[0, :, 2:6, 2:6], mask[1, :, 2:4, 2:4] = True, True
    image[0, :, 2:4, 2:6], image[1, :, 2:4, 2:4] = 1, 1

    class Network(torch.nn.Module):
        def forward(self, x_t, t, condition):
            return 9 * condition.image[:, :1]

    slices = ValidationSlices(image, mask, torch.ones_like(mask), ("a", "b"))
    found = validate(Progress(1, {}, {"denoiser": Network()}), recipe, slices, Fabric(accelerator="cpu", devices=1))
    assert found["val_dice"] == pytest.approx(24 / 32) and found["val_loss"] > 0 and len(found) == 2


def test_validation_may_fall_on_any_step(trained, tmp_path):
    run = train(trained, tmp_path / "run", "training.steps=5", "training.validate_every=2")
    steps = {row["step"] for row in rows_of(run.metrics_file) if row["name"] == "val_dice"}
    assert steps == {"2", "4", "5"}
    assert {row["step"] for row in rows_of(run.metrics_file) if row["name"] == "loss"} == steps


def test_the_weights_load_as_the_model(trained):
    found = open_run(Run(trained.folder), SegmentationRecipe, device="cpu")
    assert found.recipe.plan().members == 3 and not found.networks["best"].training


def test_the_same_seed_gives_the_same_weights_to_the_last_byte(trained, tmp_path):
    runs = [train(trained, tmp_path / name) for name in ("one", "two")]
    other = train(trained, tmp_path / "other", "training.seed=1")
    contents = [run.weights("last").read_bytes() for run in runs]
    assert contents[0] == contents[1]
    assert other.weights("last").read_bytes() != contents[0]
    assert runs[0].metrics_file.read_bytes() == runs[1].metrics_file.read_bytes()


def test_accumulation_and_learned_variance_train(trained, tmp_path):
    words = (
        "training.accumulate=2",
        "network={kind: unet, width: 16, multipliers: [1, 2], attention: []}",
        "denoiser={target: noise, learned_variance: true}",
        "sampling.solver={kind: ddpm, variance: learned}",
        "regions={whole: [1, 2, 4], core: [1, 4]}",
    )
    run = train(trained, tmp_path / "run", *words)
    metrics = run.metrics_file.read_text()
    assert "loss_vlb" in metrics and "val_dice_whole" in metrics and "val_dice_core" in metrics


def test_a_training_that_diverges_is_an_error_and_no_model(trained, tmp_path):
    with pytest.raises(Diverged, match="not finite at step 2") as caught:
        train(trained, tmp_path / "run", "training.learning_rate=1e14")
    assert caught.value.exit_code == 6
    assert not Run(tmp_path / "run").facts["finished"]
    with pytest.raises(CheckpointError):
        open_run(Run(tmp_path / "run"), SegmentationRecipe, device="cpu")


def test_an_existing_run_is_not_overwritten(trained):
    before = (trained.folder / "run.json").read_bytes()
    with pytest.raises(UsageError, match="tiny already exists"):
        train_seg(trained.table, config="quick/phantom", out=trained.folder, runs=trained.runs, mlflow=False)
    assert (trained.folder / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "said"), [(["training.stepps=3"], "did you mean `steps`"), (["network.width=x"], "`network.width`")]
)
def test_a_wrong_setting_leaves_no_folder(phantoms, tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        train_seg(phantoms, config="quick/phantom", out=tmp_path / "run", overrides=overrides, runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_channel_is_told_for_every_case_before_anything_is_read(phantoms, tmp_path):
    rows = [{key: value for key, value in row.items() if key != "flair"} for row in rows_of(phantoms)]
    table = write_rows(tmp_path / "cases.csv", rows)
    with pytest.raises(MedsegError) as caught:
        train_seg(table, config="quick/phantom", out=tmp_path / "run", data_root=phantoms.parent, runs=tmp_path)
    assert len(caught.value.lines) == 10 and caught.value.exit_code == 2
    assert "has no flair; the recipe reads t1, t1ce, t2, flair" in caught.value.lines[0]
    assert not (tmp_path / "run").exists()


def test_a_run_says_the_digest_of_its_data(trained):
    facts = json.loads((trained.folder / "run.json").read_text())
    assert facts["data_digest"] == read_manifest(trained.table).digest()


def test_the_speed_is_measured_between_validations_of_one_phase(monkeypatch):
    clock = iter([0.0, 2.0, 60.0, 100.0, 101.0, 105.0, 110.0])
    monkeypatch.setattr(train_module.time, "monotonic", lambda: next(clock))
    watcher = train_module.Curves()
    for step, names in ((10, "loss"), (20, "loss"), (30, "loss val_dice"), (40, "loss"), (50, "loss")):
        watcher.metrics(step, dict.fromkeys(names.split(), 1.0))
    for step in (10, 20):
        watcher.metrics(step, {"classifier_loss": 1.0})
    assert watcher.speed == [
        Point(20, "steps per second", 5.0),
        Point(50, "steps per second", 10.0),
        Point(20, "classifier_steps per second", 2.0),
    ]
