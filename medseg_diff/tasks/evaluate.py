"""How good are these predictions? Every measure of every case, their means with intervals, curves, tables and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg_diff import files
from medseg_diff.console import log
from medseg_diff.data.anomalies import holds_anomalies
from medseg_diff.data.predictions import is_segmented, read_segmented_case
from medseg_diff.data.tables.manifest import SPLITS, Case, Manifest, read_manifest
from medseg_diff.errors import ManifestError, UsageError
from medseg_diff.evaluation.comparison import compare_predictions
from medseg_diff.evaluation.segmentation import (
    CONVENTIONS,
    MEASURES,
    SLICE_COLUMNS,
    MeasuredCase,
    curves_of,
    measure_case,
    summaries,
)
from medseg_diff.phantoms.make import is_phantom_folder
from medseg_diff.tasks.attach import attach_to_run

SCHEMA = 1
NAMES_SHOWN = 10


def evaluate(
    predictions: Path,
    data: Path,
    *,
    out: Path | None = None,
    split: str | None = None,
    data_root: Path | None = None,
    figure: bool = True,
    runs: Path = Path("runs"),
    mlflow: bool = True,
) -> dict[str, Any]:
    """Compare a folder of segmentations, or of anomaly maps, with the references of a manifest.

    Reads `predictions`/<case>/{case.json, mask.nii.gz} and, where present, probability, calibrated, uncertainty and
    members; writes `out`/metrics.json (returned as well), per_case.csv, per_slice.csv and, unless `figure` is off,
    evaluation.png; `out` defaults to `predictions`. `split` defaults to the splits that have predictions; every case of
    them must have been segmented. The run below `runs` that made the predictions keeps the result and, unless `mlflow`
    is off, shows it in MLflow.
    Raises: UsageError where predictions are missing (all are named), ManifestError where references are, ImageError
    where a file is damaged or lies on another grid than its reference.
    """
    manifest = read_manifest(data, data_root=data_root)
    if holds_anomalies(predictions):
        from medseg_diff.evaluation.anomaly import evaluate_anomaly

        summary = evaluate_anomaly(manifest, predictions, name=name_of(manifest, manifest.cases), out=out, split=split)
        attach_to_run(summary, out or predictions, predictions, runs=runs, mlflow=mlflow)
        return summary
    cases = cases_to_measure(manifest, predictions, split)
    measured = [measure_case(case, read_segmented_case(predictions / case.name, case.name)) for case in cases]
    _warn_of_labels(measured)
    summary = {
        "schema": SCHEMA,
        "task": "segment",
        "data": name_of(manifest, cases),
        "split": split or ", ".join(sorted({case.split for case in cases if case.split})) or None,
        "cases": len(cases),
        "patients": len({case.patient for case in cases}),
        "metrics": dict(summaries(measured)),
        "curves": curves_of(measured),
        "baselines": {},
        "conventions": CONVENTIONS,
    }
    folder = out or predictions
    _write_per_case(folder / "per_case.csv", measured)
    _write_per_slice(folder / "per_slice.csv", measured)
    files.write_json(folder / "metrics.json", summary)
    if figure:
        from medseg_diff.reporting.evaluation import evaluation_figure

        evaluation_figure(folder, folder / "evaluation.png")
    attach_to_run(summary, folder, predictions, runs=runs, mlflow=mlflow)
    return summary


def cases_to_measure(manifest: Manifest, predictions: Path, split: str | None) -> list[Case]:
    """The cases of the split, or of every split that has predictions. Raises: UsageError, ManifestError."""
    if split is not None and split not in SPLITS:
        raise UsageError(f"`{split}` is no split", fix=f"use one of {', '.join(SPLITS)}")
    begun = [case for case in manifest.cases if (predictions / case.name).is_dir()]
    if not begun:
        raise UsageError(
            f"no case of {manifest.file} has a folder in {predictions.name}",
            fix="run `medseg-diff segment` on this table, or check --predictions and --data",
        )
    splits = {case.split for case in begun} if split is None else {split}
    cases = [case for case in manifest.cases if case.split in splits]
    if not cases:
        raise ManifestError(f"no case has split {split}", fix="choose another --split", file=manifest.file)
    unfinished = [case.name for case in cases if not is_segmented(predictions / case.name)]
    if unfinished:
        raise UsageError(
            f"{len(unfinished)} of {len(cases)} cases have no complete prediction: {_listed(unfinished)}",
            fix="run `medseg-diff segment` again (it continues), or choose --split",
        )
    unlabelled = [case.name for case in cases if case.seg is None and not case.raters]
    if unlabelled:
        raise ManifestError(
            f"{len(unlabelled)} of {len(cases)} cases have no reference: {_listed(unlabelled)}",
            fix="add a column seg, or drop the rows",
            file=manifest.file,
        )
    return cases


def _warn_of_labels(measured: Sequence[MeasuredCase]) -> None:
    """Say where a reference holds more than the model's regions: another convention of labels would go unnoticed."""
    odd = [each for each in measured if each.uncounted]
    if odd:
        labels = ", ".join(map(str, sorted({label for each in odd for label in each.uncounted})[:NAMES_SHOWN]))
        log.warning(
            "%d of %d references hold the label %s, which no region of the model counts: %s",
            len(odd),
            len(measured),
            labels,
            _listed([each.case.name for each in odd]),
        )


