"""Which model `--model` means: a run folder, a run's name or the beginning of it, or a version in MLflow's registry."""

from pathlib import Path

from medseg_diff.run import Run, find_run
from medseg_diff.tracking.registry import SCHEME, fetch


def find_model(model: Path | str | None, *, task: str, runs: Path) -> Run:
    """The run that was named, or the newest finished one of this task below `runs`; a registered one is brought first.

    Raises: CheckpointError where that is no run of this task or is damaged, UsageError where there is none,
    EnvironmentFault where MLflow does not answer.
    """
    named = None if model is None else str(model)
    if named is not None and named.startswith(SCHEME):
        model = fetch(named, runs).folder
    return find_run(None if model is None else Path(model), task=task, runs=runs)
