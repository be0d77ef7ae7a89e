"""A table of cases → a trained run: `train-seg`, `train-anomaly`."""

from pathlib import Path

from medseg_diff.cli.options import Config, Data, DataRoot, Device, Mirrored, Resume, RunFolder, Runs, Words


def train_seg(
    data: Data,
    settings: Words = None,
    config: Config = "mask_logits",
    out: RunFolder = None,
    resume: Resume = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    mlflow: Mirrored = True,
) -> None:
    """Train a segmentation model."""
    from medseg_diff.tasks.train.segmentation import train_seg as run

    run(
        data,
        config=config,
        out=out,
        overrides=settings or (),
        device=device,
        data_root=data_root,
        runs=runs,
        mlflow=mlflow,
        resume=resume,
    )


def train_anomaly(
    data: Data,
    settings: Words = None,
    config: Config = "guided",
    out: RunFolder = None,
    resume: Resume = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    mlflow: Mirrored = True,
) -> None:
    """Train an anomaly model: a denoiser and a noisy classifier, from healthy and diseased slices."""
    from medseg_diff.tasks.train.anomaly import train_anomaly as run

    run(
        data,
        config=config,
        out=out,
        overrides=settings or (),
        device=device,
        data_root=data_root,
        runs=runs,
        mlflow=mlflow,
        resume=resume,
    )
