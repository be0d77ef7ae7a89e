"""The sweep of an engine's settings: every one is tried, and the cheapest of the best is recommended."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import UsageError
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.settings import parse_settings, read_yaml
from medseg_diff.tasks.apply.anomaly import anomaly
from medseg_diff.tasks.apply.anomaly_volume import AnomalySystem, Frame
from medseg_diff.tasks.apply.sweep import Slices, _numbers, sweep_anomaly
from medseg_diff.training.job import seeded

ANODDPM = {"kind": "anoddpm", "depth": 20, "steps": 2, "network_batch": 8}
INPAINTING = {"kind": "inpainting", "looks": 2, "refills": 3, "suspicious": 0.5, "network_batch": 8}


@pytest.fixture
def few_slices(monkeypatch):
    monkeypatch.setattr("medseg_diff.tasks.apply.sweep.SLICES", 4)


@pytest.fixture
def sweep(untrained_anomaly, few_slices, tmp_path):
    """Sweep, as the verb does, on one case of a folder or on a table of cases."""

    def swept(*volumes, **options):
        known = {"out": tmp_path / "out", "model": untrained_anomaly.folder, "device": "cpu", "sweep": True}
        return anomaly([str(each) for each in volumes], **known | options)

    return swept


@pytest.fixture
def without_classifier(untrained_anomaly, few_slices):
    """A system of an engine that has neither classifier nor scale, with random weights."""
    settings = read_yaml(untrained_anomaly.folder / "recipe.yaml") | {"engine": ANODDPM}
    recipe = parse_settings(AnomalyRecipe, settings, source="tiny")
    networks = Networks(seeded(0, recipe.build_denoiser), None, recipe.channels, recipe.space)
    return AnomalySystem(recipe, networks, None, torch.device("cpu"), "fp32", 0, {})


@pytest.fixture
def inpainting(untrained_anomaly, few_slices):
    """A system that fills in hidden tissue, with random weights."""
    known = read_yaml(untrained_anomaly.folder / "recipe.yaml")
    changes = {"engine": INPAINTING, "denoiser": {"target": "clean", "learned_deviation": True}}
    network = known["network"] | {"classes": 0}
    recipe = parse_settings(AnomalyRecipe, known | changes | {"network": network}, source="tiny")
    networks = recipe.networks(seeded(0, recipe.build_denoiser), seeded(0, recipe.build_classifier))
    return AnomalySystem(recipe, networks, None, torch.device("cpu"), "fp32", 0, {})


def rows_of(folder):
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_recommends_the_cheapest_of_the_best(untrained_anomaly, sweep):
    case = untrained_anomaly.table.parent / "phantom_0000"
    (folder,) = sweep(case)
    rows = [{name: float(value) for name, value in row.items()} for row in rows_of(folder)]
    settings = {(row["depth"], row["steps"], row["scale"]) for row in rows}
    assert len(settings) == len(rows) == 27 and (20, 2, 5) in settings
    best = max(row["average_precision"] for row in rows)
    cheapest = min(row["nfe"] for row in rows if row["average_precision"] >= best - 0.005)
    words = dict(word.split("=") for word in (folder / "recommended.txt").read_text().split())
    (chosen,) = [row for row in rows if all(row[key.split(".")[1]] == float(words[key]) for key in words)]
    assert chosen["nfe"] == cheapest and chosen["average_precision"] >= best - 0.005
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / case.name).exists()  # no maps
    with pytest.raises(UsageError, match="already holds a sweep"):
        sweep(case)
    for option in ({"threshold": "otsu"}, {"baselines": True}, {"keep_going": True}, {"pseudonymise": True}):
        with pytest.raises(UsageError, match="--sweep writes no maps"):
            sweep(case, **option)


def test_an_engine_without_classifier_and_scale_is_swept_over_depth_and_steps(phantoms, without_classifier, tmp_path):
    folder = sweep_anomaly(read_manifest(phantoms).cases[:1], without_classifier, tmp_path)
    rows = rows_of(folder)
    assert "scale" not in rows[0] and {(row["depth"], row["steps"]) for row in rows} >= {("10", "1"), ("40", "4")}
    assert all(row["p_healthy"] == "" and 0 < float(row["auroc"]) < 1 for row in rows)
    assert (folder / "sweep.png").is_file()


def test_an_engine_whose_settings_are_all_fixed_by_the_training_is_not_swept(phantoms, without_classifier, tmp_path):
    changes = {"engine": {"kind": "autoencoder"}, "denoiser": {"target": "clean"}}
    system = replace(without_classifier, recipe=without_classifier.recipe.but(**changes))
    with pytest.raises(UsageError, match="engine autoencoder has no settings to try"):
        sweep_anomaly(read_manifest(phantoms).cases[:1], system, tmp_path)
    assert not list(tmp_path.iterdir())


def test_cases_called_healthy_need_no_reference(phantoms, without_classifier, tmp_path):
    diseased, other = read_manifest(phantoms).cases[:2]
    healthy = replace(other, seg=None, raters=(), label="healthy")
    rows = rows_of(sweep_anomaly([healthy, diseased], without_classifier, tmp_path))
    assert all(row["auroc"] and row["drift"] and row["contrast"] for row in rows)


def test_without_healthy_slices_nothing_is_said_of_drift_and_contrast(
    phantoms, without_classifier, tmp_path, monkeypatch
):
    monkeypatch.setattr("medseg_diff.tasks.apply.sweep.SLICES", 1)
    folder = sweep_anomaly(read_manifest(phantoms).cases[:1], without_classifier, tmp_path)
    assert all(row["drift"] == row["contrast"] == "" and row["auroc"] for row in rows_of(folder))
    assert (folder / "recommended.txt").read_text() and (folder / "sweep.png").is_file()


def test_cases_that_can_rank_nothing_are_refused(phantoms, without_classifier, tmp_path):
    (case, *_) = read_manifest(phantoms).cases
    bare = replace(case, seg=None, raters=())
    with pytest.raises(UsageError, match="marks a lesion to rank voxels by"):
        sweep_anomaly([replace(bare, label="healthy")], without_classifier, tmp_path)
    with pytest.raises(UsageError, match="neither references nor a classifier"):
        sweep_anomaly([bare], without_classifier, tmp_path)
    assert not list(tmp_path.iterdir())


def test_slices_that_the_classifier_calls_equally_likely_have_no_contrast():
    flat = [torch.ones(1, 8, 8)] * 2
    frames = [Frame.around((8, 8), (8, 8), -1.0)] * 2
    slices = Slices(torch.zeros(2, 2, 8, 8), flat, [plane > 0 for plane in flat], None, frames, [(3.0, 3.0)] * 2)
    facts = {"p_healthy_before": np.array([1.0, 1.0]), "p_healthy_after": np.array([1.0, 1.0])}
    row = _numbers(slices, flat, facts)
    assert row["contrast"] == 1.0 and row["p_healthy"] is None and row["drift"] == 1.0


def test_an_engine_without_a_walk_sweeps_what_it_says(untrained_anomaly, inpainting, tmp_path):
    cases = [case for case in read_manifest(untrained_anomaly.table).cases if case.seg][:1]
    sweep_anomaly(cases, inpainting, tmp_path)
    tried = {(row["looks"], row["refills"], float(row["suspicious"])) for row in rows_of(tmp_path)}
    assert {row[0] for row in tried} == {"1", "2", "4"} and {row[1] for row in tried} == {"1", "3", "6"}
    assert {row[2] for row in tried} == {0.25, 0.5, 1.0} and len(tried) == 27
    words = (tmp_path / "recommended.txt").read_text().split()
    assert [word.partition("=")[0] for word in words] == ["engine.looks", "engine.refills", "engine.suspicious"]
    assert (tmp_path / "sweep.png").stat().st_size > 5000
