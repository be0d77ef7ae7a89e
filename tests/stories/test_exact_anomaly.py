"""Anomaly maps without training: networks that know the exact answer, behind a recipe, through every door of the verb."""

import csv
import json

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from sklearn.metrics import roc_auc_score

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_map
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.diffusion.exact import MixtureDenoiser
from medseg_diff.errors import CheckpointError
from medseg_diff.metrics.overlap import dice
from medseg_diff.networks.noisy_classifier import DISEASED
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.calibration import AnomalyCalibration, read_calibration
from medseg_diff.run import Run, create_run
from medseg_diff.settings import parse_settings, write_yaml
from medseg_diff.tasks.apply.anomaly import anomaly
from medseg_diff.tasks.train.anomaly import skill_of
from medseg_diff.tasks.train.labelled_study import prepare_labelled_study
from medseg_diff.tasks.train.normative import calibrate
from medseg_diff.training.weights import save_weights

TISSUE, LESION, DEVIATION = 100.0, 140.0, 5.0  # of every voxel by itself
SHAPE, SPACING_MM = (24, 24, 12), 2.0
PLACES = {  # split, and where the middle of the lesion is
    "learned": ("train", (9, 11, 5)),
    "sound": ("val", None),
    "seen": ("val", (12, 14, 6)),
    "new": ("test", (14, 9, 7)),
    "other": ("test", (10, 13, 4)),
}
RECIPE = {
    "paper": "none: the exact answer",
    "channels": ["flair"],
    # The median of a brain becomes 0 and its deviation 1, so that a lesion lies at (140 - 100) / 5 = 8.
    "preparation": {"intensity": "robust", "background": -5.0},
    "view": {"size": [24, 24]},
    "space": {"scale": 1 / 8},
    "schedule": {"kind": "linear"},
    "denoiser": {"target": "noise"},
    "network": {"width": 8, "classes": 2},
    "training": {"precision": "fp32"},
    "engine": {"kind": "inversion", "depth": 300, "steps": 10, "scale": 1.0, "network_batch": 8},
    "findings": {"smoothing_mm": 0, "rim_mm": 0, "smallest_ml": 0.05},
}


class Exact(torch.nn.Module):
    """Each voxel by itself is N(0, 1/8²) where healthy and N(1, 1/8²) where diseased, as one in 500 is."""

    def __init__(self, schedule):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))  # a run has weights
        self.mixture = MixtureDenoiser(schedule, centres=(0.0, 1.0), weights=(0.998, 0.002), deviation=1 / 8)

    def voxels(self, x_t, t):
        """One sample a voxel [N, 1, 1], and its time."""
        times = t if len(t) == 1 else t.repeat_interleave(x_t[0].numel())
        return x_t.double().reshape(-1, 1, 1), times


class ExactDenoiser(Exact):
    def forward(self, x_t, t, condition):
        x, times = self.voxels(x_t, t)
        noise = self.mixture(x, times).noise.view(x_t.shape)
        if condition.label is not None:
            healthy = self.mixture.component(0)(x, times).noise.view(x_t.shape)
            assert not condition.label.any()  # nobody conditions it on `diseased`
            kept = torch.ones_like(condition.label, dtype=bool) if condition.keep is None else condition.keep
            noise = torch.where(kept.view(-1, 1, 1, 1), healthy, noise)
        return noise.to(x_t.dtype)


class ExactClassifier(Exact):
    """A slice is healthy where all of its voxels are."""

    def forward(self, x_t, t, condition=None):
        healthy = self.mixture.classifier(*self.voxels(x_t, t)).log_softmax(dim=1)[:, 0].view(len(x_t), -1).sum(1)
        return torch.stack([healthy, torch.log(-torch.expm1(healthy.clamp(max=-1e-9)))], dim=1)


class Guessing(Exact):
    """A classifier that says nothing."""

    def forward(self, x_t, t, condition=None):
        return 0 * x_t.flatten(1)[:, :2]


