"""Anomaly systems by folds: each is calibrated on patients that it never saw, and together they map as one model."""

import csv
import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import medseg_diff
from medseg_diff.data.reading import read_map
from medseg_diff.diffusion import SeededNoise
from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.files import read_facts
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.studies import FoldStudy
from medseg_diff.tasks.apply.anomaly import anomaly
from medseg_diff.tasks.apply.anomaly_volume import open_system
from medseg_diff.tasks.options import Compute
from medseg_diff.tasks.train.anomaly import train_anomaly
from medseg_diff.training import runner

PHASES = ("training", "classifier_training")
TINY = (
    "fewest_voxels=1",
    "view.size=[32,32]",
    *(f"network.{word}" for word in ("width=8", "multipliers=[1,2]", "attention=[]")),
    *(f"classifier.{word}" for word in ("width=8", "multipliers=[1,2]", "groups=4")),
    "training.precision=fp32",
    *(f"{phase}.{word}" for phase in PHASES for word in ("steps=4", "batch=8", "validate_every=4", "save_every=1")),
    "validation.slices=8",
    "validation.trajectories=0",
    "engine.steps=2",
    "engine.depth=20",
    "deepest=40",
)
BYTES = ("*/weights/*", "*/metrics.csv", "*/SHA256SUMS", "*/calibration.json", "*/cases.csv", "study.json")


