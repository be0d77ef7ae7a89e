"""A loaded model: what it says of itself, what it refuses, and that its weights are read once."""

import shutil

import numpy as np
import pytest

import medseg_diff
from medseg_diff.errors import CheckpointError, UsageError


def test_it_says_what_it_is(trained, untrained_anomaly):
    model = medseg_diff.load_model(trained.folder, device="cpu")
    assert repr(model) == "LoadedModel tiny for segment, reads t1, t1ce, t2, flair, on cpu"
    other = medseg_diff.load_model(str(untrained_anomaly.folder), device="cpu")
    assert (other.name, other.task, other.channels) == ("anomaly", "anomaly", ("t2", "flair"))


def test_without_a_name_it_is_the_newest_of_its_task(trained, untrained_anomaly):
    assert medseg_diff.load_model(runs=trained.runs, device="cpu").name == "tiny"
    assert medseg_diff.load_model("ti", runs=str(trained.runs), device="cpu").name == "tiny"
    assert medseg_diff.load_model(task="anomaly", runs=untrained_anomaly.runs, device="cpu").task == "anomaly"
    with pytest.raises(UsageError, match="no finished run for `anomaly`"):
        medseg_diff.load_model(task="anomaly", runs=trained.runs)
    with pytest.raises(UsageError, match="unknown task `paint`"):
        medseg_diff.load_model(trained.folder, task="paint")
    with pytest.raises(CheckpointError, match="is a run for `segment`, not `anomaly`"):
        medseg_diff.load_model(trained.folder, task="anomaly")
    with pytest.raises(CheckpointError):
        medseg_diff.load_model(trained.runs / "nothing")


def test_a_model_of_another_task_is_refused(trained, patient):
    model = medseg_diff.load_model(trained.folder, device="cpu")
    with pytest.raises(UsageError, match="tiny is a model for `segment`, not `anomaly`"):
        medseg_diff.anomaly(patient.place / "patient", model=model)


def test_its_weights_are_read_once_and_its_results_are_those_of_the_folder(trained, patient, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "runs" / "tiny")
    volume = patient.place / "patient"
    named = [medseg_diff.segment(volume, model=folder, device="cpu", seed=seed) for seed in (0, 1)]
    model = medseg_diff.load_model(folder, device="cpu")
    for weights in (folder / "weights").iterdir():
        weights.unlink()
    for seed, expected in enumerate(named):
        found = medseg_diff.segment(volume, model=model, seed=seed)
        assert np.array_equal(found.probability, expected.probability)
        assert found.facts["sha256"] == expected.facts["sha256"] and found.facts["seed"] == seed
    assert not np.array_equal(*(each.probability for each in named))
