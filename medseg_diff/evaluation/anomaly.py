"""Every metric of anomaly maps and of the baselines beside them: by voxel, slice, lesion and volume, with intervals."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_diff.console import log
from medseg_diff.data import geometry
from medseg_diff.data.geometry import slice_heights
from medseg_diff.data.plausibility import check_lesion
from medseg_diff.data.results import FACTS, CaseResult, read_result
from medseg_diff.data.tables.case import TWIN
from medseg_diff.data.tables.manifest import Case
from medseg_diff.evaluation.catalogue import ANOMALY, ANOMALY_TOGETHER
from medseg_diff.evaluation.detection_curves import curves, points_of
from medseg_diff.evaluation.summary import (
    OURS,
    Each,
    Evaluation,
    Floats,
    Mask,
    Values,
    axial_slices,
    entry,
    majority,
    mean,
    summarised,
    table,
)
from medseg_diff.files import read_facts
from medseg_diff.methods.anomaly.normative import top_mean
from medseg_diff.methods.components import find_lesions
from medseg_diff.metrics import overlap
from medseg_diff.metrics.anomaly import Counts, Pool, counts, rank
from medseg_diff.metrics.detection import lesion_detection
from medseg_diff.metrics.intervals import Interval, interval_together
from medseg_diff.metrics.reconstruction import reconstruction_errors

SLICE_COLUMNS = ("slice", "z_mm", "lesion_voxels", "score", "auroc", "average_precision")
RECONSTRUCTION = ("lesion_left", "error_elsewhere")
SPREAD, STEPS = 6.0, 241  # candidate thresholds: the stored one times 2 ** (-6 … 6)
UNSET = 0.1  # stands for a stored threshold where there is none; the candidates reach a hundredth and a hundredfold
CONVENTIONS = {
    "voxels": "of the brain, its rim included; anomaly.nii.gz and the baselines are smoothed, cleaned and set above a mean "
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
    "curves": "mean over cases with a lesion of each case's own; precision where a threshold first reaches the recall",
    "lesion_left": "mean |reconstruction - lesion-free twin| inside the lesion over mean |scan - twin|: 0 is the twin, 1 "
    "the scan; each channel in standard deviations of the twin's brain",
    "error_elsewhere": "mean |reconstruction - twin| of the other brain voxels, in the same deviations; a healthy case is "
    "its own twin",
    "gain": "the method less the baseline, case by case",
    "interval": "95 %, percentile bootstrap, patients drawn with replacement; null for fewer than two patients",
}


@dataclass(frozen=True)
class MeasuredMap:
    """One map of one case: `values` of ANOMALY's metrics, `dice` at each of the candidate thresholds, `points` of curves."""

    values: Values
    dice: Floats
    points: Floats


@dataclass(frozen=True)
class MeasuredCase:
    """One case: what each map scored (`anomaly` is the method's own), and a row of SLICE_COLUMNS for each axial slice."""

    case: Case
    reference_ml: float
    score: float
    maps: dict[str, MeasuredMap]
    slices: list[Values]


def evaluate_anomaly(cases: Sequence[Case], predictions: Path, *, each: Each = map) -> Evaluation:
    """Compare the maps in `predictions`/<case> with the cases' references; one case is in memory at a time. `each` measures
    the cases, in other processes perhaps.

    Cases without a reference, which must be labelled healthy, count as without a lesion. Raises: ImageError, ManifestError.
    """
    pools, measured = defaultdict[str, Pool](Pool), list[MeasuredCase]()
    for found, counted in each(partial(_measured, predictions, _candidates(cases, predictions)), cases):
        measured.append(found)
        for name, voxels in counted.items():
            pools[name].add(voxels)
    common = [name for name in measured[0].maps if all(name in each.maps for each in measured)]
    metrics = {name: _metrics(measured, name, pools[name]) for name in common}
    return Evaluation(
        facts={
            "metrics": metrics[OURS] | _by_slice(measured) | _by_volume(measured),
            "baselines": {name: metrics[name] | _gains(measured, name) for name in common if name != OURS},
            "curves": curves([each.maps[OURS].points for each in measured], [each.case.patient for each in measured]),
            "conventions": CONVENTIONS,
        },
        per_case=table(
            ("case", "patient", "split", "map"),
            ("reference_ml", "score", *ANOMALY),
            (
                (
                    (case.name, case.patient, case.split, name),
                    found.values | {"reference_ml": each.reference_ml, "score": each.score},
                )
                for case, each in zip(cases, measured, strict=True)
                for name, found in each.maps.items()
            ),
        ),
        per_slice=table(
            ("case", "patient"),
            SLICE_COLUMNS,
            (
                ((case.name, case.patient), row)
                for case, each in zip(cases, measured, strict=True)
                for row in each.slices
            ),
        ),
    )


