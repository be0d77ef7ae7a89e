"""`tune`: every setting as `segment` and `evaluate` have it, the cheapest good one stored, and drawn from then on."""

import csv
import hashlib
import json
import logging
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

import medseg_diff
from medseg_diff import cli
from medseg_diff.data.tables.manifest import read_manifest, split_by_patient, write_manifest
from medseg_diff.errors import CheckpointError, ConfigError, EnvironmentFault, ImageError, ManifestError, UsageError
from medseg_diff.evaluation import segmentation as evaluation
from medseg_diff.recipes import trained as recipes_trained
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.trained import recipe_of
from medseg_diff.recipes.tuned import METRICS, Allowed, MeasuredSetting, cheapest, nearest, read_tuned, with_losses
from medseg_diff.run import Run
from medseg_diff.runs import starter_run
from medseg_diff.studies import FoundModel
from medseg_diff.tasks.apply import tune as verb
from medseg_diff.tasks.apply import tuning
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.apply.segmentation_system import SegmentationModel, system_of
from medseg_diff.tasks.apply.tune import tune
from medseg_diff.tasks.evaluate import evaluate
from medseg_diff.tasks.options import Compute, EnsembleOptions
from medseg_diff.tasks.runs import register_run
from medseg_diff.tasks.train import out_of_fold
from medseg_diff.tasks.train.segmentation import train_seg
from medseg_diff.tracking import registry

ALL = {"loss": 1.0, "loss_ged2": 1.0, "loss_ece": 1.0}
FEW = {"steps": (1, 2), "members": (2, 3), "device": "cpu"} | ALL


def copy_of(folder, out, *changes):
    """A run that may be changed: some lines of its recipe with others in their place, sealed anew."""
    run = Run(shutil.copytree(folder, out))
    for old, new in changes:
        text = run.recipe_file.read_text()
        assert old in text
        run.recipe_file.write_text(text.replace(old, new))
    run.seal()
    return run


@pytest.fixture
def run(trained, tmp_path):
    return copy_of(trained.folder, tmp_path / "runs" / "mine")


@pytest.fixture(scope="module")
def done(trained, tmp_path_factory):
    """A run that was tuned: its folder, and what that returned. Read only."""
    run = copy_of(trained.folder, tmp_path_factory.mktemp("tuned") / "mine")
    return run, tune(data=trained.table, model=run.folder, **FEW)


def rows_without_seconds(tuned):
    return [row.model_dump(exclude={"seconds"}) for row in tuned.table]


def test_the_cheapest_within_what_may_be_lost_is_stored(done, trained):
    run, tuned = done
    assert [(row.steps, row.members) for row in tuned.table] == [(1, 2), (1, 3), (2, 2), (2, 3)]
    assert (tuned.steps, tuned.members) == (1, 2) and tuned.chosen is tuned.table[0]
    assert read_tuned(run.folder) == tuned
    text = (run.folder / "tuned.json").read_text()
    stored = json.loads(text)
    assert stored["schema"] == 1 and len(stored["sha256"]) == 64 and str(trained.table.parent) not in text
    assert stored["data"] | {"digest": ""} == {
        "table": "cases.csv",
        "digest": "",
        "split": "val",
        "resample_to": None,
        "cases": 1,
        "patients": 1,
        "trained_on": 0,
    }
    run.verified(run.recipe_file)  # the run's own checks are as before


