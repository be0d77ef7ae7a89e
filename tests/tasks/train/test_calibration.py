"""What a training keeps in calibration.json, and when it is used."""

import shutil

import pytest
import torch

from medseg_diff.recipes.calibration import SegmentationCalibration, read_calibration
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.run import Run
from medseg_diff.tasks.train.calibration import calibrate, calibrate_region


def test_a_trained_run_has_its_calibration_under_its_checksums(trained):
    run = Run(trained.folder)
    found = read_calibration(run, SegmentationCalibration)
    assert "calibration.json" in (run.folder / "SHA256SUMS").read_text()
    assert set(found.regions) == {"whole_tumour"} and found.separate
    assert (found.members, found.steps, found.patients) == (3, 3, 1)
    assert 4 < found.slices <= 128
    region = found.regions["whole_tumour"]
    assert region.threshold == found.threshold("whole_tumour") == 0.5  # one patient decides nothing
    assert region.dice_at_best >= region.dice_at_half and 0.2 <= region.temperature <= 10
    assert region.log_loss_after <= region.log_loss_before


def test_what_screening_misses_is_measured_on_more_slices(trained):
    found = read_calibration(Run(trained.folder), SegmentationCalibration)
    screening = found.screening
    assert screening.slices >= found.slices and screening.patients == 1 and screening.allowed == 0.01
    assert 0 < screening.threshold <= 0.5 and 0 <= screening.missed <= 0.01 and 0 <= screening.left_out < 1
    assert "on 1 patient this" in screening.in_words() and "so few say little" in screening.in_words()


def test_a_run_without_is_none(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.calibration_file.unlink()
    assert read_calibration(run, SegmentationCalibration) is None


def slices(patients, *, cut=0.3, seed=0):
    """Probabilities whose lesion is what is above `cut`, outside the brain all wrong."""
    probability = torch.rand(len(patients), 12, 12, generator=torch.Generator().manual_seed(seed))
    brain = torch.zeros(len(patients), 12, 12, dtype=torch.bool)
    brain[:, 2:10] = True
    mask = torch.where(brain, probability > cut, probability <= cut)
    return probability, mask, brain, patients


def test_only_the_brain_counts_and_patients_decide():
    many = calibrate_region(*slices(tuple("aabbccddeeff")))
    assert many.threshold == many.best_threshold == pytest.approx(0.3, abs=0.02)
    assert many.dice_at_half < 0.9 < many.dice_at_best == pytest.approx(1.0, abs=0.02)
    few = calibrate_region(*slices(tuple("aaabbbcccddd")))
    assert few.threshold == 0.5 and few.best_threshold == many.best_threshold
    assert few.log_loss_after < few.log_loss_before


def test_calibration_can_be_left_out(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    run, recipe = Run(tmp_path / "run"), load_recipe("quick/phantom", task="segment")
    without = recipe.but(validation={"calibration_slices": 0})
    assert run.calibration_file.is_file()
    assert calibrate(run, without, study=None, fabric=None) is None  # it looks at neither
    assert (
        not run.calibration_file.exists() and read_calibration(run, SegmentationCalibration) is None
    )  # nor stays that of an earlier training