def _candidates(cases: Sequence[Case], predictions: Path) -> dict[str, Floats]:
    """The thresholds of each map whose Dice is compared: the stored one (the middle one, where scans differ), and others."""
    stored: dict[str, list[float | None]] = {}
    for case in cases:
        facts = read_facts(predictions / case.name / FACTS)
        thresholds = {OURS: facts["threshold"]["value"], **facts.get("baseline_thresholds", {})}
        for name, threshold in thresholds.items():
            stored.setdefault(name, []).append(threshold)
    steps = 2.0 ** np.linspace(-SPREAD, SPREAD, STEPS)
    return {name: steps * np.median([value or UNSET for value in values]) for name, values in stored.items()}


def _measured(
    predictions: Path, candidates: Mapping[str, Floats], case: Case
) -> tuple[MeasuredCase, dict[str, Counts]]:
    return measure_case(case, read_result(predictions / case.name, case.name), candidates)


def measure_case(
    case: Case, result: CaseResult, candidates: Mapping[str, Floats]
) -> tuple[MeasuredCase, dict[str, Counts]]:
    """Everything of one case, and the voxels of each of its maps by score; `candidates` are the thresholds of each map
    whose Dice is wanted.

    Raises: ImageError where a file is damaged or lies on another grid, ManifestError where a channel is not there.
    """
    affine, facts = result.main.affine, result.facts
    references, brain = result.references(case), result.brain(case, facts["channels"])
    opinions = {name: result.marked(labels, OURS) for name, labels in references.items()}
    for name, lesion in opinions.items():
        check_lesion(lesion, brain, references[name], case, name)
    truth = majority(opinions) if opinions else np.zeros(result.main.shape, dtype=bool)
    voxel_ml = geometry.voxel_ml(affine)
    smallest_ml, thresholds = float(facts["findings"]["smallest_ml"]), facts.get("baseline_thresholds", {})
    maps, counted = dict[str, MeasuredMap](), dict[str, Counts]()
    for name, scores in itertools.chain([(OURS, result.main.voxels)], result.baselines()):
        mask = result.mask(OURS) if name == OURS else None
        if thresholds.get(name) is not None:  # a baseline is cut as the method's own map was
            cut: dict[str, float] = {"threshold": thresholds[name], "smallest_ml": smallest_ml}
            mask = find_lesions(scores, brain, affine=affine, **cut).mask
        inside, marked = scores[brain], truth[brain]
        counted[name] = counts(inside, marked)
        ranking = rank(inside, marked)
        values: Values = {"auroc": ranking.auroc(), "average_precision": ranking.average_precision()}
        values |= _of_mask(mask, truth, voxel_ml, smallest_ml)
        values["auroc_of_slices"] = _auroc_of_slices(scores, truth, brain, affine)
        values |= _of_reconstruction(case, result, truth, brain) if name == OURS else dict.fromkeys(RECONSTRUCTION)
        maps[name] = MeasuredMap(values, ranking.dice_at(candidates[name]), points_of(ranking))
    log.info("%s: %s", case.name, _in_words(maps[OURS].values, diseased=bool(truth.any())))
    reference_ml = overlap.volume_ml(truth, voxel_ml=voxel_ml)
    slices = list(_slices(result.main.voxels, truth, brain, affine))
    return MeasuredCase(case, reference_ml, float(facts["score"]), maps, slices), counted


def _in_words(values: Values, *, diseased: bool) -> str:
    """What is known; of a healthy case first what is marked all the same."""
    known = {name: value for name, value in values.items() if value is not None}
    marked = None if diseased else known.pop("false_positives_ml", None)
    words = [] if diseased else ["no lesion" if marked is None else f"no lesion, {marked:.2f} ml false positive"]
    return ", ".join([*words, *(f"{name} {value:.3f}" for name, value in known.items())])


def _of_mask(mask: Mask | None, truth: Mask, voxel_ml: float, smallest_ml: float) -> Values:
    """What the mask is worth: where there is a lesion how it is covered, else what is marked all the same."""
    if mask is None:
        return dict.fromkeys(("dice_preset", "lesion_sensitivity", "false_positives_ml"))
    diseased = bool(truth.any())
    return {
        "dice_preset": overlap.dice(mask, truth) if diseased else None,
        "lesion_sensitivity": lesion_detection(mask, truth, voxel_ml=voxel_ml, smallest_ml=smallest_ml).sensitivity,
        "false_positives_ml": None if diseased else overlap.volume_ml(mask, voxel_ml=voxel_ml),
    }


