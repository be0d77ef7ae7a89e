"""Training on cases whose channels lie on several grids: what it does, every later verb does too, or says."""

import json
import logging
import shutil

import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import same_grid
from medseg_diff.data.reading import read_labels, read_volume
from medseg_diff.data.tables.manifest import read_manifest, write_manifest
from medseg_diff.errors import CheckpointError, ConfigError, MedsegError
from medseg_diff.files import read_facts
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.run import create_run
from medseg_diff.settings import parse_settings, write_yaml
from medseg_diff.tasks.apply.anomaly import anomaly
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.evaluate import evaluate
from medseg_diff.tasks.train.normative import calibrate
from medseg_diff.tasks.train.segmentation import train_seg
from medseg_diff.tasks.train.study import check_channels
from medseg_diff.training.weights import save_weights
from tests.conftest import ANOMALY, TINY

SMALL = ("training.steps=2", "training.validate_every=2", "sampling.members=2")


@pytest.fixture(scope="module")
def table(phantoms, tmp_path_factory):
    """Two phantoms whose flair has slices twice as thick, half a voxel aside."""
    folder = tmp_path_factory.mktemp("grids")
    cases = [case for case in read_manifest(phantoms).cases if case.split == "train"][:2]
    for case in cases:
        shutil.copytree(case.seg.parent, folder / case.name)
        flair = read_volume(case.images["flair"])
        thick = np.diag([1, 1, 2, 1.0])
        thick[:3, 3] = (0.5, 0.0, 0.5)
        voxels = (flair.voxels[:, :, ::2] + flair.voxels[:, :, 1::2]) / 2
        write_volume(folder / case.name / "flair.nii.gz", voxels, flair.affine @ thick)
    names = {case.name for case in cases}
    rows = [row | {"split": "train"} for row in read_manifest(phantoms).rows() if row["case"] in names]
    write_manifest(folder / "cases.csv", rows)
    return folder / "cases.csv"


@pytest.fixture(scope="module")
def train(table, tmp_path_factory):
    """f(out, **options): two steps on these cases."""
    runs = tmp_path_factory.mktemp("runs")

    def call(out, **options):
        usual = {"config": "quick/phantom", "overrides": (*TINY, *SMALL), "device": "cpu", "runs": runs}
        return train_seg(table, out=runs / out, mlflow=False, **usual, **options)

    return call


@pytest.fixture(scope="module")
def study(train):
    return train("study", folds=2, resample_to="flair")


def test_without_the_option_it_is_refused_with_it(train):
    with pytest.raises(MedsegError) as caught:
        train("none")
    assert "[phantom_" in caught.value.lines[0] and "pass --resample-to" in caught.value.lines[0]
    with pytest.raises(ConfigError, match=r"preparation\.resample_to dwi is not one of the channels"):
        train("none", resample_to="dwi")


def test_the_run_its_folds_and_their_calibration_lie_on_that_grid(study, table):
    assert "resample_to: flair" in study.run(1).recipe_file.read_text()
    assert read_facts(study.whole.calibration_file)["patients"] == 2
    for case in read_manifest(table).cases:
        result = study.out_of_fold / case.name
        assert read_facts(result / "case.json")["resample_to"] == "flair"
        assert same_grid(read_labels(result / "mask.nii.gz"), read_volume(case.images["flair"]))


def test_evaluate_brings_the_references_onto_it(study, table, tmp_path):
    metrics = evaluate(study.out_of_fold, table, out=tmp_path, figure=False, mlflow=False)
    assert metrics["cases"] == 2 and metrics["metrics"]["dice"]["value"] >= 0


def test_only_the_same_grid_is_gone_on_with(train, study):
    assert train("study", folds=2, resample_to="flair", resume="must").facts["finished"]
    with pytest.raises(CheckpointError):
        train("study", folds=2, resample_to="t1", resume="must")
    with pytest.raises(CheckpointError, match=r"preparation\.resample_to was flair and is t1"):
        train(study.run(1).folder, resample_to="t1", resume="must")


def test_segment_says_how_the_model_was_trained(study, table, tmp_path, caplog):
    folder = table.parent / read_manifest(table).cases[0].name
    with pytest.raises(MedsegError) as caught:
        segment(folder, model=study.run(1).folder, out=tmp_path / "a", device="cpu")
    assert "Fix: pass --resample-to flair, as the model was trained, or resample it yourself" in caught.value.lines[0]
    with caplog.at_level(logging.WARNING):
        segment(folder, model=study.run(1).folder, out=tmp_path / "b", device="cpu", resample_to="t1")
    assert "the model was trained with --resample-to flair, not t1" in caplog.text


def test_an_anomaly_model_is_calibrated_on_that_grid(table, tmp_path):
    settings = ANOMALY | {"preparation": {"resample_to": "flair"}, "validation": {"calibration_cases": 2}}
    recipe = parse_settings(AnomalyRecipe, settings, source="tiny")
    run = create_run(tmp_path / "anomaly", task="anomaly", recipe="tiny", settings=write_yaml(recipe))
    save_weights(recipe.build_denoiser().network, run.weights("denoiser"))
    save_weights(recipe.build_classifier(), run.weights("classifier"))
    calibrate(run, read_manifest(table), skill=[], device="cpu")
    assert json.loads(run.calibration_file.read_text())["voxels"] > 0
    run.note(finished=True, ended=1.0)
    with pytest.raises(MedsegError) as caught:
        anomaly(data=table, model=run.folder, out=tmp_path / "out", device="cpu")
    assert "--resample-to flair, as the model was trained" in caught.value.lines[0]


def test_cases_without_the_channel_are_named_at_the_door(table):
    manifest = read_manifest(table)
    with pytest.raises(MedsegError) as caught:
        check_channels(manifest, ("t1", "flair", "dwi"), fill_missing=True, resample_to="dwi")
    assert len(caught.value.lines) == 2 and "has no dwi, whose grid its channels should have" in caught.value.lines[0]
