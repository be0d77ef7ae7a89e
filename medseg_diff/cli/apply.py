"""A trained run and scans → results on the scans' own grids: `segment`, `anomaly`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_diff.cli.options import (
    DataRoot,
    Device,
    KeepGoing,
    Model,
    Overwrite,
    Precision,
    Pseudonymise,
    PseudonymKey,
    ResampleTo,
    Results,
    RunsOfModels,
    Shard,
    Split,
    Table,
    Volume,
)


def segment(
    out: Results,
    volume: Volume = None,
    data: Table = None,
    split: Split = None,
    model: Model = None,
    members: Annotated[int | None, typer.Option(min=1, help="Samples in the ensemble [the recipe's].")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps [the recipe's].")] = None,
    seed: int = 0,
    network_batch: Annotated[int | None, typer.Option(min=1, help="Samples in one pass of the network.")] = None,
    members_at_once: Annotated[
        int | None, typer.Option(min=1, help="Order of work; results do not depend on it.")
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="Of a member: independent in each slice, or shared by all [the recipe's].")
    ] = None,
    fusion: Annotated[
        str | None, typer.Option(help="What makes the mask of the members: mean, vote or staple [the recipe's].")
    ] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Also write the probability at the run's temperature.")
    ] = False,
    precision: Precision = None,
    resample_to: ResampleTo = None,
    shard: Shard = "1/1",
    save_members: Annotated[bool, typer.Option(help="Also write members/NN.nii.gz.")] = False,
    overwrite: Overwrite = False,
    keep_going: KeepGoing = False,
    pseudonymise: Pseudonymise = False,
    pseudonym_key: PseudonymKey = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    runs: RunsOfModels = Path("runs"),
) -> None:
    """Segment scans: mask, probability and uncertainty on the scan's own grid."""
    from medseg_diff.tasks.apply.segment import segment as run

    folders = run(
        volume or (),
        data=data,
        out=out,
        model=model,
        split=split,
        shard=_shard(shard),
        members=members,
        steps=steps,
        seed=seed,
        network_batch=network_batch,
        members_at_once=members_at_once,
        noise=noise,
        fusion=fusion,
        calibrated=calibrated,
        precision=precision,
        resample_to=resample_to,
        save_members=save_members,
        overwrite=overwrite,
        keep_going=keep_going,
        pseudonymise=pseudonymise,
        pseudonym_key=pseudonym_key,
        device=device,
        data_root=data_root,
        runs=runs,
    )
    if data is not None:
        typer.echo(f"next: medseg-diff evaluate --predictions {out} --data {data}")
    elif folders:
        typer.echo(folders[0])


def anomaly(
    out: Results,
    volume: Volume = None,
    data: Table = None,
    split: Split = None,
    model: Model = None,
    threshold: Annotated[
        str | None, typer.Option(help="healthy (stored with the model), otsu, or a number [the recipe's].")
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="L, how deep the lesion is drowned [the recipe's].")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each way [the recipe's].")] = None,
    scale: Annotated[float | None, typer.Option(min=0, help="Of the push towards healthy [the recipe's].")] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Write no maps; try depths, steps and scales on a few slices.")
    ] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also write the maps that a method must beat, for `evaluate`.")
    ] = False,
    network_batch: Annotated[int | None, typer.Option(min=1, help="Slices in one pass of the networks.")] = None,
    precision: Precision = None,
    resample_to: ResampleTo = None,
    shard: Shard = "1/1",
    overwrite: Overwrite = False,
    keep_going: KeepGoing = False,
    pseudonymise: Pseudonymise = False,
    pseudonym_key: PseudonymKey = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    runs: RunsOfModels = Path("runs"),
) -> None:
    """Map anomalies: score, mask, lesions and the healed brain on the scan's own grid."""
    from medseg_diff.tasks.apply.anomaly import anomaly as run

    folders = run(
        volume or (),
        data=data,
        out=out,
        model=model,
        split=split,
        shard=_shard(shard),
        threshold=_threshold(threshold),
        depth=depth,
        steps=steps,
        scale=scale,
        network_batch=network_batch,
        precision=precision,
        resample_to=resample_to,
        baselines=baselines,
        sweep=sweep,
        overwrite=overwrite,
        keep_going=keep_going,
        pseudonymise=pseudonymise,
        pseudonym_key=pseudonym_key,
        device=device,
        data_root=data_root,
        runs=runs,
    )
    if sweep:
        typer.echo((out / "recommended.txt").read_text(encoding="utf-8").strip())
    elif data is not None:
        typer.echo(f"next: medseg-diff evaluate --predictions {out} --data {data}")
    elif folders:
        typer.echo(folders[0])


def _shard(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit()):
        raise typer.BadParameter("write it as K/N, e.g. 1/2", param_hint="--shard")
    return int(first), int(second)


def _threshold(text: str | None) -> Any:
    if text in (None, "healthy", "otsu"):
        return text
    try:
        return float(text or "")
    except ValueError:
        raise typer.BadParameter("use healthy, otsu or a number", param_hint="--threshold") from None