CUTS = {
    "surfaces": (),
    "one half": (("kind: spread\n    own: 0.25\n    length_mm: 6.0", "kind: half"),),
    "votes": (("fusion: mean", "fusion: vote"), ("mirrors: []", "mirrors:\n  - 0")),
    "staple": (("kind: spread\n    own: 0.25\n    length_mm: 6.0", "kind: half"), ("fusion: mean", "fusion: staple")),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_setting_is_what_segment_and_evaluate_make_of_it(steep, tmp_path, cut):
    """To the last bit, whichever of the members of a draw it has, and though nothing is written."""
    model = copy_of(steep.folder, tmp_path / "runs" / "mine", *CUTS[cut]).folder
    tuned = tune(data=steep.table, model=model, seed=5, **FEW)
    for steps, members in ((1, 2), (2, 3)):
        out = tmp_path / f"{steps}x{members}"
        common = {"data": steep.table, "split": "val", "model": model, "device": "cpu", "seed": 5}
        segment(out=out, steps=steps, members=members, save_members=True, **common)
        metrics = evaluate(out, steep.table, figure=False, mlflow=False)["metrics"]
        row = tuned.of(steps, members)
        assert row.values == {"whole_tumour": {name: metrics[name]["value"] for name in METRICS}}
        assert row.values["whole_tumour"]["ged2"] is not None and row.seconds > 0


def test_members_are_nested_so_each_number_of_steps_is_drawn_once(run, trained, monkeypatch):
    drawn = []

    def count(case, prepared, system, *words, **options):
        drawn.append((len(system.plan.times) - 1, system.plan.members))
        return sample_volume(case, prepared, system, *words, **options)

    sample_volume = tuning.sample_volume
    monkeypatch.setattr(tuning, "sample_volume", count)
    both = tune(data=trained.table, model=run.folder, **FEW)
    assert drawn == [(1, 3), (2, 3)]
    (run.folder / "tuned.json").unlink()
    alone = tune(data=trained.table, model=run.folder, **FEW | {"steps": [2], "members": [2]})
    assert alone.table[0].values == both.of(2, 2).values


def test_what_is_measured_is_not_drawn_again(run, trained, monkeypatch, caplog):
    first = tune(data=trained.table, model=run.folder, **FEW)
    monkeypatch.setattr(tuning, "sample_volume", None)  # to call it fails
    caplog.set_level(logging.INFO)
    again = tune(data=trained.table, model=run.folder, **FEW | {"loss": 0.5})
    assert again.table == first.table and again.allowed.dice == 0.5
    assert "4 of 4 settings are already measured" in caplog.text
    with pytest.raises(TypeError):
        tune(data=trained.table, model=run.folder, **FEW | {"steps": (1, 2, 3)})
    with pytest.raises(TypeError):
        tune(data=trained.table, model=run.folder, seed=1, **FEW)
    assert read_tuned(run.folder) == again  # whole, or as it was


def test_a_corrected_reference_is_measured_anew(run, trained, tmp_path, monkeypatch):
    table = shutil.copytree(trained.table.parent, tmp_path / "data") / "cases.csv"
    tune(data=table, model=run.folder, **FEW)
    case = read_manifest(table).of("val")[0]
    shutil.copy(case.raters[0], case.raters[1])
    monkeypatch.setattr(tuning, "sample_volume", None)
    with pytest.raises(TypeError):
        tune(data=table, model=run.folder, **FEW)


def test_segment_draws_it_unless_told_otherwise(done, trained, tmp_path, caplog):
    run, tuned = done
    caplog.set_level(logging.INFO)
    common = {"data": trained.table, "split": "val", "model": run.folder, "device": "cpu"}

    def facts(name, **options):
        (folder,) = segment(out=tmp_path / name, **common, **options)
        said = json.loads((folder / "case.json").read_text())
        return said["steps"], said["members"], said["tuned"]

    assert facts("tuned") == (1, 2, tuned.sha256)
    assert "1 step × 2 members, as tuned (tuned.json)" in caplog.text
    caplog.clear()
    assert facts("steps", steps=2) == (2, 3, None)  # the recipe's members: the two were measured together
    assert facts("members", members=4) == (3, 4, None)
    assert facts("noise", noise="shared") == (3, 3, None)
    assert "as tuned" not in caplog.text
    segment(out=tmp_path / "tuned", steps=1, members=2, **common)  # the same samples: nothing to do
    with pytest.raises(UsageError, match="was made with steps 1, not 3"):
        segment(out=tmp_path / "tuned", steps=3, **common)
    loaded = medseg_diff.load_model(run.folder, device="cpu")
    assert medseg_diff.segment(data=trained.table, split="val", model=loaded)[0].facts["tuned"] == tuned.sha256


def resealed(text, old, new):
    """Edited, and given the digest of what it says then."""
    data = json.loads(text.replace(old, new))
    _, kept = data.pop("sha256"), data.pop("schema")
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return json.dumps({"schema": kept, "sha256": digest, **data})


DAMAGES = {
    "is not readable JSON": lambda text: text[: len(text) // 2],
    "is not of schema 1": lambda text: text.replace('"schema": 1', '"schema": 2'),
    "is not of schema 1 ": lambda text: "[]",
    "its digest differs": lambda text: text.replace('"seed": 0', '"seed": 7'),
    "its digest differs ": lambda text: text.replace('"steps": 1,', '"steps": 2,'),
    "by another version": lambda text: resealed(text, '"seed": 0', '"sead": 0'),
    "by another version ": lambda text: resealed(text, '"steps": 1,', '"steps": 0,'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line_and_replaced_by_tune(done, run, trained, damage):
    file = run.folder / "tuned.json"
    file.write_text(DAMAGES[damage]((done[0].folder / "tuned.json").read_text()))
    model, compute = SegmentationModel.load(FoundModel("mine", [run]), Compute(device="cpu")), {"network_batch": None}
    with pytest.raises(CheckpointError, match=rf"^mine/tuned.json: .*{damage.strip()}.* Fix: run `medseg") as refused:
        system_of(model, EnsembleOptions(), **compute)
    assert refused.value.exit_code == 4 and len(refused.value.lines) == 1
    assert system_of(model, EnsembleOptions(steps=1), **compute).facts["tuned"] is None  # who says it needs no file
    tuned = tune(data=trained.table, model=run.folder, **FEW | {"steps": (1,), "members": (1,)})
    assert system_of(model, EnsembleOptions(), **compute).facts["tuned"] == tuned.sha256


def test_one_of_other_weights_is_not_used_and_says_so(done, steep, tmp_path, caplog):
    run = copy_of(steep.folder, tmp_path / "runs" / "mine")
    shutil.copy(done[0].folder / "tuned.json", run.folder)
    (folder,) = segment(
        out=tmp_path / "out", data=steep.table, split="val", model=run.folder, device="cpu", shard=(1, 1)
    )
    assert json.loads((folder / "case.json").read_text())["steps"] == 3
    assert "mine/tuned.json was measured with other weights and is not used" in caplog.text


def test_where_all_lose_too_much_none_is_chosen(run, trained, tmp_path, caplog, monkeypatch):
    values = {(1, 2): (0.8, 0.5, 0.1), (1, 3): (0.8, 0.4, 0.1), (2, 2): (0.7, 0.3, 0.1), (2, 3): (0.81, 0.5, 0.3)}

    def measure(scan, draw):
        named = {each: dict(zip(METRICS, values[each], strict=True)) for each in draw.totals().values()}
        return {
            each: tuning.Measured(1.0, {"whole_tumour": own | {"reference_ml": 1.0}}) for each, own in named.items()
        }

    monkeypatch.setattr(verb, "measure", measure)
    tuned = tune(data=trained.table, model=run.folder, steps="1,2", members="2,3", loss_ged2=0.05, device="cpu")
    assert (tuned.steps, tuned.chosen) == (None, None) and read_tuned(run.folder) == tuned
    assert "nearest is 1 step × 3 members: run the same command with --loss 0.01 --loss-ged2 0.1" in caplog.text
    (folder,) = segment(out=tmp_path / "out", data=trained.table, split="val", model=run.folder, device="cpu")
    assert json.loads((folder / "case.json").read_text())["tuned"] is None
    again = tune(
        data=trained.table, model=run.folder, steps="1,2", members="2,3", loss=0.01, loss_ged2=0.1, device="cpu"
    )
    assert (again.steps, again.members) == (1, 3)


def row(steps, members, dice, ged2=0.4, ece=0.1, unpromised="", regions=("tumour",)):
    numbers = [each if isinstance(each, tuple) else (each,) for each in (dice, ged2, ece)]
    values = {
        region: dict(zip(METRICS, (each[min(place, len(each) - 1)] for each in numbers), strict=True))
        for place, region in enumerate(regions)
    }
    return MeasuredSetting(steps=steps, members=members, seconds=1.0, values=values, unpromised=unpromised)


ALLOWED = Allowed(dice=0.005, ged2=0.02, ece_band=0.01)


def test_losses_are_against_the_best_of_each_metric():
    table = with_losses([row(1, 3, 0.8, 0.5, 0.1), row(3, 3, 0.81, 0.45, 0.13), row(3, 10, 0.809, 0.4, 0.12)])
    assert [list(each.lost.values()) for each in table] == [[0.01, 0.1, 0], [0, 0.05, 0.03], [0.001, 0, 0.02]]
    assert cheapest(table, ALLOWED) is None and nearest(table, ALLOWED) == table[2]
    assert cheapest(table, ALLOWED.but(ece_band=0.02)) == table[2]
    assert cheapest(table, ALLOWED.but(dice=0.01, ged2=0.1)) == table[0]


def test_of_equally_cheap_settings_that_which_loses_least():
    table = with_losses([row(1, 10, 0.806), row(2, 5, 0.808), row(3, 10, 0.81)])
    assert cheapest(table, ALLOWED) == table[1]


def test_the_region_that_loses_most_decides():
    two = ("whole", "core")
    table = with_losses([row(1, 3, (0.9, 0.70), regions=two), row(3, 3, (0.9, 0.72), regions=two)])
    assert table[0].lost["dice"] == 0.02 and table[0].mean("dice") == pytest.approx(0.8)
    assert cheapest(table, ALLOWED) == table[1]


def test_what_is_undefined_is_not_good_enough_unless_it_is_so_everywhere():
    table = with_losses([row(1, 1, 0.8, ece=None), row(3, 3, 0.8)])
    assert table[0].lost["ece_band"] is None and cheapest(table, ALLOWED) == table[1] == nearest(table, ALLOWED)
    table = with_losses([row(1, 1, 0.8, ece=None), row(3, 3, 0.8, ece=None)])
    assert "ece_band" not in table[0].lost and cheapest(table, ALLOWED) == table[0]


def test_a_setting_that_would_lose_the_intervals_is_not_chosen_and_sets_no_mark():
    table = with_losses([row(1, 3, 0.9, unpromised="no measurements exist for these steps"), row(3, 3, 0.8)])
    assert cheapest(table, ALLOWED) == table[1] and cheapest(table, ALLOWED, promised=False) == table[0]
    assert table[0].lost["dice"] == -0.1


@pytest.fixture(scope="module")
def folds(trained, tmp_path_factory):
    """A study of two folds, four steps each. Read only."""
    place = tmp_path_factory.mktemp("folds")
    config = shutil.copy(trained.folder / "recipe.yaml", place / "tiny.yaml")
    few = ("training.steps=4", "training.validate_every=2", "sampling.members=2")
    common = {"config": str(config), "device": "cpu", "runs": trained.runs, "mlflow": False}
    return train_seg(trained.table, overrides=few, out=place / "study", folds=2, **common)


def test_a_study_is_tuned_as_a_whole_and_keeps_its_intervals(folds, trained, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    study = shutil.copytree(folds.folder, tmp_path / "study")
    few = FEW | {"steps": (1, 3), "members": (1, 2)}
    tuned = tune(data=trained.table, model=study, split="test", **few)
    assert [bool(each.unpromised) for each in tuned.table] == [True, True, False, False]
    assert (tuned.steps, tuned.members) == (3, 1) and tuned.data.trained_on == 0 and len(tuned.weights) == 2
    assert (
        "--steps 1 --members 1 would be cheaper, but then volumes have no interval: no measurements exist"
        in caplog.text
    )
    assert read_tuned(study) == tuned and not (study / "fold_1" / "tuned.json").exists()
    common = {"data": trained.table, "split": "test", "model": study, "device": "cpu"}
    folders = segment(out=tmp_path / "out", save_members=True, **common)
    facts = json.loads((folders[0] / "case.json").read_text())
    assert (facts["steps"], facts["members"], facts["tuned"]) == (3, 2, tuned.sha256)
    metrics = evaluate(tmp_path / "out", trained.table, figure=False, mlflow=False)["metrics"]
    assert tuned.chosen.values == {"whole_tumour": {name: metrics[name]["value"] for name in METRICS}}
    with pytest.raises(UsageError, match=r"none of these settings keeps the intervals of study: .*add 3 to --steps"):
        tune(data=trained.table, model=study, split="test", **few | {"steps": (1, 2)})


def test_patients_that_a_fold_has_learned_from_are_told(folds, trained, tmp_path, caplog):
    study = shutil.copytree(folds.folder, tmp_path / "study")
    assert tune(data=trained.table, model=study, **FEW | {"steps": (3,)}).data.trained_on == 1
    assert "study was trained on 1 of 1 patient" in caplog.text
    caplog.clear()
    with (study / "fold_1" / "cases.csv").open(newline="") as file:
        new = next(each["case"] for each in csv.DictReader(file) if each["split"] == "val")
    rows = [each | {"split": "val" if each["case"] == new else "train"} for each in read_manifest(trained.table).rows()]
    write_manifest(tmp_path / "one.csv", rows)
    tuned = tune(data=tmp_path / "one.csv", data_root=trained.table.parent, model=study / "fold_1", **FEW)
    assert tuned.data.trained_on == 0 and "was trained on" not in caplog.text


def test_patients_of_the_training_are_told(run, trained, caplog):
    tuned = tune(data=trained.table, model=run.folder, split="train", **FEW | {"steps": (1,), "members": (1,)})
    assert tuned.data.trained_on == tuned.data.patients == 7
    assert "mine was trained on 7 of 7 patients: it is worse on new ones" in caplog.text


@pytest.fixture
def table_with(trained, tmp_path):
    """f(change): the phantoms' table with its rows changed, and the folder of the images; None leaves a row out."""

    def call(change):
        rows = [change(dict(each)) for each in read_manifest(trained.table).rows()]
        write_manifest(tmp_path / "other.csv", [each for each in rows if each is not None])
        return {"data": tmp_path / "other.csv", "data_root": trained.table.parent}

    return call


def test_another_table_is_taken_by_its_splits_and_says_that_nothing_is_known(run, table_with, caplog):
    caplog.set_level(logging.INFO)
    own = table_with(lambda each: each if each["split"] == "test" else None)
    tuned = tune(**own, model=run.folder, split="test", **FEW | {"steps": (1,), "members": (1,)})
    assert tuned.data.trained_on is None and tuned.data.cases == 2
    assert "whether mine was trained on some of them is unknown" in caplog.text


def test_a_table_without_splits_has_those_of_the_training_or_none(run, table_with):
    bare = table_with(lambda each: {key: value for key, value in each.items() if key != "split"})
    with pytest.raises(ManifestError, match="has no column split, and is not the table that mine was trained on"):
        tune(**bare, model=run.folder, **FEW)
    drawn = split_by_patient(read_manifest(bare["data"], data_root=bare["data_root"]))
    run.note(data_digest=drawn.digest())
    tuned = tune(**bare, model=run.folder, **FEW | {"steps": (1,), "members": (1,)})
    assert tuned.data.cases == len(drawn.of("val")) == 2 and tuned.data.trained_on == 0


def without_references(each):
    return {key: value for key, value in each.items() if not key.startswith("seg")}


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda each: each if each["split"] == "test" else None, {}, "no case has split val. Fix: fill the columns"),
        (without_references, {}, "no case of split val has a reference. Fix: fill the columns split and seg"),
        (lambda each: each, {"split": "valid"}, "`valid` is not a split. Fix: use one of train, val, test"),
    ],
)
def test_a_split_without_references_is_refused_with_what_to_do(run, table_with, change, options, said):
    with pytest.raises((ManifestError, UsageError), match=said):
        tune(**table_with(change), model=run.folder, **FEW, **options)


def test_references_without_a_lesion_are_refused_before_anything_is_drawn(run, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "draws_of", None)
    labels = run.recipe_file.read_text().split("  whole_tumour:\n")[1].split("nested")[0]
    model = copy_of(run.folder, tmp_path / "runs" / "other", (labels, "  - 77\n"))
    with pytest.raises(ManifestError, match=r"no reference of split val marks any of whole_tumour. Fix: tune on cases"):
        tune(data=trained.table, model=model.folder, **FEW)


def test_a_case_without_reference_is_left_out(run, trained, table_with, caplog):
    caplog.set_level(logging.INFO)
    val, test = (read_manifest(trained.table).of(split)[0].name for split in ("val", "test"))

    def change(each):
        each = each | {"split": "val"} if each["case"] in (val, test) else each
        return without_references(each) if each["case"] == test else each

    assert tune(**table_with(change), model=run.folder, **FEW | {"steps": (1,), "members": (1,)}).data.cases == 1
    assert "left out for lack of a reference: 1 of 2 cases" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"steps": (0, 1)}, UsageError, "--steps takes numbers of 1 or more"),
        ({"members": (3, -1)}, UsageError, "--members takes numbers of 1 or more"),
        ({"members": 3}, UsageError, "--members takes numbers of 1 or more"),
        ({"loss": -0.1}, UsageError, "--loss -0.1 is out of range"),
        ({"loss_ged2": float("nan")}, UsageError, "--loss-ged2 nan is out of range"),
        ({"loss_ece": 2.0}, UsageError, "--loss-ece 2 is out of range"),
        ({"steps": (1, 5000)}, UsageError, "5000 steps, but the schedule has 1000"),
        ({"members": (1001,)}, ConfigError, "members.*less than or equal to 1000"),
    ],
)
def test_numbers_that_are_none_are_refused(run, trained, options, error, said):
    with pytest.raises(error, match=said):
        tune(data=trained.table, model=run.folder, **FEW | options)
    assert not (run.folder / "tuned.json").exists()