@pytest.fixture(scope="module", autouse=True)
def so_few_steps_teach_little():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medseg_diff.recipes.calibration.BETTER_THAN_CHANCE", 0.0)
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three patients to learn from, and two new ones."""
    path = medseg_diff.phantom(tmp_path_factory.mktemp("scans"), cases=5, shape=(32, 32, 32), healthy=0.0, seed=3)
    rows = rows_of(path)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys([*rows[0], "split"])))
        writer.writeheader()
        writer.writerows(row | {"split": "test" if number > 2 else "train"} for number, row in enumerate(rows))
    return path


@pytest.fixture(scope="module")
def train(table, tmp_path_factory):
    """f(out, *overrides, **options): two folds of a tiny system."""
    runs = tmp_path_factory.mktemp("runs")

    def call(out, *overrides, folds=2, **options):
        common = {"config": "quick/phantom", "device": "cpu", "runs": runs, "mlflow": False}
        return train_anomaly(table, out=out, overrides=(*TINY, *overrides), folds=folds, **common, **options)

    return call


@pytest.fixture(scope="module")
def study(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("studies") / "whole")


@pytest.fixture(scope="module")
def mapped(table, study, tmp_path_factory):
    """f(out=new, **options): the folders of the new patients, by the study as one model."""

    def call(out=None, model=study.folder, **options):
        out = out or tmp_path_factory.mktemp("mapped")
        return anomaly(data=table, split="test", out=out, model=model, device="cpu", **options)

    return call


@pytest.fixture(scope="module")
def whole(mapped):
    return mapped()


def contents(folder, patterns=BYTES):
    """{relative name: bytes} of everything but times and what the process was told."""
    files = [path for pattern in patterns for path in folder.glob(pattern)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_patient_is_what_a_run_is_calibrated_on_that_did_not_learn_from_them(study, table):
    assert isinstance(study, FoldStudy) and study.finished and not study.out_of_fold.exists()
    held = []
    for run in study.runs():
        rows, known = rows_of(run.folder / "cases.csv"), read_facts(run.calibration_file)
        left_out = [row["case"] for row in rows if row["split"] == "val"]
        assert known["source"] == f"slices without lesion of validation cases ({len(left_out)})"
        assert known["separate"] is True and known["widened"] > 1  # these are slices, no whole brains
        assert known["maps"]["anomaly"]["threshold"] > 0 and known["classifier"]["auroc"] is not None
        held += left_out
    assert sorted(held) == sorted(row["case"] for row in rows_of(table) if row["split"] != "test")


def test_a_fold_that_was_killed_goes_on_to_the_same_bytes(train, study, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    fit, seen = runner.fit, []

    def mortal(*arguments, **named):
        for progress in fit(*arguments, **named):
            yield progress
            seen.append(progress.step)
            if len(seen) == 7:  # in the classifier's training
                raise Killed

    first = train(tmp_path / "s", shard=(1, 2))
    assert first.unfinished == [2] and not first.finished
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runner, "fit", mortal)
        train(tmp_path / "s", shard=(2, 2))
    assert train(tmp_path / "s", shard=(2, 2), resume="auto").finished
    assert contents(first.folder) == contents(study.folder)


def test_the_map_of_a_study_is_the_mean_of_its_runs_maps_in_units_of_their_thresholds(study, whole, mapped):
    runs = study.runs()
    alone = [mapped(model=run.folder) for run in runs]
    thresholds = [read_facts(run.calibration_file)["maps"]["anomaly"]["threshold"] for run in runs]
    assert thresholds[0] != thresholds[1]
    for place, folder in enumerate(whole):
        maps = [read_map(each[place] / "anomaly.nii.gz").voxels for each in alone]
        expected = np.mean([scores / unit for scores, unit in zip(maps, thresholds, strict=True)], axis=0)
        found = read_map(folder / "anomaly.nii.gz").voxels
        np.testing.assert_allclose(found, expected, atol=1e-5)
        facts = json.loads((folder / "case.json").read_text())
        how = "in units of the runs' own thresholds, each: 2 times the score that 0.20% of the healthy voxels"
        assert facts["threshold"]["value"] == 1.0 and facts["threshold"]["how"].startswith(how)
        mask = read_map(folder / "anomaly_mask.nii.gz").voxels > 0
        assert not (mask & (found <= 1)).any()
        healthy = [read_map(each[place] / "healthy_flair.nii.gz").voxels for each in alone]
        np.testing.assert_allclose(
            read_map(folder / "healthy_flair.nii.gz").voxels, np.mean(healthy, axis=0), rtol=1e-4
        )
        assert [each["threshold"] for each in facts["models"]] == thresholds


def test_case_json_says_whose_runs_they_are_and_keeps_the_checks_of_each(study, whole, mapped):
    facts = json.loads((whole[0] / "case.json").read_text())
    assert facts["model"] == "whole" and facts["separate"] is True and facts["normative_mean"] is None
    assert [each["model"] for each in facts["models"]] == ["fold_1", "fold_2"]
    assert all(each["separate"] for each in facts["models"])
    assert facts["network_evaluations"] == {"denoiser": 8, "classifier": 10}  # of both
    (alone, *_) = mapped(model=study.run(2).folder)
    own = json.loads((alone / "case.json").read_text())
    assert set(facts["quality_checks"]) == {"fold_1", "fold_2"}
    for name in ("round_trip", "intensity_gain", "p_healthy", "drift"):
        assert facts["quality_checks"]["fold_2"][name] == own["quality_checks"][name]
    assert all(facts["models"][1][key] == own[key] for key in ("sha256", "classifier_sha256", "calibration_sha256"))


def test_bytes_do_not_depend_on_the_order_of_cases_nor_on_where_they_are_asked_from(
    study, whole, mapped, table, tmp_path
):
    for number in (2, 1):
        mapped(tmp_path / "shards", shard=(number, 2))
    maps = ("*/*.nii.gz",)
    assert contents(tmp_path / "shards", maps) == contents(whole[0].parent, maps) != {}
    model = medseg_diff.load_model(study.folder, device="cpu")
    assert (model.name, model.task) == ("whole", "anomaly")
    for folder in whole[::-1]:
        found = medseg_diff.anomaly(table.parent / folder.name, model=model)
        np.testing.assert_array_equal(found.score, read_map(folder / "anomaly.nii.gz").voxels)


def test_what_is_complete_is_skipped_and_another_model_does_not_mix(study, whole, mapped, tmp_path):
    shutil.copytree(study.folder, tmp_path / "whole")
    out = shutil.copytree(whole[0].parent, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/case.json")}
    mapped(out, tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/case.json")} == before
    with pytest.raises(UsageError, match="was made with sha256"):
        mapped(out, study.run(1).folder)
    run = Run(tmp_path / "whole/fold_2")
    known = read_facts(run.calibration_file)
    known["maps"]["anomaly"]["threshold"] *= 2
    run.calibration_file.write_text(json.dumps(known))
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        mapped(out, tmp_path / "whole")
    run.seal()
    with pytest.raises(UsageError, match="was made with calibration_sha256"):
        mapped(out, tmp_path / "whole")


def test_baselines_are_joined_alike_and_evaluated(mapped, whole, table, tmp_path):
    (folder, *_) = mapped(tmp_path, baselines=True)
    thresholds = json.loads((folder / "case.json").read_text())["baseline_thresholds"]
    assert {"flair", "blur"} <= set(thresholds) and set(thresholds.values()) == {1.0}
    assert {path.name.split(".")[0] for path in (folder / "baselines").iterdir()} == set(thresholds)
    assert (folder / "anomaly.nii.gz").read_bytes() == (whole[0] / "anomaly.nii.gz").read_bytes()
    metrics = medseg_diff.evaluate(tmp_path, table, split="test")
    assert metrics["cases"] == 2 and set(metrics["baselines"]) == set(thresholds)


@pytest.mark.parametrize(
    ("options", "value", "how"),
    [
        ({"threshold": 0.7}, 0.7, "given, in units of the runs' own thresholds"),
        ({"threshold": "otsu"}, None, "Otsu's threshold of this scan's brain"),
    ],
)
def test_another_threshold_is_in_units_of_the_runs_own(mapped, tmp_path, options, value, how):
    (folder, *_) = mapped(tmp_path, shard=(1, 2), **options)
    threshold = json.loads((folder / "case.json").read_text())["threshold"]
    assert threshold["how"] == how and (value is None or threshold["value"] == value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sweep": True}, r"--sweep tries settings of one run.* Fix: name one of them, such as --model whole/fold_1"),
        ({"guarantee": 1.0}, r"--guarantee was measured on the maps of each run alone.* Fix: name one"),
        (
            {"overrides": ["engine.depth=10"]},
            r"units of their thresholds, which were measured with other settings.* Fix: ",
        ),
        (
            {"overrides": ["findings.threshold=0.5"]},
            r"threshold of 0.5 is for one run's scores.* Fix: use --threshold 1",
        ),
    ],
)
def test_what_does_not_go_with_a_study_is_refused_in_a_sentence(mapped, tmp_path, options, said):
    with pytest.raises(UsageError, match=said) as caught:
        mapped(tmp_path / "out", **options)
    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()


def test_a_run_without_a_threshold_has_no_unit(study, mapped, tmp_path):
    shutil.copytree(study.folder, tmp_path / "whole")
    run = Run(tmp_path / "whole/fold_2")
    run.calibration_file.write_text(json.dumps(json.loads(run.calibration_file.read_text()) | {"maps": {}}))
    run.seal()
    with pytest.raises(
        UsageError, match=r"and fold_2 has none above 0 .* Fix: name one run, such as --model whole/fold_1"
    ):
        mapped(tmp_path / "out", tmp_path / "whole")


def test_the_noise_of_a_run_belongs_to_its_place_in_the_study(study):
    system, drawn = open_system(study.run(1), compute=Compute(device="cpu")), []

    class Listening:
        def score(self, image, networks, noise, *, baselines):
            drawn.append(noise(image, 0))

    class Recipe:
        engine, noise = Listening(), system.recipe.noise

    for place in (0, 1, 2, 1):
        replace(system, recipe=Recipe, place=place).evidence(torch.zeros(1, 4, 8, 8), [("case", 3)])
    alone = SeededNoise([seed_of(0, "case", 3)], system.recipe.noise)(torch.zeros(1, 4, 8, 8), 0)
    assert torch.equal(drawn[0], alone) and torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_without_folds_few_patients_are_known_by_heart_and_it_is_said(train, mapped, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    with caplog.at_level("INFO", "medseg_diff"):
        run = train(tmp_path / "one", folds=None)
    assert "were measured on training patients" in caplog.text and "--folds" in caplog.text
    known = read_facts(run.calibration_file)
    assert known["separate"] is False and known["widened"] > 1 and "training cases" in known["source"]
    (folder, *_) = mapped(tmp_path / "out", run.folder, shard=(1, 2))
    facts = json.loads((folder / "case.json").read_text())
    assert facts["separate"] is False and any("--folds" in warning for warning in facts["warnings"])
    assert f"{known['widened']:g} times the score that" in facts["threshold"]["how"]
    as_before = {name: value for name, value in known.items() if name not in ("separate", "widened")}
    run.calibration_file.write_text(json.dumps(as_before))
    run.seal()  # as one was written before this was noted
    (folder, *_) = mapped(tmp_path / "old", run.folder, shard=(1, 2))
    facts = json.loads((folder / "case.json").read_text())
    assert facts["separate"] is None and not any("--folds" in warning for warning in facts["warnings"])