def _of_reconstruction(case: Case, result: CaseResult, truth: Mask, brain: Mask) -> Values:
    """What the reconstruction is worth, where there is one and what it should be is known."""
    channels = [name for name in result.facts["channels"] if name in case.twins or not truth.any()]
    made = {name: healthy for name in channels if (healthy := result.map(TWIN + name)) is not None}
    if not made:
        return dict.fromkeys(RECONSTRUCTION)
    scan = np.stack([result.image(case, name) for name in made])
    twin = np.stack([result.twin(case, name) for name in made]) if truth.any() else scan
    errors = reconstruction_errors(np.stack(list(made.values())), twin, scan, lesion=truth, brain=brain)
    return dict(zip(RECONSTRUCTION, (errors.left, errors.elsewhere), strict=True))


def _auroc_of_slices(scores: npt.NDArray[np.float32], truth: Mask, brain: Mask, affine: Floats) -> float | None:
    """Do the scores of axial slices tell those with a lesion from the others?"""
    planes = [each for each in axial_slices(affine, scores, truth, brain) if each[3].any()]
    if not planes:
        return None
    tops = np.array([top_mean(plane[inside]) for _, plane, _, inside in planes])
    return rank(tops, np.array([lesion.any() for _, _, lesion, _ in planes])).auroc()


def _slices(scores: npt.NDArray[np.float32], truth: Mask, brain: Mask, affine: Floats) -> Iterator[Values]:
    """A row for each axial slice that holds brain; see SLICE_COLUMNS."""
    heights = slice_heights(affine, scores.shape)
    for z, plane, lesion, inside in axial_slices(affine, scores, truth, brain):
        if inside.any():
            ranking = rank(plane[inside], lesion[inside])
            yield {
                "slice": z,
                "z_mm": heights[z],
                "lesion_voxels": int(lesion.sum()),
                "score": top_mean(plane[inside]),
                "auroc": ranking.auroc(),
                "average_precision": ranking.average_precision(),
            }


def _metrics(measured: Sequence[MeasuredCase], name: str, pool: Pool) -> dict[str, Any]:
    """Every metric of one map, summarised over the cases."""
    found = {key: _summary(key, [each.maps[name].values[key] for each in measured], measured) for key in ANOMALY}
    ranking = pool.ranking()
    assert ranking is not None
    pooled = {"auroc_pooled": ranking.auroc(), "average_precision_pooled": ranking.average_precision()}
    for key, value in pooled.items():
        found[key] = entry(ANOMALY_TOGETHER[key], Interval(value, None, None, len(measured)))
    diseased = [each for each in measured if each.reference_ml > 0]
    best = int(np.mean([each.maps[name].dice for each in diseased], axis=0).argmax()) if diseased else 0
    found["dice_best"] = _summary("dice_best", [float(each.maps[name].dice[best]) for each in diseased], diseased)
    return found


def _gains(measured: Sequence[MeasuredCase], baseline: str) -> dict[str, Any]:
    """How much better the method is than a baseline, case by case."""
    found = {}
    for key in ("auroc", "average_precision"):
        pairs = [(each.maps[OURS].values[key], each.maps[baseline].values[key]) for each in measured]
        gains = [None if ours is None or other is None else ours - other for ours, other in pairs]
        found[f"{key}_gain"] = _summary(key, gains, measured)
    return found


def _by_slice(measured: Sequence[MeasuredCase]) -> dict[str, Any]:
    """AUROC and average precision within slices that have a lesion."""
    return {
        f"{key}_per_slice": _summary(
            f"{key}_per_slice", [mean([row[key] for row in each.slices]) for each in measured], measured
        )
        for key in ("auroc", "average_precision")
    }


def _by_volume(measured: Sequence[MeasuredCase]) -> dict[str, Any]:
    """Does a volume's score tell cases with a lesion; null where all cases are of one kind."""
    scores = np.array([each.score for each in measured])
    diseased = np.array([each.reference_ml > 0 for each in measured])
    patients = [each.case.patient for each in measured]
    interval = interval_together(lambda cases: rank(scores[cases], diseased[cases]).auroc(), patients)
    return {"auroc_of_volumes": entry(ANOMALY_TOGETHER["auroc_of_volumes"], interval)}


def _summary(key: str, values: Sequence[float | None], measured: Sequence[MeasuredCase]) -> dict[str, Any]:
    return summarised((ANOMALY | ANOMALY_TOGETHER)[key], values, [each.case for each in measured])
