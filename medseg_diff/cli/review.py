"""What results are worth: `evaluate`, `audit`, `audit-volumes`, `report`, `ui`."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_diff.cli.options import AsJson, ClusterName, Data, DataRoot, Device, Runs, Split, Workers, said
from medseg_diff.errors import counted
from medseg_diff.tasks.options import Model
from medseg_diff.tasks.synthesis_options import AuditOptions


def evaluate(
    predictions: Annotated[
        Path, said("Source", "Results of `segment` or `anomaly`, or any masks CASE.nii.gz.", metavar="FOLDER")
    ],
    data: Data,
    out: Annotated[
        Path | None, said("Result", "Where metrics.json goes.", "-o", "--out", metavar="FOLDER", usual="--predictions")
    ] = None,
    split: Split = None,
    compare: Annotated[
        Path | None, said("Comparison", "Another folder with results of the same cases.", metavar="FOLDER")
    ] = None,
    config: Annotated[
        str | None,
        said(
            "Source",
            "Recipe whose regions are measured in masks of other programs.",
            metavar="NAME|FILE",
            complete="recipes",
        ),
    ] = None,
    allow_missing: Annotated[bool, said("Source", "Skip cases without a result.", "--allow-missing")] = False,
    figure: Annotated[bool, said("Result", "Also draw evaluation.png.")] = True,
    data_root: DataRoot = None,
    runs: Annotated[Path, said("Result", "Runs folder of the run that keeps it.", metavar="FOLDER")] = Path("runs"),
    mlflow: Annotated[bool, said("Result", "Attach the result to its run in MLflow.")] = True,
    cluster: ClusterName = "none",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Compare results with the references of a table, and with other results."""
    common: dict[str, Any] = {"split": split, "data_root": data_root, "figure": figure, "runs": runs, "mlflow": mlflow}
    common |= {"config": config, "allow_missing": allow_missing, "cluster": cluster, "workers": workers}
    if compare is None:
        from medseg_diff.tasks.evaluate import evaluate as run

        metrics, compared = run(predictions, data, out=out, **common), None
    else:
        from medseg_diff.tasks.evaluate import evaluate_both

        metrics, compared = evaluate_both(predictions, compare, data, out=out, **common)
    if as_json:
        show_metrics(metrics if compared is None else metrics | {"comparison": compared}, as_json)
        return
    show_metrics(metrics, as_json)
    if compared is not None:
        from medseg_diff.evaluation.comparison import lines_of

        typer.echo("\n" + "\n".join(lines_of(compared)))
    drawn = ["evaluation.png"] if figure else []
    written = ["metrics.json", "per_case.csv", "per_slice.csv", *drawn, *(["comparison.json"] if compared else [])]
    typer.echo(f"\nwrote {', '.join(written)} in {out or predictions}")
    if compared is None and sys.stdout.isatty():
        words = f"--predictions {shlex.quote(str(predictions))} --compare OTHER_RESULTS --data {shlex.quote(str(data))}"
        typer.echo(f"next: medseg-diff evaluate {words}")


def audit(
    data: Data,
    out: Annotated[
        Path, said("Result", "Folder for audit.json, audit.csv and audit.png.", "-o", "--out", metavar="FOLDER")
    ],
    model: Model,
    options: AuditOptions,
    device: Device = "auto",
    data_root: DataRoot = None,
    as_json: AsJson = False,
) -> None:
    """Check synthetic scans: do they obey covariates, do they look like held-out scans, are they copies?"""
    from medseg_diff.tasks.audit import audit as run

    show_audit(run(data=data, out=out, model=model, options=options, device=device, data_root=data_root), as_json)
    if options.keep_scans and not as_json:
        words = f"{shlex.quote(str(out))} --segmentations MASKS --structure NAME=LABEL,…"
        typer.echo(f"next: segment {shlex.quote(str(out / 'scans'))}, then medseg-diff audit-volumes {words}")


def audit_volumes(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `audit --keep-scans` wrote.")],
    segmentations: Annotated[
        Path, said("Source", "Masks of its scans, one file each: SCAN.nii.gz, or SCAN_….nii.gz.", metavar="FOLDER")
    ],
    structures: Annotated[
        list[str],
        said("Source", "Labels that make up a covariate (repeat).", "--structure", metavar="NAME=LABEL,…"),
    ],
    by: Annotated[str, said("Result", "Name of who measured, in tables and figure.", metavar="NAME")] = "masks",
    as_json: AsJson = False,
) -> None:
    """Measure an audit's scans in masks of another program, and add how they obey to the audit."""
    from medseg_diff.tasks.audit_volumes import audit_volumes as run

    show_audit(run(folder, segmentations=segmentations, structures=structures, by=by), as_json)


