"""All that is measured of one case's anomaly map, and of the baselines' maps beside it: by voxel, slice and lesion."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_diff.data.anomalies import AnomalyCase
from medseg_diff.data.brain import find_brain_or_head
from medseg_diff.data.geometry import Volume, axes_of, same_grid, spacing_of
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import ImageError, ManifestError
from medseg_diff.methods.anomaly.normative import top_mean
from medseg_diff.methods.components import find_lesions
from medseg_diff.metrics import overlap
from medseg_diff.metrics.anomaly import Pool, rank
from medseg_diff.metrics.detection import lesion_detection

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
OURS = "anomaly"
SLICE_COLUMNS = ("slice", "z_mm", "lesion_voxels", "score", "auroc", "average_precision")


@dataclass(frozen=True)
class MeasuredMap:
    """One map of one case: `values` by key, None where undefined; `dice` at each of the candidate thresholds."""

    values: dict[str, float | None]
    dice: Floats


@dataclass(frozen=True)
class MeasuredCase:
    """One case: what each map scored (`anomaly` is the method's own), and the axial slices in the order of SLICE_COLUMNS."""

    case: Case
    reference_ml: float
    score: float
    maps: dict[str, MeasuredMap]
    slices: list[list[Any]]


@dataclass
class Pools:
    """The brain voxels of all cases together, for each map."""

    of: dict[str, Pool] = field(default_factory=dict)

    def add(self, name: str, scores: npt.NDArray[np.float32], lesion: Mask) -> None:
        self.of.setdefault(name, Pool()).add(scores, lesion)


def measure_case(case: Case, found: AnomalyCase, candidates: Mapping[str, Floats], pools: Pools) -> MeasuredCase:
    """Everything of one case; `candidates` are the thresholds of each map whose Dice is wanted.

    Raises: ImageError where a file is damaged or lies on another grid, ManifestError without a reference.
    """
    truth, brain = _truth_and_brain(case, found)
    affine, spacing_mm = found.score.affine, [float(step) for step in spacing_of(found.score.affine)]
    smallest_ml = float(found.facts["findings"]["smallest_ml"])
    maps: dict[str, MeasuredMap] = {}
    for name in (OURS, *found.rivals):
        scores = found.score.voxels if name == OURS else found.rival(name)
        mask = found.mask() if name == OURS else _mask_of(name, scores, brain, found, smallest_ml)
        inside, marked = scores[brain], truth[brain]
        pools.add(name, inside, marked)
        ranking = rank(inside, marked)
        values = {"auroc": ranking.auroc(), "average_precision": ranking.average_precision()}
        values |= _of_mask(mask, truth, spacing_mm, smallest_ml)
        values["auroc_of_slices"] = _auroc_of_slices(scores, truth, brain, affine)
        maps[name] = MeasuredMap(values, ranking.dice_at(candidates[name]))
    reference_ml = overlap.volume_ml(truth, spacing_mm=spacing_mm)
    slices = _slices(found.score.voxels, truth, brain, affine)
    return MeasuredCase(case, reference_ml, float(found.facts["score"]), maps, slices)


def _truth_and_brain(case: Case, found: AnomalyCase) -> tuple[Mask, Mask]:
    """Where the reference marks a lesion (nowhere, in a case that is labelled healthy), and where the brain is."""
    channels = found.facts["channels"]
    images = read_case(case, channels, resample_to=found.facts["resample_to"])
    if not same_grid(Volume(images.image[0], images.affine), found.score):
        fix = "run `medseg-diff anomaly` on this very case again"
        raise ImageError("not on the grid of anomaly.nii.gz", fix=fix, case=case.name, channel=channels[0])
    if images.reference is not None:
        truth = _diseased(images.reference, found)
    elif images.raters is not None:
        truth = np.mean([_diseased(labels, found) for labels in images.raters], axis=0) > 0.5
    elif case.label == "healthy":
        truth = np.zeros(found.score.shape, dtype=bool)
    else:
        raise ManifestError("has no reference and no label", fix="fill seg, or label it healthy", case=case.name)
    return truth, find_brain_or_head(images.image)


def _diseased(labels: np.ndarray, found: AnomalyCase) -> Mask:
    wanted = found.facts["diseased"]
    return np.asarray(labels > 0 if wanted is None else np.isin(labels, wanted))


def _mask_of(
    name: str, scores: npt.NDArray[np.float32], brain: Mask, found: AnomalyCase, smallest_ml: float
) -> Mask | None:
    """A baseline cut at its own stored threshold, small components dropped as in the method's own mask."""
    threshold = found.facts["baseline_thresholds"].get(name)
    if threshold is None:
        return None
    affine = found.score.affine
    return find_lesions(scores, brain, threshold=threshold, smallest_ml=smallest_ml, affine=affine).mask


def _of_mask(mask: Mask | None, truth: Mask, spacing_mm: list[float], smallest_ml: float) -> dict[str, float | None]:
    """What the mask is worth: where there is a lesion how it is covered, else what is marked all the same."""
    if mask is None:
        return dict.fromkeys(("dice_preset", "lesion_sensitivity", "false_positives_ml"))
    sick = bool(truth.any())
    found = lesion_detection(mask, truth, spacing_mm=spacing_mm, smallest_ml=smallest_ml)
    return {
        "dice_preset": overlap.dice(mask, truth) if sick else None,
        "lesion_sensitivity": found.sensitivity,
        "false_positives_ml": None if sick else overlap.volume_ml(mask, spacing_mm=spacing_mm),
    }


def _auroc_of_slices(scores: np.ndarray, truth: Mask, brain: Mask, affine: np.ndarray) -> float | None:
    """Do the scores of axial slices tell those with a lesion from the others?"""
    planes = [(top_mean(s[b]), bool(t.any())) for _, s, t, b in _planes(scores, truth, brain, affine)]
    if not planes:
        return None
    return rank(np.array([score for score, _ in planes]), np.array([ill for _, ill in planes])).auroc()


def _slices(scores: np.ndarray, truth: Mask, brain: Mask, affine: np.ndarray) -> list[list[Any]]:
    """A row for each axial slice that holds brain."""
    axial = _axial(affine)
    rows: list[list[Any]] = []
    for number, plane, lesion, inside in _planes(scores, truth, brain, affine):
        ranking = rank(plane[inside], lesion[inside])
        z_mm = round(float(affine[2, axial] * number + affine[2, 3]), 1)
        rows.append(
            [number, z_mm, int(lesion.sum()), top_mean(plane[inside]), ranking.auroc(), ranking.average_precision()]
        )
    return rows


def _planes(
    scores: np.ndarray, truth: Mask, brain: Mask, affine: np.ndarray
) -> list[tuple[int, np.ndarray, Mask, Mask]]:
    """(number, scores, lesion, brain) of every axial slice with brain."""
    stacks = [np.moveaxis(volume, _axial(affine), 0) for volume in (scores, truth, brain)]
    return [(z, *(stack[z] for stack in stacks)) for z in range(len(stacks[2])) if stacks[2][z].any()]


def _axial(affine: np.ndarray) -> int:
    return next(axis for axis, towards in enumerate(axes_of(affine)) if towards in "SI")