def _listed(names: Sequence[str]) -> str:
    hidden = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {hidden} more" if hidden > 0 else "")


def name_of(manifest: Manifest, cases: Sequence[Case]) -> str:
    """What the numbers are about; made-up brains are never passed off as patients."""
    made_up = is_phantom_folder(manifest.root) or all(case.name.startswith("phantom_") for case in cases)
    return "phantom" if made_up else Path(manifest.file).stem


def _write_per_case(path: Path, measured: Sequence[MeasuredCase]) -> None:
    """One row a case and region; an empty cell is an undefined value."""
    rows = [
        [each.case.name, each.case.patient, each.case.split, region, _rounded(each.reference_ml[region])]
        + [_rounded(values.get(name)) for name in MEASURES]
        for each in measured
        for region, values in each.regions.items()
    ]
    files.write_table(path, ["case", "patient", "split", "region", "reference_ml", *MEASURES], rows)


def _write_per_slice(path: Path, measured: Sequence[MeasuredCase]) -> None:
    """One row a case, region and axial slice that holds brain or is marked."""
    rows = [
        [each.case.name, each.case.patient, region, *(_rounded(row[name]) for name in SLICE_COLUMNS)]
        for each in measured
        for region, slices in each.slices.items()
        for row in slices
    ]
    files.write_table(path, ["case", "patient", "region", *SLICE_COLUMNS], rows)


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


COMPARED = "compared"  # folder of the second evaluation, where results go elsewhere


def evaluate_both(
    first: Path,
    second: Path,
    data: Path,
    *,
    out: Path | None = None,
    split: str | None = None,
    data_root: Path | None = None,
    figure: bool = True,
    runs: Path = Path("runs"),
    mlflow: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate two folders of predictions on the same table; returns the first one's metrics and the comparison.

    What `evaluate` writes goes into each folder, or to `out` and `out`/compared; comparison.json beside the first.
    Raises: as `evaluate` and `compare_predictions`.
    """
    common: dict[str, Any] = {"split": split, "data_root": data_root, "figure": figure, "runs": runs, "mlflow": mlflow}
    other = out / COMPARED if out else None
    evaluate(second, data, out=other, **common)
    metrics = evaluate(first, data, out=out, **common)  # last: a run that made both keeps this one
    names = (first.name, second.name)
    return metrics, compare_predictions(out or first, other or second, out=out or first, names=names)
