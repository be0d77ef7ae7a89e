"""Numbers have the names that MLflow groups by, and a person may write them in several ways."""

import json

import pytest

from medseg_diff.run import create_run
from medseg_diff.tracking.names import calibrated, chosen_by, grouped, meant, numbers_of


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("loss", "train/loss"),
        ("val_dice", "val/dice"),
        ("val_dice_core", "val/dice_core"),
        ("classifier_val_auroc", "val/classifier_auroc"),
        ("denoiser_loss_simple", "train/denoiser_loss_simple"),
        ("interval_width", "train/interval_width"),
        ("test/dice", "test/dice"),
    ],
)
def test_names_are_grouped(name, shown):
    assert grouped(name) == shown


@pytest.mark.parametrize("asked", ["val/dice", "val_dice"])
def test_a_name_may_be_written_as_in_the_table_or_as_in_mlflow(asked):
    assert meant(asked, ["train/loss", "val/dice", "test/dice"]) == "val/dice"
    assert meant("test_dice", ["test/dice"]) == "test/dice" and meant("loss", ["train/loss"]) == "train/loss"
    assert meant(asked, ["train/loss"]) is None


def test_the_number_that_chose_the_weights():
    assert chosen_by({"best_step": 3, "best_val_dice": 0.5}) == ("val/dice", 0.5)
    assert chosen_by({"classifier_best_val_auroc": 0.9}) == ("val/classifier_auroc", 0.9)
    assert chosen_by({"best_step": 3}) == (None, None)


def region(threshold):
    return {"threshold": threshold, "temperature": 1.25, "ece_before": 0.04, "ece_after": 0.01, "out_of_fold": {}}


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"regions": {"tumour": region(0.5)}, "screening": {"threshold": 0.2, "missed": None}},
         {"threshold": 0.5, "temperature": 1.25, "ece_before": 0.04, "ece_after": 0.01, "screening_threshold": 0.2}),
        ({"regions": {"a": {"threshold": 0.5}, "b": {"threshold": 0.6}}}, {"threshold_a": 0.5, "threshold_b": 0.6}),
        ({"maps": {"anomaly": {"threshold": 2.0}}, "classifier": {"auroc": 0.9}, "round_trip": {"error": None}},
         {"threshold": 2.0, "classifier_auroc": 0.9}),
        ({"regions": [1], "maps": {"anomaly": 3}, "classifier": "x"}, {}),
        ({"regions": {"a": {"threshold": float("nan"), "temperature": "1"}}}, {}),
    ],
)  # fmt: skip
def test_what_was_calibrated(tmp_path, said, found):
    run = create_run(tmp_path / "run", task="segment", recipe="tiny", settings="task: segment\n")
    run.calibration_file.write_text(json.dumps(said))
    assert calibrated(run) == {f"calibration/{name}": value for name, value in found.items()}


def test_the_last_of_every_number_counts(tmp_path):
    run = create_run(tmp_path / "run", task="segment", recipe="tiny", settings="task: segment\n")
    run.log(10, {"loss": 1.0, "val_dice": 0.5})
    run.log(20, {"loss": 0.5})
    assert numbers_of(run) == {"train/loss": 0.5, "val/dice": 0.5}