def write_cases(folder):
    """Brains of one tissue, all but one with a lesion of another; returns their table."""
    rows, affine = [], np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1])
    grid, generator = np.indices(SHAPE), np.random.default_rng(0)

    def ball(middle, radii):
        return sum(((axis - m) / r) ** 2 for axis, m, r in zip(grid, middle, radii, strict=True)) < 1

    brain = ball((11.5, 11.5, 5.5), (10, 10, 5.5))
    for case, (split, middle) in PLACES.items():
        lesion = brain & ball(middle, (3, 3, 2.2)) if middle else np.zeros(SHAPE, bool)
        image = np.where(lesion, LESION, TISSUE) + DEVIATION * generator.standard_normal(SHAPE)
        write_volume(folder / case / "flair.nii.gz", np.where(brain, image, 0).astype(np.float32), affine)
        write_volume(folder / case / "seg.nii.gz", lesion.astype(np.uint8), affine)
        rows.append({"case": case, "split": split, "flair": f"{case}/flair.nii.gz", "seg": f"{case}/seg.nii.gz"})
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "cases.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The recipes of this file build exact networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AnomalyRecipe,
            "build_denoiser",
            lambda recipe: recipe.denoiser.around(ExactDenoiser(recipe.schedule), recipe.schedule),
        )
        patch.setattr(AnomalyRecipe, "build_classifier", lambda recipe: ExactClassifier(recipe.schedule))
        yield write_cases(tmp_path_factory.mktemp("exact"))


def model_of(table, folder, **engine):
    """A run of such networks: the classifier measured on validation slices, then what healthy shows, as after training."""
    changes = {"engine": {**RECIPE["engine"], **engine}}
    recipe = parse_settings(AnomalyRecipe, RECIPE | changes, source="exact.yaml")
    run = create_run(folder, task="anomaly", recipe="exact", settings=write_yaml(recipe))
    for name, build in recipe.parts().items():
        save_weights(build(), run.weights(name))
    manifest = read_manifest(table)
    study = prepare_labelled_study(manifest, recipe, cache=folder.parent / "cache")
    skill = []
    if "classifier" in recipe.parts():
        skill = skill_of(recipe.build_classifier(), recipe, study, Fabric(accelerator="cpu", devices=1))
    calibrate(run, manifest, skill=skill, device="cpu")
    run.note(finished=True, ended=1.0)
    return run.folder


def mapped(table, model, out, **options):
    return anomaly(data=table, split="test", out=out, model=model, device="cpu", **options)


def check(table, folder):
    """One case: its map finds the lesion, and the healthy reconstruction is of one tissue."""
    score, mask, healthy = (
        read_map(folder / f"{name}.nii.gz").voxels for name in ("anomaly", "anomaly_mask", "healthy_flair")
    )
    image, lesion = (read_map(table.parent / folder.name / f"{name}.nii.gz").voxels for name in ("flair", "seg"))
    brain, lesion = image > 0, lesion > 0
    assert roc_auc_score(lesion[brain], score[brain]) > 0.99
    assert dice(mask > 0, lesion) > 0.9
    # Guided at scale 1 a voxel goes back along the tissue's own map: its 8 deviations shrink to about two.
    assert abs(healthy[lesion].mean() - TISSUE) < 3 * DEVIATION
    assert abs(healthy - image)[brain & ~lesion].mean() < DEVIATION / 2
    report = json.loads((folder / "case.json").read_text())
    assert report["warnings"] == []
    if "classifier" in report["network_evaluations"]:
        assert report["quality_checks"]["p_healthy"]["rose"]


@pytest.mark.parametrize("engine", ["inversion", "classifier_free"])
def test_exact_networks_find_the_lesion_and_show_the_brain_without_it(table, tmp_path, engine):
    model = model_of(table, tmp_path / "run", kind=engine)
    if engine == "inversion":
        skill = read_calibration(Run(model), AnomalyCalibration).classifier
        assert skill.balanced_accuracy > 0.7 and skill.auroc > 0.9  # so the guard against chance had nothing to say
    for folder in mapped(table, model, tmp_path / "out"):
        check(table, folder)


@pytest.mark.parametrize("flipped", ["sign", "label"])
def test_guided_the_wrong_way_they_do_not(table, tmp_path, monkeypatch, flipped):
    model = model_of(table, tmp_path / "run", scale=-1.0 if flipped == "sign" else 1.0)
    if flipped == "label":
        monkeypatch.setattr("medseg_diff.methods.anomaly.inversion.HEALTHY", DISEASED)
    for folder in mapped(table, model, tmp_path / "out"):
        with pytest.raises(AssertionError, match=str(TISSUE)):  # it is the lesion that stays
            check(table, folder)


def test_a_classifier_that_guesses_is_refused(table, tmp_path, monkeypatch):
    monkeypatch.setattr(AnomalyRecipe, "build_classifier", lambda recipe: Guessing(recipe.schedule))
    model = model_of(table, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no better than by chance \(balanced accuracy 0.50, AUROC 0.50\)"):
        mapped(table, model, tmp_path / "out")
