"""An evaluation finds the run whose weights it is about, and joins it: in the run's folder and in MLflow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg_diff.console import log
from medseg_diff.files import read_json
from medseg_diff.run import Run, all_runs
from medseg_diff.tracking import attach_evaluation


def attach_to_run(
    summary: Mapping[str, Any], folder: Path, predictions: Path, *, runs: Path, mlflow: bool = True
) -> Run | None:
    """Keep `folder`'s metrics.json and per_case.csv with the run that made `predictions`; returns it, None without one.

    The run is known by the name and the digest of the weights in the first case.json. Best effort: never raises.
    """
    made = next((found for path in sorted(predictions.glob("*/case.json")) if (found := _facts(path))), {})
    named = [run for run in all_runs(runs) if run.name == made.get("model")]
    run = next((run for run in named if made.get("sha256") in _sealed(run)), None)
    if run is None:
        return None
    shown = attach_evaluation(run, summary, folder / "per_case.csv", store=runs, mlflow=mlflow)
    log.info("kept with the run %s%s", run.folder, " and shown in MLflow" if shown else "")
    return run


def _facts(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sealed(run: Run) -> set[str]:
    """The digests in SHA256SUMS."""
    try:
        lines = (run.folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {line.split("  ")[0] for line in lines}