def test_a_damaged_image_ends_it_and_leaves_nothing(run, trained, tmp_path):
    table = shutil.copytree(trained.table.parent, tmp_path / "data") / "cases.csv"
    case = read_manifest(table).of("val")[0]
    next(iter(case.images.values())).write_bytes(b"no image")
    with pytest.raises(ImageError):
        tune(data=table, model=run.folder, **FEW)
    assert not (run.folder / "tuned.json").exists()


def test_where_nothing_can_be_stored_it_says_so_before_it_measures(run, trained, monkeypatch):
    with pytest.raises(UsageError, match=r"the starter model belongs to the package. Fix: copy its folder into runs/"):
        tune(data=trained.table, model=starter_run().folder, **FEW)

    def refuse(folder):
        raise EnvironmentFault(
            "cannot be written (Read-only file system)", fix="choose another --out", file=folder.name
        )

    monkeypatch.setattr(verb, "check_writable", refuse)
    with pytest.raises(
        EnvironmentFault, match=r"mine: cannot be written .*Fix: copy it to a folder that you can write to"
    ):
        tune(data=trained.table, model=run.folder, **FEW)


def test_a_registered_version_does_not_change(run, trained, monkeypatch, caplog):
    monkeypatch.setattr(recipes_trained, "fetch", lambda uri, store: run)
    with pytest.raises(UsageError, match=r"models:/tumour/1 is in a registry, and registered versions do not change"):
        tune(data=trained.table, model="models:/tumour/1", **FEW)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(registry, "register", lambda run, runs, **named: registry.Registered("tumour", "1"))
    register_run(run.folder, "tumour", runs=run.folder.parent)
    assert "tuned.json stays" not in caplog.text
    (run.folder / "tuned.json").write_text("{}")
    register_run(run.folder, "tumour", runs=run.folder.parent)
    assert "tuned.json stays in the run's folder" in caplog.text


