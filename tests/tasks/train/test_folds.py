"""Folds: every patient is left out once, shards and breaks change no byte, and the study is used as one model."""

import json
import logging
import os
import shutil
import signal

import numpy as np
import pytest

from medseg_diff.data.reading import read_map
from medseg_diff.data.tables.manifest import folds_by_patient, read_manifest
from medseg_diff.errors import CheckpointError, MedsegError, Preempted, UsageError
from medseg_diff.files import read_facts, write_json
from medseg_diff.metrics import conformal
from medseg_diff.run import Run
from medseg_diff.studies import FoldStudy, find_folds
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.train import folds
from medseg_diff.tasks.train.segmentation import train_seg
from medseg_diff.tasks.train.train import TrainVerb
from medseg_diff.training import runner

ENDED = ("finished", "calibration_sha256")  # in study.json, of one that is done
SMALL = ("training.steps=4", "training.validate_every=2", "training.save_every=1", "sampling.members=2")


@pytest.fixture(scope="module")
def train(trained, tmp_path_factory):
    """f(out, *overrides, **options): folds of the shared run's recipe, four steps each."""
    config = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    shutil.copy(trained.folder / "recipe.yaml", config)

    def call(out, *overrides, folds=2, **options):
        common = {"data": trained.table, "config": str(config), "device": "cpu", "runs": trained.runs, "mlflow": False}
        return train_seg(overrides=(*SMALL, *overrides), out=out, folds=folds, **common, **options)

    return call


@pytest.fixture(scope="module")
def study(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("studies") / "whole")


def contents(study):
    """Everything but times and what the process was told: weights, numbers, predictions, calibration."""
    kept = ("*/weights/*", "*/metrics.csv", "*/SHA256SUMS", "out_of_fold/*/*.nii.gz", "calibration.json", "study.json")
    files = [path for pattern in kept for path in study.folder.glob(pattern)]
    return {path.relative_to(study.folder).as_posix(): path.read_bytes() for path in files}


def test_every_patient_is_held_out_once_and_test_patients_never(trained):
    manifest = read_manifest(trained.table)
    parts = folds_by_patient(manifest, 3)
    tested = {case.name for case in manifest.of("test")}
    held = [{case.name for case in part.of("val")} for part in parts]
    assert tested and all({case.name for case in part.of("test")} == tested for part in parts)
    assert sorted(name for part in held for name in part) == sorted({case.name for case in manifest.cases} - tested)
    assert max(map(len, held)) - min(map(len, held)) <= 1
    assert [part.of("val") for part in folds_by_patient(manifest, 3)] == [part.of("val") for part in parts]


def test_a_study_holds_its_runs_and_what_they_say_of_patients_that_they_never_saw(study, trained):
    manifest = read_manifest(trained.table)
    assert isinstance(study, FoldStudy) and study.facts["finished"] and len(study.runs()) == 2
    for fold, part in enumerate(folds_by_patient(manifest, 2), start=1):
        for case in part.of("val"):
            facts = read_facts(study.out_of_fold / case.name / "case.json")
            assert facts["model"] == f"fold_{fold}" and facts["thresholds"] == {"whole_tumour": 0.5}
    calibration = read_facts(study.whole.calibration_file)
    assert calibration["separate"] and calibration["patients"] == len(manifest.cases) - len(manifest.of("test"))
    region = calibration["regions"]["whole_tumour"]
    shown = region["out_of_fold"]
    assert region["temperature"] > 0 and shown["volume_errors"] == sorted(shown["volume_errors"])
    assert len(shown["volume_errors"]) == shown["lesions"] == calibration["patients"]
    assert shown["missed"] == sorted(shown["missed"]) and len(shown["missed"]) == len(conformal.THRESHOLDS)
    text = "".join(path.read_text() for path in study.folder.glob("*.json"))
    assert str(trained.table.parent) not in text and str(study.folder.parent) not in text


def test_folds_measure_no_screening(train, tmp_path):
    with pytest.raises(UsageError, match=r"sampling\.screen needs a threshold .* folds do not measure it"):
        train(tmp_path / "out", "sampling.screen=true")
    assert not (tmp_path / "out").exists()