def show_audit(found: dict[str, Any], as_json: bool) -> None:
    """What an audit found, as tables or as JSON."""
    lines = (
        [json.dumps(found, indent=2, ensure_ascii=False)] if as_json else [*_obedience(found), "", *_likeness(found)]
    )
    typer.echo("\n".join(lines))


def _obedience(found: dict[str, Any]) -> list[str]:
    """How well each covariate was obeyed, a line each."""
    lines = [f"{'obedience':<24}{'measured by':<14}{'guidance':>9}{'r':>8}  95 %"]
    for row in found["obedience"]:
        scale = "real" if row["of"] == "real" else f"{row['guidance']:g}"
        numbers = "undefined" if row["r"] is None else f"{row['r']:8.3f}  [{row['r_low']:.3f}, {row['r_high']:.3f}]"
        lines.append(f"{row['covariate']:<24}{row['by']:<14}{scale:>9}{numbers}")
    return lines


def _likeness(found: dict[str, Any]) -> list[str]:
    """How like real scans what was drawn is, a line each, and how near to those trained on."""
    lines = [f"{'likeness':<16}{'guidance':>9}{'Fréchet':>10}{'floor':>8}{'precision':>10}{'recall':>8}{'MS-SSIM':>9}"]
    for row in found["likeness"]:
        scale = "-" if row["guidance"] is None else f"{row['guidance']:g}"
        numbers = (
            f"{row['frechet_distance']:10.3f}{row['frechet_floor']:8.3f}{row['precision']:10.2f}{row['recall']:8.2f}"
        )
        lines.append(f"{row['drawn']:<16}{scale:>9}{numbers}{row['ms_ssim_of_pairs']:9.3f}")
    share, copies = (100 * found["memory"][name] for name in ("favoured", "copies"))
    said = f"{share:.0f} % of drawn scans are nearer to a training scan than to a held-out one (50 %: nothing is memorised)"
    return [*lines, "", f"{said}; {copies:.0f} % are copies"]


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="What a verb wrote (`segment`, `anomaly` …), or one case; or a run, a study, a folder of runs.",
        ),
    ],
    data: Annotated[Path | None, said("Source", "Table of the cases, to show their scans too.", metavar="CSV")] = None,
    volume: Annotated[
        list[str] | None,
        said("Source", "Scan of one case, as for `segment` (repeat).", "-i", "--volume", metavar="PATH"),
    ] = None,
    channels: Annotated[
        str | None, said("Source", "Channels of numbered files and 4D volumes, in order: flair,t1.", metavar="NAME,…")
    ] = None,
    data_root: DataRoot = None,
    most: Annotated[
        int | None,
        said(
            "Result",
            "Pages of at most this many: cases worst first, runs newest.",
            usual="all",
            metavar="N",
            min=1,
        ),
    ] = None,
    runs: Annotated[Path, said("Result", "Runs folder of the run that made them.", metavar="FOLDER")] = Path("runs"),
    mlflow: Annotated[bool, said("Result", "Attach the page of all cases to its run in MLflow.")] = True,
) -> None:
    """Write offline HTML pages: one for each case, with a viewer and pictures, or each training, and one for all of them."""
    from medseg_diff.tasks.report import report as run

    names = [name.strip() for name in (channels or "").split(",") if name.strip()]
    common: dict[str, Any] = {"data_root": data_root, "most": most, "runs": runs, "mlflow": mlflow}
    page = run(folder, data=data, volumes=volume or (), channels=names, **common)
    typer.echo(f"wrote {page}; open it in a browser")


def ui(
    runs: Runs = Path("runs"),
    host: Annotated[str, typer.Option(help="Loopback address to serve on.", metavar="HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve on.", metavar="PORT")] = 5000,
) -> None:
    """Serve MLflow's pages of the local store, on this machine only; Ctrl-C stops it."""
    from medseg_diff.tasks.ui import ui as run

    run(runs, host=host, port=port, ready=lambda link: typer.echo(f"{link}\nCtrl-C stops it"))


def show_metrics(metrics: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(metrics, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{metrics['data']}, {counted(metrics['cases'], 'case')}")
    width = max(map(len, metrics["metrics"]))
    for name, found in metrics["metrics"].items():
        if found["value"] is None:
            continue
        unit = "" if found["unit"] == "1" else f" {found['unit']}"
        interval = "" if found["low"] is None else f"  [{found['low']:.3f}, {found['high']:.3f}]"
        typer.echo(f"  {name:<{width}} {found['value']:8.3f}{unit}{interval}  over {found['over']}")
