"""Every metric once: its unit, what its mean is over, which direction is better, and whether healthy cases count."""

from typing import Literal, NamedTuple

Direction = Literal["higher", "lower"]


class Metric(NamedTuple):
    """`direction` is None where neither is better; `lesion_only`: cases without a lesion in their reference do not count."""

    unit: str
    over: str
    direction: Direction | None = "higher"
    lesion_only: bool = False


LESION, HEALTHY = "cases with a lesion", "cases without a lesion"
BRAIN, LESION_VOXELS = "cases, each over its brain voxels", f"{LESION}, each over its brain voxels"
DOUBTFUL = "cases, each over its brain voxels with 0.02 < probability < 0.98"
LESION_SLICES = "cases, each over its axial slices with a lesion"

SEGMENTATION = {  # in the order of per_case.csv
    "dice": Metric("1", LESION, lesion_only=True),
    "dice_raw": Metric("1", LESION, lesion_only=True),
    "dice_raters": Metric("1", LESION, lesion_only=True),
    "dice_slices": Metric("1", LESION_SLICES, lesion_only=True),
    "iou": Metric("1", LESION, lesion_only=True),
    "hd95_mm": Metric("mm", "cases with a lesion in the reference and in the mask", "lower", lesion_only=True),
    "surface_dice_1mm": Metric("1", LESION, lesion_only=True),
    "volume_error_ml": Metric("ml", "cases", "lower"),
    "volume_bias_ml": Metric("ml", "cases", None),
    "lesion_sensitivity": Metric("1", "cases with a lesion of 0.05 ml or more"),
    "lesion_precision": Metric("1", "cases in which a lesion was marked"),
    "lesion_f1": Metric("1", "cases with a lesion of 0.05 ml or more"),
    "false_positive_lesions": Metric("lesions", "cases", "lower"),
    "false_positives_ml": Metric("ml", "cases", "lower"),
    "ged2": Metric("1", LESION_SLICES, "lower", lesion_only=True),
    "ged2_unbiased": Metric("1", LESION_SLICES, "lower", lesion_only=True),
    "distance_to_raters": Metric("1", LESION_SLICES, "lower", lesion_only=True),
    "distance_of_members": Metric("1", LESION_SLICES, None, lesion_only=True),
    "distance_of_raters": Metric("1", LESION_SLICES, None, lesion_only=True),
    "ece_band": Metric("1", DOUBTFUL, "lower"),
    "ece": Metric("1", BRAIN, "lower"),
    "ece_calibrated": Metric("1", BRAIN, "lower"),
    "brier": Metric("1", BRAIN, "lower"),
    "brier_calibrated": Metric("1", BRAIN, "lower"),
    "aurc": Metric("1", BRAIN, "lower"),
    "auroc_error_band": Metric("1", DOUBTFUL),
    "auroc_error": Metric("1", BRAIN),
    "coverage90": Metric("1", "cases with a 90 % interval", None),
    "width90_ml": Metric("ml", "cases with a 90 % interval", "lower"),
    "guaranteed_missed": Metric("1", f"{LESION} and a guaranteed mask", "lower", lesion_only=True),
    "guaranteed_ratio": Metric("1", f"{LESION} and a guaranteed mask", "lower", lesion_only=True),
    "presence_brier": Metric("1", "cases with a probability of a lesion", "lower"),
    "typicality": Metric("1", "cases", None),
    "atypical": Metric("1", "cases", None),
}
ANOMALY = {  # in the order of per_case.csv
    "auroc": Metric("1", LESION_VOXELS, lesion_only=True),
    "average_precision": Metric("1", LESION_VOXELS, lesion_only=True),
    "dice_preset": Metric("1", LESION, lesion_only=True),
    "lesion_sensitivity": SEGMENTATION["lesion_sensitivity"]._replace(over=LESION, lesion_only=True),
    "false_positives_ml": SEGMENTATION["false_positives_ml"]._replace(over=HEALTHY),
    "auroc_of_slices": Metric("1", "cases with and without diseased slices, each over its axial slices"),
    "lesion_left": Metric("1", "cases with a lesion-free twin, each over its lesion", "lower", lesion_only=True),
    "error_elsewhere": Metric("1", "healthy cases and those with a lesion-free twin, each outside its lesion", "lower"),
}
ANOMALY_TOGETHER = {  # of no case by itself
    "auroc_pooled": Metric("1", "brain voxels of all cases together"),
    "average_precision_pooled": Metric("1", "brain voxels of all cases together"),
    "dice_best": Metric("1", LESION, lesion_only=True),
    "auroc_per_slice": Metric("1", f"{LESION}, each over its axial slices with a lesion", lesion_only=True),
    "average_precision_per_slice": Metric("1", f"{LESION}, each over its axial slices with a lesion", lesion_only=True),
    "auroc_of_volumes": Metric("1", "cases with a lesion against cases without"),
}
TRAINING = {
    "loss": Metric("1", "samples of a batch, or of the validation set", "lower"),
    "accuracy": Metric("1", "slices of a batch; of the validation set the mean of both classes"),
}
METRICS = TRAINING | ANOMALY_TOGETHER | ANOMALY | SEGMENTATION


def metric_of(name: str) -> Metric | None:
    """The metric that a name is about: `val_dice`, `test_hd95_mm`, `denoiser_loss_simple`, `core_dice`; None for others."""
    words = f"_{name.replace('/', '_')}_"  # as MLflow groups it: `val/dice`
    known = [metric for metric in METRICS if f"_{metric}_" in words]
    return METRICS[max(known, key=len)] if known else None


def direction_of(name: str) -> Direction | None:
    """Whether higher or lower is better; None where neither is, or where the name is about no metric."""
    metric = metric_of(name)
    return metric.direction if metric else None
