"""How good are these predictions? Every metric of every case, their means with intervals, curves, tables and a figure."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from medseg_diff import files
from medseg_diff.cluster import Cluster, Sharing, in_order
from medseg_diff.console import log
from medseg_diff.data.label_maps import AnyResults, LabelMaps, Named, Regions, named_regions, results_in
from medseg_diff.data.results import OwnResults
from medseg_diff.data.tables.manifest import SPLITS, Case, Manifest, read_manifest
from medseg_diff.errors import ManifestError, UsageError, counted
from medseg_diff.evaluation.comparison import compare_predictions
from medseg_diff.evaluation.segmentation import evaluate_segmentation
from medseg_diff.evaluation.summary import Each, listed
from medseg_diff.phantoms.make import is_phantom
from medseg_diff.tasks.options import check_sharing
from medseg_diff.tracking.attaching import attach_to_run

SCHEMA = 1
COMPARED = "compared"  # folder of the second evaluation, where results go elsewhere


def evaluate(
    predictions: Path | str,
    data: Path | str,
    *,
    out: Path | str | None = None,
    split: str | None = None,
    data_root: Path | None = None,
    config: str | None = None,
    like: Path | None = None,
    allow_missing: bool = False,
    figure: bool = True,
    runs: Path = Path("runs"),
    mlflow: bool = True,
    cluster: Cluster = "none",
    workers: int | None = None,
) -> dict[str, Any]:
    """Compare a folder of segmentations, or of anomaly maps, with the references of a manifest.

    Reads what `segment` or `anomaly` wrote to `predictions`/<case>, or label maps of any program (`data/label_maps.py`);
    writes `out`/metrics.json (returned as well), per_case.csv, per_slice.csv and, of segmentations and unless `figure` is
    off, evaluation.png; `out` defaults to `predictions`. `split` defaults to the splits that have results; every case of
    them must have been completed, unless `allow_missing` leaves out those that are not. Label maps have the regions of the
    recipe `config`, else those of the results `like`, else what their dataset.json or the references name. The run below
    `runs` that made the predictions keeps the result and, unless `mlflow` is off, shows it in MLflow. With `cluster` ray
    the cases are shared among `workers` processes.
    Raises: UsageError where predictions are missing (all are named), ManifestError where references are, ImageError
    where a file is damaged or lies on another grid than its reference.
    """
    check_sharing(cluster, workers)
    predictions, data, out = Path(predictions), Path(data), None if out is None else Path(out)
    manifest = read_manifest(data, data_root=data_root)
    results = results_in(predictions)
    cases, missing = cases_to_measure(manifest, results, split, allow_missing=allow_missing)
    results = with_regions(results, manifest, cases, config=config, like=like)
    each: Each = map if cluster == "none" else partial(in_order, sharing=Sharing(workers))
    if results.task == "anomaly":
        from medseg_diff.evaluation.anomaly import evaluate_anomaly  # brings torch

        evaluation = evaluate_anomaly(cases, predictions, each=each)
    else:
        evaluation = evaluate_segmentation(cases, results, each=each)
    summary = {
        "schema": SCHEMA,
        "task": results.task,
        "data": _name_of(manifest, cases),
        "split": split or ", ".join(sorted({case.split for case in cases if case.split})) or None,
        "cases": len(cases),
        "patients": len({case.patient for case in cases}),
        **({"missing": missing} if missing else {}),
        **(_stated(results.regions) if isinstance(results, LabelMaps) else {}),
        **evaluation.facts,
    }
    folder = out or predictions
    files.write_table(folder / "per_case.csv", *evaluation.per_case)
    files.write_table(folder / "per_slice.csv", *evaluation.per_slice)
    files.write_json(folder / "metrics.json", summary)
    if figure:
        from medseg_diff.reporting.evaluation import evaluation_figure

        evaluation_figure(folder, folder / "evaluation.png")
    attach_to_run(summary, folder / "per_case.csv", predictions, runs=runs, mlflow=mlflow)
    return summary


def evaluate_both(
    first: Path, second: Path, data: Path, *, out: Path | None = None, **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate two folders of predictions on the same table; returns the first one's metrics and the comparison.

    What `evaluate` writes goes into each folder, or to `out` and `out`/compared; comparison.json beside the first. Label
    maps of other programs have the regions of ours, else of the folder that names any, so that both have the same.
    `options` are those of `evaluate`. Raises: as `evaluate` and `compare_predictions`; UsageError where one folder is of
    `segment` and the other of `anomaly`.
    """
    results = [results_in(folder) for folder in (first, second)]
    if results[0].task != results[1].task:
        found = f"{first.name} holds results of `{results[0].task}`, {second.name} of `{results[1].task}`"
        raise UsageError(found, fix="compare results of one task")
    ours_first = sorted(results, key=lambda each: isinstance(each, LabelMaps))
    like = next((each.folder for each in ours_first if named_regions(each.folder)), None)
    if options.get("config") and all(isinstance(each, OwnResults) for each in results):
        raise _needless_config(first)
    other = out / COMPARED if out else None
    evaluate(second, data, out=other, like=like, **options)
    metrics = evaluate(first, data, out=out, like=like, **options)  # last: a run that made both keeps this one
    names = (first.name, second.name)
    return metrics, compare_predictions(out or first, other or second, out=out or first, names=names)


