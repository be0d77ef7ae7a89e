"""A study's calibration from predictions whose errors are known: no network is trained."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.metrics import conformal
from medseg_diff.recipes.calibration import SegmentationCalibration, read_calibration
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.studies import FoldStudy
from medseg_diff.tasks.apply.promises import promises_of, volume_in_words
from medseg_diff.tasks.options import EnsembleOptions
from medseg_diff.tasks.train.out_of_fold import calibrate_study
from tests.made import LPS, NOTHING, SHAPE, TUMOUR, Study, ball, facts_of

VOXEL_ML = 2 * 2 * 3 / 1000
CORE = ball((12, 11, 8), 2)
REGIONS = {"whole_tumour": [1, 2], "core": [1]}


def volume_ml(mask):
    return np.count_nonzero(mask) * VOXEL_ML


class Predicted:
    """A table of patients and the out_of_fold of a study that was never trained."""

    def __init__(self, folder, *overrides):
        words = ("channels=[flair]", "regions={whole_tumour: [1, 2], core: [1]}", *overrides)
        self.recipe = load_recipe("quick/mask_logits", task="segment", overrides=words)
        self.made, self.study = Study(folder / "data"), FoldStudy(folder / "study")

    def add(self, name, *, whole=TUMOUR, core=CORE, patient=None, probability=None, mask=None):
        """A scan whose reference is `whole` and in it `core`, and what was predicted: the reference but for `probability` of
        the whole [X, Y, Z], and `mask`."""
        labels = np.where(core & whole, 1, 2)
        self.made.add(name, seg=whole, labels=labels, patient=patient or name)
        folder = self.study.out_of_fold / name
        values = whole.astype(np.float32) if probability is None else probability.astype(np.float32)
        labels = np.where(values > 0.5, np.where(core, 1, 2), 0) if mask is None else mask
        write_volume(folder / "mask.nii.gz", labels.astype(np.uint8), LPS)
        write_volume(folder / "probability_whole_tumour.nii.gz", values, LPS)
        write_volume(folder / "probability_core.nii.gz", (values * (core & whole)).astype(np.float32), LPS)
        (folder / "case.json").write_text(json.dumps(facts_of(REGIONS)))
        return self

    def calibrated(self):
        self.study.folder.mkdir(exist_ok=True)
        calibrate_study(self.study, self.recipe, read_manifest(self.made.table))
        found = read_calibration(self.study.whole, SegmentationCalibration)
        assert found is not None
        return found

    def promises(self, *, models=2, screen=None, **options):
        plan = self.recipe.plan(**{name: options.get(name) for name in ("members", "adaptive", "tolerance")})
        plan, findings, ensemble = replace(plan, screen=screen), self.recipe.findings, EnsembleOptions(**options)
        return promises_of(self.calibrated(), self.recipe, plan, findings, ensemble, models=models, name="study")


def test_each_patient_counts_once_by_the_worst_of_its_scans(tmp_path):
    larger, much_larger = ball((12, 11, 8), 4), ball((12, 11, 8), 5)
    predicted = Predicted(tmp_path).add("a")
    predicted.add("b_1", patient="b", probability=larger).add("b_2", patient="b", probability=much_larger)
    predicted.add("c", probability=larger)
    found = predicted.calibrated()
    whole, core = (found.regions[region].out_of_fold for region in REGIONS)

    def error(mask):
        return math.log((volume_ml(mask) + 1) / (volume_ml(TUMOUR) + 1)) / 0.2

    assert found.patients == 3 and found.slices == 4 * 15  # the brain is a ball of 15 slices
    assert whole.volume_errors == pytest.approx(sorted([0, error(larger), error(much_larger)]), abs=1e-5)
    assert core.volume_errors == pytest.approx([0, 0, 0], abs=1e-6)
    assert len(whole.presence.diseased) == 3 and whole.lesions == 3


def test_lesions_and_healthy_brains_are_told_apart(tmp_path):
    """The first scan of a patient is the one that counts, and a lesion without core is one of the whole alone."""
    predicted = Predicted(tmp_path).add("sick").add("coreless", core=NOTHING)
    faint = np.where(TUMOUR, 0.3, 0)
    predicted.add("well_1", patient="well", whole=NOTHING, core=NOTHING, probability=faint)
    predicted.add("well_2", patient="well", probability=TUMOUR)
    regions = {name: each.out_of_fold for name, each in predicted.calibrated().regions.items()}
    assert regions["whole_tumour"].presence.diseased == (1.0, 1.0)
    assert regions["whole_tumour"].presence.healthy == (0.3,) and regions["core"].presence.diseased == (1.0,)
    assert regions["core"].presence.healthy == (0.0, 0.0)
    assert (regions["whole_tumour"].lesions, regions["core"].lesions) == (
        3,
        2,
    )  # a lesion in the second scan counts here


def test_what_is_missed_is_the_mean_over_patients(tmp_path):
    half = TUMOUR & (np.indices(SHAPE)[0] < 12)
    share = 1 - np.count_nonzero(half) / np.count_nonzero(TUMOUR)
    predicted = Predicted(tmp_path).add("a", probability=np.where(half, 0.9, 0.2 * TUMOUR))
    predicted.add("b").add("c_1", patient="c", probability=half).add("c_2", patient="c")
    missed = predicted.calibrated().regions["whole_tumour"].out_of_fold.missed
    at = dict(zip(conformal.THRESHOLDS, missed, strict=True))
    assert at[0.1] == pytest.approx((0 + 0 + share / 2) / 3, abs=1e-6)
    assert at[0.5] == pytest.approx((share + 0 + share / 2) / 3, abs=1e-6)


def test_of_a_vote_the_written_mask_is_what_was_measured(tmp_path):
    larger = ball((12, 11, 8), 4)
    predicted = Predicted(tmp_path, "findings.fusion=vote").add("a", mask=larger.astype(int)).add("b")
    errors = predicted.calibrated().regions["whole_tumour"].out_of_fold.volume_errors
    assert errors[1] == pytest.approx(math.log((volume_ml(larger) + 1) / (volume_ml(TUMOUR) + 1)) / 0.2, abs=1e-5)


def test_ten_of_each_kind_and_nine_patients_are_enough_for_promises(tmp_path):
    predicted = Predicted(tmp_path)
    for number in range(10):
        faint = np.where(TUMOUR, 0.02 * number, 0)
        predicted.add(f"sick{number}").add(f"well{number}", whole=NOTHING, core=NOTHING, probability=faint)
    promises = predicted.promises(level=0.9)
    probability = TUMOUR.astype(np.float32)
    volume = promises.volume("whole_tumour", 6.0, probability, VOXEL_ML)
    presence = promises.presence("whole_tumour", probability, VOXEL_ML)
    assert volume["level"] == 0.9 and volume["low"] <= 6.0 <= volume["high"] and volume["calibrated_on"] == 20
    assert [each["level"] for each in volume["intervals"]] == [0.5, 0.8, 0.9, 0.95]
    assert presence["probability"] > 0.9 and presence["low"] <= presence["probability"] <= presence["high"]
    assert presence["calibrated_on"] == {"diseased": 10, "healthy": 10}
    nearly = promises.presence("whole_tumour", probability * 0.9999999, VOXEL_ML)
    assert nearly["probability"] == presence["probability"]  # what saturates is no score of its own
    assert promises.presence("whole_tumour", 0 * probability, VOXEL_ML)["probability"] < 0.2
    words = volume_in_words(volume, presence, applies=True)
    assert words.startswith("6.0 ml, with 90% between ") and words.endswith(
        f"probability {presence['probability']:.2f}"
    )
    assert "scans unlike this one" in volume_in_words(volume, presence, applies=False)
    assert promises.in_words() == "volumes with 90% intervals, measured on 20 patients new to their models"


def test_adaptive_samples_are_promised_what_as_few_have_shown(tmp_path):
    """The recipe draws ten; two models that may stop at four each draw eight at least, three twelve."""
    predicted, always = Predicted(tmp_path / "ten"), Predicted(tmp_path / "adaptive", "sampling.adaptive=true")
    for number in range(20):
        predicted.add(f"p{number}")
        always.add(f"p{number}")
    said = predicted.promises(adaptive=True)
    assert "10 samples were measured, but as few as 8 may be drawn of a case that settles" in said.in_words()
    assert said.volume("core", 1.0, CORE.astype(np.float32), VOXEL_ML)["level"] is None
    assert "new to their models" in predicted.promises(adaptive=True, models=3).in_words()
    assert "new to their models" in always.promises().in_words()
    assert "new to their models" in always.promises(adaptive=False).in_words()  # all ten are no fewer
    assert "as few as 8 may be drawn" in always.promises(tolerance=0.2).in_words()  # sooner than what was measured
    assert "samples with screened-out slices" in predicted.promises(screen=0.1).in_words()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"members": 4}, "10 samples were measured, but 8 are drawn"),
        ({"members": 4, "guarantee": 0.2}, "cannot promise fnr=0.2 for whole_tumour: 10 samples were measured"),
        ({"start_from": Path("nnunet")}, "no measurements exist for samples that start from given masks"),
        (
            {"start_from": Path("nnunet"), "guarantee": 0.2},
            "for whole_tumour: no measurements exist for samples that start",
        ),
        ({"guarantee": 10.0}, "fnr=10 is out of range"),
        ({"level": 1.0}, "level 1 is out of range"),
        ({"level": 0.99}, "99% needs 99 patients, 12 patients are measured"),
        ({"level": 0.975}, "97.5% needs 39 patients"),
    ],
)
def test_what_is_not_known_is_not_promised(tmp_path, options, said):
    predicted = Predicted(tmp_path)
    for number in range(12):
        predicted.add(f"p{number}")
    try:
        promises = predicted.promises(**options)
    except Exception as error:
        assert said in str(error)
    else:
        assert said in promises.in_words()
        assert promises.volume("core", 1.0, CORE.astype(np.float32), VOXEL_ML)["level"] is None
