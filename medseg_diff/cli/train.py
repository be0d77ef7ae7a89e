"""A table of cases → a trained run: `train-seg`, `train-anomaly`, `train-synth`, `train-enhance`."""

from medseg_diff.cli.options import Data, DataRoot, Device
from medseg_diff.tasks.training_options import Folds, TrainingRun


def train_seg(
    data: Data, training: TrainingRun, folds: Folds, device: Device = "auto", data_root: DataRoot = None
) -> None:
    """Train a segmentation model, or one for each fold of the patients."""
    from medseg_diff.tasks.train.segmentation import train_seg as run

    run(data=data, training=training, folds=folds, device=device, data_root=data_root)


def train_anomaly(
    data: Data, training: TrainingRun, folds: Folds, device: Device = "auto", data_root: DataRoot = None
) -> None:
    """Train an anomaly model, or one for each fold of the patients: the networks that the recipe's engine needs, from
    healthy and diseased slices."""
    from medseg_diff.tasks.train.anomaly import train_anomaly as run

    run(data=data, training=training, folds=folds, device=device, data_root=data_root)


def train_synth(data: Data, training: TrainingRun, device: Device = "auto", data_root: DataRoot = None) -> None:
    """Train a generator of synthetic scans: an autoencoder, and a denoiser of its latents."""
    from medseg_diff.tasks.train.synthesis import train_synth as run

    run(data=data, training=training, device=device, data_root=data_root)


def train_enhance(data: Data, training: TrainingRun, device: Device = "auto", data_root: DataRoot = None) -> None:
    """Train a model that refines scans to a finer resolution, from scans of that resolution."""
    from medseg_diff.tasks.train.enhancement import train_enhance as run

    run(data=data, training=training, device=device, data_root=data_root)
