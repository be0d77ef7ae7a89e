"""How good are these predictions? Every metric of every case, their means with intervals, curves, tables and a figure."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medseg_diff import files
from medseg_diff.cluster import Cluster, Sharing, in_order
from medseg_diff.data.results import holds_result, task_of_results
from medseg_diff.data.tables.manifest import SPLITS, Case, Manifest, read_manifest
from medseg_diff.errors import ManifestError, UsageError
from medseg_diff.evaluation.comparison import compare_predictions
from medseg_diff.evaluation.segmentation import evaluate_segmentation
from medseg_diff.evaluation.summary import Each, listed
from medseg_diff.phantoms.make import is_phantom
from medseg_diff.tasks.options import check_sharing
from medseg_diff.tracking.evaluations import attach_to_run

SCHEMA = 1
COMPARED = "compared"  # folder of the second evaluation, where results go elsewhere


def evaluate(
    predictions: Path | str,
    data: Path | str,
    *,
    out: Path | str | None = None,
    split: str | None = None,
    data_root: Path | None = None,
    figure: bool = True,
    runs: Path = Path("runs"),
    mlflow: bool = True,
    cluster: Cluster = "none",
    workers: int | None = None,
) -> dict[str, Any]:
    """Compare a folder of segmentations, or of anomaly maps, with the references of a manifest.

    Reads what `segment` or `anomaly` wrote to `predictions`/<case>; writes `out`/metrics.json (returned as well),
    per_case.csv, per_slice.csv and, of segmentations and unless `figure` is off, evaluation.png; `out` defaults to
    `predictions`. `split` defaults to the splits that have results; every case of them must have been completed. The run
    below `runs` that made the predictions keeps the result and, unless `mlflow` is off, shows it in MLflow. With
    `cluster` ray the cases are shared among `workers` processes.
    Raises: UsageError where predictions are missing (all are named), ManifestError where references are, ImageError
    where a file is damaged or lies on another grid than its reference.
    """
    check_sharing(cluster, workers)
    predictions, data, out = Path(predictions), Path(data), None if out is None else Path(out)
    manifest = read_manifest(data, data_root=data_root)
    task = task_of_results(predictions)
    cases = cases_to_measure(manifest, predictions, split, task=task)
    each: Each = map if cluster == "none" else partial(in_order, sharing=Sharing(workers))
    if task == "anomaly":
        from medseg_diff.evaluation.anomaly import evaluate_anomaly  # brings torch

        evaluation = evaluate_anomaly(cases, predictions, each=each)
    else:
        evaluation = evaluate_segmentation(cases, predictions, each=each)
    summary = {
        "schema": SCHEMA,
        "task": task,
        "data": _name_of(manifest, cases),
        "split": split or ", ".join(sorted({case.split for case in cases if case.split})) or None,
        "cases": len(cases),
        "patients": len({case.patient for case in cases}),
        **evaluation.facts,
    }
    folder = out or predictions
    files.write_table(folder / "per_case.csv", *evaluation.per_case)
    files.write_table(folder / "per_slice.csv", *evaluation.per_slice)
    files.write_json(folder / "metrics.json", summary)
    if figure and task == "segment":
        from medseg_diff.reporting.evaluation import evaluation_figure

        evaluation_figure(folder, folder / "evaluation.png")
    attach_to_run(summary, folder / "per_case.csv", predictions, runs=runs, mlflow=mlflow)
    return summary


def evaluate_both(
    first: Path, second: Path, data: Path, *, out: Path | None = None, **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate two folders of predictions on the same table; returns the first one's metrics and the comparison.

    What `evaluate` writes goes into each folder, or to `out` and `out`/compared; comparison.json beside the first.
    `options` are those of `evaluate`. Raises: as `evaluate` and `compare_predictions`.
    """
    other = out / COMPARED if out else None
    evaluate(second, data, out=other, **options)
    metrics = evaluate(first, data, out=out, **options)  # last: a run that made both keeps this one
    names = (first.name, second.name)
    return metrics, compare_predictions(out or first, other or second, out=out or first, names=names)


def cases_to_measure(manifest: Manifest, predictions: Path, split: str | None, *, task: str) -> list[Case]:
    """The cases of the split, or of every split that has predictions. Raises: UsageError, ManifestError."""
    if split is not None and split not in SPLITS:
        raise UsageError(f"`{split}` is no split", fix=f"use one of {', '.join(SPLITS)}")
    begun = {case.split for case in manifest.cases if (predictions / case.name).is_dir()}
    if not begun:
        raise UsageError(
            f"no case of {manifest.file} has a folder in {predictions.name}",
            fix="run `medseg-diff segment` or `anomaly` on this table, or check --predictions and --data",
        )
    cases = [case for case in manifest.cases if case.split in ({split} if split else begun)]
    if not cases:
        raise ManifestError(f"no case has split {split}", fix="choose another --split", file=manifest.file)
    unfinished = [case.name for case in cases if not holds_result(predictions / case.name, task)]
    if unfinished:
        raise UsageError(
            f"{len(unfinished)} of {len(cases)} cases have no complete result: {listed(unfinished)}",
            fix=f"run `medseg-diff {task}` again (it continues), or choose --split",
        )
    known = "healthy" if task == "anomaly" else None  # the label that says where the lesion is: nowhere
    unlabelled = [case.name for case in cases if not (case.seg or case.raters or (known and case.label == known))]
    if unlabelled:
        raise ManifestError(
            f"{len(unlabelled)} of {len(cases)} cases have no reference: {listed(unlabelled)}",
            fix="add a column seg, or drop the rows" + (f", or label them {known}" if known else ""),
            file=manifest.file,
        )
    return cases


def _name_of(manifest: Manifest, cases: Sequence[Case]) -> str:
    """What the numbers are about; made-up brains are never passed off as patients."""
    return "phantom" if all(map(is_phantom, cases)) else Path(manifest.file).stem
