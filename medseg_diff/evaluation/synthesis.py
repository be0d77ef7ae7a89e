"""What synthetic images are worth: what is measured of them, and how like the real ones they are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from medseg_diff.metrics import realism
from medseg_diff.metrics.brain_volumes import brain_volumes
from medseg_diff.metrics.likeness import diversity
from medseg_diff.metrics.neighbours import density_coverage, nearness

INTENSITY = {"ventricle_volume_ml": 0, "brain_volume_ml": 1}  # covariates that intensities alone can measure
REGRESSOR, BY_INTENSITY = "regressor", "intensity"  # who measured
Floats = npt.NDArray[np.float64]


class Measured(NamedTuple):
    """Images' features [N, F] and, by who measured, covariates by name [N] each."""

    features: Floats
    spatial: Floats
    covariates: Mapping[str, Mapping[str, Floats]]


def measured_by_intensity(
    images: Tensor, spacing_mm: Sequence[float], background: float, *, orientation: str
) -> dict[str, Floats]:
    """Ventricle and brain volume of T1 images [N, 1, X, Y, Z], whose brain is what is brighter than the background."""
    volumes = images[:, 0].double().numpy()
    found = [brain_volumes(image, image > background, spacing_mm, orientation=orientation) for image in volumes]
    return {name: np.array([volumes[place] for volumes in found]) for name, place in INTENSITY.items()}


def likeness_to(real: Measured, drawn: Measured, images: Tensor, *, real_pairs: float, seed: int) -> dict[str, Any]:
    """How like real images drawn ones [N, C, *S] are, beside what two sets of real ones show; `real_pairs` is the MS-SSIM of
    pairs of real ones."""
    covered = realism.precision_recall(drawn.features, real.features)
    dense = density_coverage(drawn.features, real.features)
    beside = realism.frechet_beside_floor(drawn.features, real.features, seed=seed)
    by_place = realism.frechet_beside_floor(drawn.spatial, real.spatial, seed=seed)
    endless = realism.jackknife(realism.frechet_distance, drawn.features, real.features, corrected=True)
    return {
        "n": len(images),
        "n_real": len(real.features),
        "frechet_distance": _round(beside.distance),
        "frechet_floor": _round(beside.floor),
        "frechet_images": beside.images,
        **_rounded("frechet_corrected", endless),
        "spatial_frechet_distance": _round(by_place.distance),
        "spatial_frechet_floor": _round(by_place.floor),
        "mmd": _round(realism.mmd(drawn.features, real.features)),
        "precision": _round(covered.precision),
        "recall": _round(covered.recall),
        "density": _round(dense.density),
        "coverage": _round(dense.coverage),
        "ms_ssim_of_pairs": _round(diversity(images, seed=seed)),
        "ms_ssim_of_real_pairs": _round(real_pairs),
    }


def memory(apart: realism.Apart) -> dict[str, Any]:
    """Whether drawn images are copies of scans trained on, by distances of x_0 from `trained` of them."""
    found, near = realism.memorised(apart), nearness(apart)
    said = {name: _round(value) for name, value in found._asdict().items()}
    said |= {"near": _round(near.share), "near_low": _round(near.low), "near_high": _round(near.high)}
    return said | {"trained": apart.trained.shape[1]}


def _rounded(name: str, estimate: realism.Estimate) -> dict[str, float | None]:
    values = (_round(value) for value in estimate)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _round(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