def cases_to_measure(
    manifest: Manifest, results: AnyResults, split: str | None, *, allow_missing: bool = False
) -> tuple[list[Case], list[str]]:
    """The cases of the split, or of every split that has results; and the names of those left out, as having none.

    Raises: UsageError where a case has none that may not be left out; ManifestError.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f"`{split}` is not a split", fix=f"use one of {', '.join(SPLITS)}")
    begun = {case.split for case in manifest.cases if results.begun(case.name)}
    if not begun:
        there = "" if isinstance(results, OwnResults) else results.unmatched([])
        raise UsageError(
            f"no case of {manifest.file} has a result in {results.folder.name}"
            + (f" (there: {there})" if there else ""),
            fix="check --predictions and --data: a result is CASE.nii.gz, or a folder CASE of `segment` or `anomaly`",
        )
    cases = [case for case in manifest.cases if case.split in ({split} if split else begun)]
    if not cases:
        raise ManifestError(f"no case has split {split}", fix="choose another --split", file=manifest.file)
    missing = [case.name for case in cases if not results.holds(case.name)]
    if missing:
        said = f"no complete result for {len(missing)} of {counted(len(cases), 'case')}: {listed(missing)}"
        if not allow_missing or len(missing) == len(cases):
            again = (
                f"run `medseg-diff {results.task}` again (it continues), " if isinstance(results, OwnResults) else ""
            )
            raise UsageError(said, fix=f"{again}choose --split, or leave them out with --allow-missing")
        log.warning("%s; they are left out of all means", said)
        cases = [case for case in cases if case.name not in missing]
    _refuse_unlabelled(cases, manifest.file, known="healthy" if results.task == "anomaly" else None)
    return cases, missing


def _refuse_unlabelled(cases: Sequence[Case], file: str, *, known: str | None) -> None:
    """`known` is the label that says where the lesion is: nowhere. Raises: ManifestError."""
    unlabelled = [case.name for case in cases if not (case.seg or case.raters or (known and case.label == known))]
    if unlabelled:
        raise ManifestError(
            f"no reference for {len(unlabelled)} of {counted(len(cases), 'case')}: {listed(unlabelled)}",
            fix="add a column seg, or drop the rows" + (f", or label them {known}" if known else ""),
            file=file,
        )


def with_regions(
    results: AnyResults, manifest: Manifest, cases: Sequence[Case], *, config: str | None, like: Path | None
) -> AnyResults:
    """Label maps with the regions that are measured, which is said; our own results as they are.

    Raises: UsageError where `config` is given and the results name their regions, or as `LabelMaps.measured_by`.
    """
    if isinstance(results, OwnResults):
        if config and not like:
            raise _needless_config(results.folder)
        return results
    wanted = named_regions(like) if like else None
    if config:
        from medseg_diff.recipes.lookup import load_recipe  # brings torch

        wanted = Named(load_recipe(config, task="segment").regions, f"recipe {config}")
    measured = results.measured_by(cases, wanted)
    log.info("took %s of %s, %s", counted(len(cases), "label map"), results.folder.name, measured.regions.sentence)
    if others := results.unmatched(case.name for case in manifest.cases):
        log.info("these belong to no case of %s: %s", manifest.file, others)
    return measured


def _needless_config(folder: Path) -> UsageError:
    found = f"the results in {folder.name} already state their regions"
    return UsageError(found, fix="leave --config out: it is for masks of other programs")


def _stated(regions: Regions) -> dict[str, Any]:
    """What metrics.json says of the regions of label maps."""
    labels = {
        region: {"labels": list(regions.mask[region]), "reference_labels": list(regions.reference[region])}
        for region in regions.reference
    }
    return {"regions": labels, "regions_from": regions.said}


def _name_of(manifest: Manifest, cases: Sequence[Case]) -> str:
    """What the numbers are about; made-up brains are never passed off as patients."""
    return "phantom" if all(map(is_phantom, cases)) else manifest.name
