"""One catalogue says what every number is, whatever stands before or behind its name."""

import pytest

from medseg_diff.evaluation.catalogue import ANOMALY, METRICS, SEGMENTATION, direction_of, metric_of


@pytest.mark.parametrize(
    ("direction", "names"),
    [
        ("lower", "loss loss_simple val_loss denoiser_val_loss test_hd95_mm test_ece test_core_brier test_ged2"),
        (
            "higher",
            "val_dice val_dice_core whole_tumour_dice test_auroc_error test_surface_dice_1mm classifier_val_auroc",
        ),
        ("higher", "auroc_gain auroc_of_slices classifier_accuracy"),
        (None, "volume_bias_ml test_core_volume_bias_ml precision specificity score losses"),
    ],
)
def test_the_direction_of_a_metric_is_found_in_its_name(direction, names):
    assert {name: direction_of(name) for name in names.split()} == dict.fromkeys(names.split(), direction)


def test_the_longest_name_counts():
    assert metric_of("core_brier_calibrated") is METRICS["brier_calibrated"]
    assert metric_of("test_auroc_of_volumes") is METRICS["auroc_of_volumes"]


def test_a_name_of_two_tasks_is_one_metric_over_other_cases():
    for name in SEGMENTATION.keys() & ANOMALY.keys():
        one, two = SEGMENTATION[name], ANOMALY[name]
        assert (one.unit, one.direction) == (two.unit, two.direction)