def test_what_a_study_measures_of_its_folds_is_of_the_recipes_samples(trained, monkeypatch):
    """Whatever was tuned of the run of a fold."""
    asked = {}
    monkeypatch.setattr(out_of_fold, "segment", lambda **options: asked.update(options))
    recipe = recipe_of(Run(trained.folder), SegmentationRecipe)
    fold = SimpleNamespace(
        run=Run(trained.folder), manifest=read_manifest(trained.table), study=SimpleNamespace(out_of_fold=trained.runs)
    )
    out_of_fold.predict(fold, SimpleNamespace(recipe=recipe), SimpleNamespace(runs=trained.runs), "cpu")
    assert (asked["steps"], asked["members"]) == (recipe.sampling.steps, recipe.sampling.members) == (3, 3)


def test_memory_that_runs_out_takes_less_at_once(done, run, trained, monkeypatch):
    sample_volume, tried = tuning.sample_volume, []

    def little(case, prepared, system, *words, **options):
        tried.append(system.plan.network_batch)
        found = sample_volume(case, prepared, system, *words, **options)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return found

    monkeypatch.setattr(tuning, "sample_volume", little)
    tuned = tune(data=trained.table, model=run.folder, **FEW)
    assert tried == [8, 4, 8]
    for one, other in zip(tuned.table, done[1].table, strict=True):
        assert one.values["whole_tumour"] == pytest.approx(other.values["whole_tumour"], abs=1e-3)


