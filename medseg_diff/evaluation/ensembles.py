"""What an ensemble is worth beside its reference: its mask, its members against raters, its doubt where it has any."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_diff.data import geometry
from medseg_diff.data.geometry import axial_axis
from medseg_diff.evaluation.summary import Floats, Mask, Values, majority, mean
from medseg_diff.metrics import calibration, diversity, overlap
from medseg_diff.metrics.anomaly import rank

Real = npt.NDArray[np.float32]
THRESHOLD = 0.5
BAND = (0.02, 0.98)  # of the probability: voxels that are in doubt


def ensemble_values(
    mask: Mask,
    probability: Real,
    members: Iterable[npt.NDArray[Any]],
    opinions: Mapping[str, Mask],
    brain: Mask,
    affine: Floats,
) -> Values:
    """The region's volume in the reference, and `dice`, `ged2` and `ece_band` as an evaluation of written files has
    them; what is undefined is not there, or None. All [X, Y, Z]; `opinions` are seg, or raters, or both."""
    reference = majority(opinions)
    apart = distances_of_slices(members, raters_in(opinions) or [reference], axial_axis(affine))
    return {
        "reference_ml": overlap.volume_ml(reference, voxel_ml=geometry.voxel_ml(affine)),
        "dice": overlap.dice(mask, reference),
        "ged2": mean([each.ged2 for each in apart.values()]),
        **in_doubt(probability[brain], reference[brain], (mask != reference)[brain], None),
    }


def raters_in(opinions: Mapping[str, Mask]) -> list[Mask]:
    """Those besides `seg`."""
    return [opinion for name, opinion in opinions.items() if name != "seg"]


def in_doubt(probability: Real, truth: Mask, wrong: Mask, uncertainty: Real | None) -> Values:
    """Calibration and errors found among those brain voxels [N] that are in doubt; nothing where none is."""
    band = (probability > BAND[0]) & (probability < BAND[1])
    if not band.any():
        return {}
    values: Values = {"ece_band": calibration.ece(probability[band], truth[band])}
    if uncertainty is not None:
        values["auroc_error_band"] = rank(uncertainty[band], wrong[band]).auroc()
    return values


def distances_of_slices(
    members: Iterable[npt.NDArray[Any]], raters: Sequence[Mask], axial: int
) -> dict[int, diversity.Distances]:
    """Of each axial slice in which a rater marked the region; nothing without members (masks or probabilities)."""
    masks = [np.moveaxis(member > THRESHOLD, axial, 0) for member in members]
    if not masks:
        return {}
    stacked = np.stack([np.moveaxis(rater, axial, 0) for rater in raters])
    return dict(diversity.distances_of_slices(np.stack(masks), stacked))
