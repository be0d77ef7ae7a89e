"""How good are these anomaly maps? Every measure of every case and of the baselines beside them, with intervals."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medseg_diff import files
from medseg_diff.data.anomalies import anomaly_facts, read_anomaly_case
from medseg_diff.data.tables.manifest import SPLITS, Case, Manifest
from medseg_diff.errors import ManifestError, UsageError
from medseg_diff.evaluation.anomaly_case import OURS, SLICE_COLUMNS, Floats, MeasuredCase, Pools, measure_case
from medseg_diff.metrics.anomaly import Pool, rank
from medseg_diff.metrics.intervals import LEVEL, Interval, mean_interval

logger = logging.getLogger(__name__)

RESAMPLES = 1000
SPREAD, STEPS = 6.0, 241  # candidate thresholds: the stored one times 2 ** (-6 … 6)
UNSET = 0.1  # stands for a stored threshold where there is none; the candidates reach a hundredth and a hundredfold


class Measure(NamedTuple):
    """How one number is summarised."""

    unit: str
    over: str


SICK, WELL = "cases with a lesion", "cases without a lesion"
MEASURES = {
    "auroc": Measure("1", f"{SICK}, each over its brain voxels"),
    "average_precision": Measure("1", f"{SICK}, each over its brain voxels"),
    "dice_preset": Measure("1", SICK),
    "lesion_sensitivity": Measure("1", SICK),
    "false_positives_ml": Measure("ml", WELL),
    "auroc_of_slices": Measure("1", "cases with and without diseased slices, each over its axial slices"),
}
CONVENTIONS = {
    "voxels": "of the brain, its rim included; anomaly.nii.gz and the baselines are smoothed, cleaned and set above a floor "
    "of healthy brains alike",
    "average_precision": "sum of precision times the recall gained, no interpolation; equal scores count as one",
    "dice_best": "3D Dice at the one threshold that is best for all cases together, chosen with their references: an upper "
    "bound",
    "dice_preset": "3D, anomaly_mask.nii.gz; of a baseline its map at its own stored threshold, components dropped alike",
    "false_positives_ml": "all that is marked in a case without a lesion",
    "lesion_sensitivity": "share of the reference's components (26 neighbours, at least findings.smallest_ml) of which a "
    "tenth is marked",
    "auroc_per_slice": "mean over axial slices with a lesion, then over cases",
    "auroc_of_slices": "does a slice's score, the mean of its highest hundredth of brain voxels, tell slices with a lesion",
    "auroc_of_volumes": "does the volume's score tell cases with a lesion from cases without",
    "auroc_pooled": "brain voxels of all cases together, healthy ones too; no interval",
    "gain": "the method less the baseline, case by case",
    "interval": "95 %, percentile bootstrap, patients drawn with replacement; null for fewer than two patients",
}


def evaluate_anomaly(
    manifest: Manifest, predictions: Path, *, name: str, out: Path | None = None, split: str | None = None
) -> dict[str, Any]:
    """Compare a folder of anomaly maps with the references of a manifest; `name` is what the data are called.

    Cases without `seg` count as without a lesion where they are labelled healthy. Writes `out`/metrics.json (returned as
    well), per_case.csv and per_slice.csv. One case is in memory at a time.
    Raises: UsageError where results are missing, ManifestError where references are, ImageError.
    """
    cases = _cases(manifest, predictions, split)
    candidates, pools = _candidates(cases, predictions), Pools()
    measured = []
    for case in cases:
        measured.append(measure_case(case, read_anomaly_case(predictions / case.name, case.name), candidates, pools))
        values = measured[-1].maps[OURS].values
        logger.info(
            "%s: %s", case.name, ", ".join(f"{key} {value:.3f}" for key, value in values.items() if value is not None)
        )
    ours = _metrics(measured, OURS, pools.of[OURS])
    summary = {
        "schema": 1,
        "task": "anomaly",
        "data": name,
        "split": split or ", ".join(sorted({case.split for case in cases if case.split})) or None,
        "cases": len(cases),
        "patients": len({case.patient for case in cases}),
        "metrics": ours | _by_slice(measured) | _by_volume(measured),
        "baselines": {
            rival: _metrics(measured, rival, pools.of[rival]) | _gains(measured, rival)
            for rival in measured[0].maps
            if rival != OURS and all(rival in each.maps for each in measured)
        },
        "conventions": CONVENTIONS,
    }
    folder = out or predictions
    _write_tables(folder, measured)
    files.write_json(folder / "metrics.json", summary)
    return summary


def _cases(manifest: Manifest, predictions: Path, split: str | None) -> list[Case]:
    """The cases of the split, or of every split that has results. Raises: UsageError, ManifestError."""
    if split is not None and split not in SPLITS:
        raise UsageError(f"`{split}` is no split", fix=f"use one of {', '.join(SPLITS)}")
    begun = {case.split for case in manifest.cases if (predictions / case.name).is_dir()}
    if not begun:
        found = f"no case of {manifest.file} has a folder in {predictions.name}"
        raise UsageError(found, fix="run `medseg-diff anomaly` on this table, or check --predictions and --data")
    cases = [case for case in manifest.cases if case.split in ({split} if split else begun)]
    if not cases:
        raise ManifestError(f"no case has split {split}", fix="choose another --split", file=manifest.file)
    unfinished = [case.name for case in cases if anomaly_facts(predictions / case.name) is None]
    if unfinished:
        found = f"{len(unfinished)} of {len(cases)} cases have no complete anomaly map: {', '.join(unfinished[:10])}"
        raise UsageError(found, fix="run `medseg-diff anomaly` again (it continues), or choose --split")
    return cases


def _candidates(cases: Sequence[Case], predictions: Path) -> dict[str, Floats]:
    """The thresholds of each map whose Dice is compared: the stored one (the middle one, where scans differ), and others."""
    found: dict[str, list[float | None]] = {}
    for case in cases:
        facts = anomaly_facts(predictions / case.name) or {}
        found.setdefault(OURS, []).append(facts["threshold"]["value"])
        for name, threshold in facts.get("baseline_thresholds", {}).items():
            found.setdefault(name, []).append(threshold)
    steps = 2.0 ** np.linspace(-SPREAD, SPREAD, STEPS)
    return {name: steps * np.median([value or UNSET for value in values]) for name, values in found.items()}


def _metrics(measured: Sequence[MeasuredCase], name: str, pool: Pool) -> dict[str, Any]:
    """Every measure of one map, summarised over the cases."""
    found = {
        key: _entry(_interval([each.maps[name].values[key] for each in measured], measured), measure)
        for key, measure in MEASURES.items()
    }
    sick = [each for each in measured if each.reference_ml > 0]
    ranking = pool.ranking()
    assert ranking is not None
    pooled = {"auroc_pooled": ranking.auroc(), "average_precision_pooled": ranking.average_precision()}
    found |= {
        key: _entry(Interval(value, None, None, len(measured)), Measure("1", "brain voxels of all cases together"))
        for key, value in pooled.items()
    }
    best = int(np.mean([each.maps[name].dice for each in sick], axis=0).argmax()) if sick else 0
    found["dice_best"] = _entry(
        _interval([float(each.maps[name].dice[best]) for each in sick], sick), Measure("1", SICK)
    )
    return found


def _gains(measured: Sequence[MeasuredCase], rival: str) -> dict[str, Any]:
    """How much better the method is than a rival, case by case."""
    found = {}
    for key in ("auroc", "average_precision"):
        pairs = [(each.maps[OURS].values[key], each.maps[rival].values[key]) for each in measured]
        gains = [None if ours is None or other is None else ours - other for ours, other in pairs]
        found[f"{key}_gain"] = _entry(_interval(gains, measured), MEASURES[key])
    return found


def _by_slice(measured: Sequence[MeasuredCase]) -> dict[str, Any]:
    """AUROC and average precision within slices that have a lesion."""
    over = Measure("1", f"{SICK}, each over its axial slices with a lesion")
    found = {}
    for key in ("auroc", "average_precision"):
        column = SLICE_COLUMNS.index(key)
        known = [[row[column] for row in each.slices if row[column] is not None] for each in measured]
        means = [float(np.mean(values)) if values else None for values in known]
        found[f"{key}_per_slice"] = _entry(_interval(means, measured), over)
    return found


def _by_volume(measured: Sequence[MeasuredCase]) -> dict[str, Any]:
    """Does a volume's score tell cases with a lesion; null where all cases are of one kind."""
    scores = np.array([each.score for each in measured])
    sick = np.array([each.reference_ml > 0 for each in measured])
    value = rank(scores, sick).auroc()
    low = high = None
    if value is not None:
        drawn = np.random.default_rng(0).integers(len(scores), size=(RESAMPLES, len(scores)))
        values = [found for places in drawn if (found := rank(scores[places], sick[places]).auroc()) is not None]
        low, high = (float(limit) for limit in np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    entry = _entry(Interval(value, low, high, len(measured)), Measure("1", "cases with a lesion against cases without"))
    return {"auroc_of_volumes": entry}


def _interval(values: Sequence[float | None], measured: Sequence[MeasuredCase]) -> Interval:
    return mean_interval(values, patients=[each.case.patient for each in measured])


def _entry(interval: Interval, measure: Measure) -> dict[str, Any]:
    limits = {"value": interval.value, "low": interval.low, "high": interval.high}
    return limits | {"unit": measure.unit, "over": measure.over, "cases": interval.cases}


def _write_tables(folder: Path, measured: Sequence[MeasuredCase]) -> None:
    """One row a case and map, one row a case and slice; an empty cell is an undefined value."""
    rows = [
        [each.case.name, each.case.patient, each.case.split, name, *_rounded([each.reference_ml, each.score, *values])]
        for each in measured
        for name, found in each.maps.items()
        for values in [[found.values[key] for key in MEASURES]]
    ]
    files.write_table(
        folder / "per_case.csv", ["case", "patient", "split", "map", "reference_ml", "score", *MEASURES], rows
    )
    slices = [[each.case.name, each.case.patient, *_rounded(row)] for each in measured for row in each.slices]
    files.write_table(folder / "per_slice.csv", ["case", "patient", *SLICE_COLUMNS], slices)


def _rounded(values: Sequence[float | int | None]) -> list[str | None]:
    return [None if value is None else f"{value:.6g}" for value in values]


def best_baseline(metrics: Mapping[str, Any], key: str = "auroc") -> tuple[str, float] | None:
    """The strongest baseline of a metrics.json and its number."""
    found = {
        name: entry[key]["value"] for name, entry in metrics["baselines"].items() if entry[key]["value"] is not None
    }
    return max(found.items(), key=lambda item: item[1]) if found else None