def test_from_the_command_line(run, trained, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["medseg-diff", "-q", "tune", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    asked = ("--model", run.folder, "--data", trained.table, "--device", "cpu", "--steps", "1,2", "--members", "2")
    lost = ("--loss", 1, "--loss-ged2", 1, "--loss-ece", 1)
    code, out, _ = call(*asked, *lost)
    lines = out.splitlines()
    assert (
        code == 0
        and lines[0].split()[:4] == ["steps", "members", "s", "per"]
        and lines[1].split()[:3] == ["→", "1", "2"]
    )
    assert (
        lines[3]
        == "lost: compared with the best, at most Dice 1, GED² 1, ECE 1 is allowed; ECE: calibration error in doubt"
    )
    assert (
        lines[4] == f"next: medseg-diff segment --model {run.folder} --data {trained.table} --split test --out results"
    )
    code, out, _ = call(*asked, *lost, "--json")
    assert code == 0 and json.loads(out) == read_tuned(run.folder).model_dump(mode="json")
    code, out, err = call(*asked, "--steps", "1,two")
    assert code == 2 and out == "" and err.count("\n") == 1 and "numbers with commas between, such as 1,2,3" in err
    code, _, err = call("--model", run.folder)
    assert code == 2 and "--data" in err


def test_the_bands_are_those_of_the_evaluation():
    assert set(METRICS) <= set(evaluation.SEGMENTATION)
    for name, sign in METRICS.items():
        assert evaluation.SEGMENTATION[name].direction == ("higher" if sign > 0 else "lower")
