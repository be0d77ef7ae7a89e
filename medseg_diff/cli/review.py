"""What results are worth: `evaluate`, `ui`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_diff.cli.options import AsJson, ClusterName, Data, DataRoot, Runs, Split, Workers


def evaluate(
    predictions: Annotated[Path, typer.Option(help="What `segment` or `anomaly` wrote.")],
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Where metrics.json goes [PREDICTIONS].")] = None,
    split: Split = None,
    compare: Annotated[Path | None, typer.Option(help="Another folder of the same cases, to compare with.")] = None,
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
    common |= {"cluster": cluster, "workers": workers}
    if compare is None:
        from medseg_diff.tasks.evaluate import evaluate as run

        metrics = run(predictions, data, out=out, **common)
        show_metrics(metrics, as_json)
        return
    from medseg_diff.evaluation.comparison import lines_of
    from medseg_diff.tasks.evaluate import evaluate_both

    metrics, compared = evaluate_both(predictions, compare, data, out=out, **common)
    show_metrics(metrics | {"comparison": compared} if as_json else metrics, as_json)
    if not as_json:
        typer.echo("\n" + "\n".join(lines_of(compared)))


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
