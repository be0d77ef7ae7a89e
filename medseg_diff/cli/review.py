"""What results are worth: `evaluate`, `ui`."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_diff.cli.options import AsJson, ClusterName, Data, DataRoot, Runs, Split, Workers


def evaluate(
    predictions: Annotated[Path, typer.Option(help="What `segment` or `anomaly` wrote, or any masks CASE.nii.gz.")],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Where metrics.json goes [PREDICTIONS].")] = None,
    split: Split = None,
    compare: Annotated[Path | None, typer.Option(help="Another folder of the same cases, to compare with.")] = None,
    config: Annotated[str | None, typer.Option(help="Recipe whose regions are measured in masks of others.")] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Leave out cases without a result.")] = False,
    figure: Annotated[bool, typer.Option(help="Also draw evaluation.png.")] = True,
    data_root: DataRoot = None,
    runs: Annotated[Path, typer.Option(help="Where the run lies that keeps the result.")] = Path("runs"),
    mlflow: Annotated[bool, typer.Option(help="Show the result with its run in MLflow.")] = True,
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
    drawn = ["evaluation.png"] if figure and metrics["task"] == "segment" else []
    written = ["metrics.json", "per_case.csv", "per_slice.csv", *drawn, *(["comparison.json"] if compared else [])]
    typer.echo(f"\nwrote {', '.join(written)} in {out or predictions}")
    if compared is None and sys.stdout.isatty():
        words = f"--predictions {shlex.quote(str(predictions))} --compare OTHER_RESULTS --data {shlex.quote(str(data))}"
        typer.echo(f"next: medseg-diff evaluate {words}")


def ui(
    runs: Runs = Path("runs"),
    host: Annotated[str, typer.Option(help="An address of this machine's loopback.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """MLflow's pages on the local store, for this machine only; Ctrl-C ends it."""
    from medseg_diff.tasks.ui import ui as run

    run(runs, host=host, port=port, ready=lambda link: typer.echo(f"{link}\nCtrl-C ends it"))


def show_metrics(metrics: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(metrics, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{metrics['data']}, {metrics['cases']} cases")
    width = max(map(len, metrics["metrics"]))
    for name, found in metrics["metrics"].items():
        if found["value"] is None:
            continue
        unit = "" if found["unit"] == "1" else f" {found['unit']}"
        interval = "" if found["low"] is None else f"  [{found['low']:.3f}, {found['high']:.3f}]"
        typer.echo(f"  {name:<{width}} {found['value']:8.3f}{unit}{interval}  over {found['over']}")