def test_two_shards_one_of_them_killed_and_resumed_are_the_unbroken_study(train, study, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    whole = runner.fit

    def mortal(*arguments, **named):
        for progress in whole(*arguments, **named):
            yield progress
            if progress.step == 3:
                raise Killed

    first = train(tmp_path / "s", shard=(1, 2))
    assert first.unfinished == [2] and "finished" not in first.facts
    with pytest.raises(CheckpointError, match="fold 2 of 2 is not trained"):
        find_folds(first.folder, task="segment", runs=tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runner, "fit", mortal)
        train(tmp_path / "s", shard=(2, 2))
    assert train(tmp_path / "s", shard=(2, 2), resume="auto").facts["finished"]
    assert contents(first) == contents(study)
    assert contents(train(tmp_path / "s", resume="must")) == contents(study)  # nothing is left to do


def test_a_study_is_one_model_and_tells_the_models_doubt_from_the_members(study, trained, tmp_path):
    (folder, *_) = segment(data=trained.table, split="test", model=study.folder, out=tmp_path, save_members=True)
    facts = json.loads((folder / "case.json").read_text())
    assert facts["model"] == "whole" and [each["model"] for each in facts["models"]] == ["fold_1", "fold_2"]
    calibration = read_facts(study.whole.calibration_file)["regions"]["whole_tumour"]
    assert facts["members"] == 4 and facts["thresholds"]["whole_tumour"] == calibration["threshold"]
    names = [f"{number:02d}.nii.gz" for number in range(4)]
    assert sorted(path.name for path in (folder / "members").iterdir()) == names
    members = np.stack([read_map(folder / "members" / name).voxels for name in names])
    maps = {path.name.split(".")[0]: read_map(path).voxels for path in folder.glob("*.nii.gz")}
    np.testing.assert_allclose(maps["probability"], members.mean(0), atol=1e-5)
    np.testing.assert_allclose(maps["variance_between"], members.var(0), atol=1e-5)
    of_models = members.reshape(2, 2, *members.shape[1:]).mean(1)
    np.testing.assert_allclose(maps["variance_models"], of_models.var(0), atol=1e-5)
    assert maps["variance_models"].max() > 0 and (maps["variance_models"] <= maps["variance_between"]).all()
    (alone, *_) = segment(
        data=trained.table, split="test", model=study.run(1).folder, out=tmp_path / "alone", save_members=True
    )
    for name in names[:2]:  # the first model draws as it does alone
        np.testing.assert_array_equal(
            read_map(alone / "members" / name).voxels, read_map(folder / "members" / name).voxels
        )
    assert not (alone / "variance_models.nii.gz").exists()


def test_volumes_have_an_interval_where_enough_patients_were_measured(study, trained, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    options = {"data": trained.table, "split": "test", "model": study.folder}
    with caplog.at_level("INFO", "medseg_diff"):
        (plain, *_) = segment(out=tmp_path / "95", **options)
        (low, *_) = segment(out=tmp_path / "80", level=0.8, **options)
        (vote, *_) = segment(out=tmp_path / "vote", level=0.8, fusion="vote", **options)
    patients = len(read_facts(study.whole.calibration_file)["regions"]["whole_tumour"]["out_of_fold"]["volume_errors"])
    assert f"95% needs 19 patients, {patients} patients are measured" in caplog.text
    assert f"volumes with 80% intervals, measured on {patients} patients" in caplog.text
    volumes = [read_facts(folder / "case.json")["volume_ml"]["whole_tumour"] for folder in (plain, low, vote)]
    words = f"{volumes[1]['mask']:.1f} ml, with 80% between {volumes[1]['low']:.1f} and {volumes[1]['high']:.1f}"
    assert f"whole_tumour: {words}" in caplog.text and f"; not calibrated ({patients} patients)" in caplog.text
    assert [volume["level"] for volume in volumes] == [None, 0.8, None] and volumes[0]["low"] is None
    assert volumes[1]["low"] < volumes[1]["mask"] < volumes[1]["high"] and volumes[1]["calibrated_on"] == patients
    assert volumes[2]["calibrated_on"] == 0  # measured on masks that were made otherwise
    assert [each["level"] for each in volumes[1]["intervals"]] == [0.5, 0.8] and volumes[1]["method"]
    of_80 = {name: volumes[1][name] for name in ("low", "high", "level")}
    assert volumes[0]["intervals"][1] == volumes[1]["intervals"][1] == of_80
    with pytest.raises(UsageError, match="level 95 is out of range"):
        segment(out=tmp_path / "odd", level=95, **options)


def test_a_mask_that_misses_little_is_promised_only_where_enough_lesions_were_measured(study, trained, tmp_path):
    options = {"data": trained.table, "split": "test", "model": study.folder}
    region = read_facts(study.whole.calibration_file)["regions"]["whole_tumour"]["out_of_fold"]
    threshold = conformal.threshold_of_risk(region["missed"], region["lesions"], 0.3)
    assert threshold is not None
    (folder, *_) = segment(out=tmp_path / "some", guarantee=0.3, **options)
    inside = read_map(folder / "probability.nii.gz").voxels > threshold
    np.testing.assert_array_equal(read_map(folder / "guaranteed_mask.nii.gz").voxels > 0, inside)
    assert read_facts(folder / "case.json")["guarantee"] == {"fnr": 0.3, "thresholds": {"whole_tumour": threshold}}
    with pytest.raises(UsageError, match=r"cannot promise fnr=0.01 for whole_tumour: measured on \d patients"):
        segment(out=tmp_path / "none", guarantee=0.01, **options)
    with pytest.raises(UsageError, match="measured on 0 patients"):
        segment(out=tmp_path / "alone", guarantee=0.3, **options | {"model": study.run(1).folder})


def test_a_study_is_found_by_its_name_and_as_the_newest_model(study, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(study.folder, runs / "mine")
    for named in (runs / "mine", None):
        found = find_folds(named, task="segment", runs=runs)
        assert found.name == "mine" and [run.name for run in found.runs] == ["fold_1", "fold_2"]
    assert find_folds(runs / "mine/fold_2", task="segment", runs=runs).runs == [Run(runs / "mine/fold_2")]
    with pytest.raises(CheckpointError, match="is a study for `segment`, not `anomaly`"):
        find_folds(runs / "mine", task="anomaly", runs=runs)


def test_a_damaged_study_is_refused(study, trained, tmp_path):
    shutil.copytree(study.folder, tmp_path / "odd")
    options = {"data": trained.table, "split": "test", "model": tmp_path / "odd", "out": tmp_path / "out"}
    segment(**options)
    file = tmp_path / "odd/calibration.json"
    file.write_text(file.read_text() + " ")
    FoldStudy(tmp_path / "odd").finish()
    with pytest.raises(UsageError, match="was made with calibration_sha256"):
        segment(**options)
    file.write_text(file.read_text() + " ")
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        segment(**options)
    recipe = tmp_path / "odd/fold_2/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("length: 1000", "length: 999"))
    Run(tmp_path / "odd/fold_2").seal()
    with pytest.raises(CheckpointError, match="a different recipe than fold_1"):
        segment(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"folds": 20}, "patients cannot be divided among 20 folds"),
        ({"folds": None, "shard": (1, 2)}, "--shard needs --folds"),
        ({"folds": 2, "shard": (3, 2)}, "shard 3 of 2 does not exist for 2 folds"),
        ({"folds": 2, "resume": "must"}, "no study of these folds"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(train, tmp_path, options, said):
    with pytest.raises(MedsegError, match=said):
        train(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_study_is_not_calibrated_before_all_are_predicted(train, study, tmp_path, monkeypatch, caplog):
    """Another process has trained its fold, and still predicts its patients."""
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    shutil.copytree(study.folder, tmp_path / "s")
    again = FoldStudy(tmp_path / "s")
    facts = {name: value for name, value in again.facts.items() if name not in ("finished", "calibration_sha256")}
    write_json(again.folder / "study.json", facts)
    late = next(path.parent for path in again.out_of_fold.glob("*/case.json") if read_facts(path)["model"] == "fold_2")
    shutil.move(late, tmp_path / "late")
    with pytest.raises(CheckpointError, match="is trained, but not yet calibrated"):
        find_folds(again.folder, task="segment", runs=tmp_path)
    with caplog.at_level("INFO", "medseg_diff"):
        assert "finished" not in train(again.folder, shard=(1, 2), resume="auto").facts
    assert "another process is still predicting 1 case" in caplog.text
    shutil.move(tmp_path / "late", late)
    assert train(again.folder, shard=(1, 2), resume="auto").facts["finished"] and contents(again) == contents(study)


def test_one_training_of_several_processes_is_no_fold(train, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="each by one process"):
        train(tmp_path / "new")


def test_a_study_goes_on_with_what_it_was_begun_with(train, study, tmp_path):
    with pytest.raises(CheckpointError, match="was started with another recipe"):
        train(study.folder, "training.seed=5", resume="auto")
    with pytest.raises(UsageError, match="already exists"):
        train(study.folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="already exists and is not a study"):
        train(tmp_path / "other")


def test_a_fold_that_never_began_is_begun_where_the_study_must_be_gone_on_with(train, study, tmp_path):
    shutil.copytree(study.folder, tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "fold_2")
    again = FoldStudy(tmp_path / "s")
    write_json(again.folder / "study.json", {name: value for name, value in again.facts.items() if name != "finished"})
    assert not train(again.folder, shard=(2, 2), resume="must").unfinished


def test_two_shards_may_begin_at_once(train, tmp_path, monkeypatch):
    """One finds the folder of the other, whose study.json is being written."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".4711.study.json").write_text("{")
    monkeypatch.setattr(TrainVerb, "train", lambda *_, **__: pytest.fail("begun"))
    with pytest.raises(pytest.fail.Exception, match="begun"):
        train(tmp_path / "s", shard=(1, 2))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(MedsegError, match="already exists and is not a study"):
        train(tmp_path / "other", shard=(1, 2))


def test_a_signal_while_a_study_predicts_is_a_pre_emption_and_the_study_goes_on(train, study, tmp_path, monkeypatch):
    """Nobody takes steps then; a scheduler that sends SIGUSR1 wants to start it again."""
    shutil.copytree(study.folder, tmp_path / "s")
    again = FoldStudy(tmp_path / "s")
    write_json(again.folder / "study.json", {name: value for name, value in again.facts.items() if name not in ENDED})
    before = signal.getsignal(signal.SIGUSR1)
    with monkeypatch.context() as patch:
        patch.setattr(folds, "write_manifest", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(Preempted, match="what was finished is kept"):
            train(again.folder, resume="auto")
    assert signal.getsignal(signal.SIGUSR1) == before and not again.finished
    assert train(again.folder, resume="auto").finished and contents(again) == contents(study)
