"""What synthetic images are worth: whether they obey what was asked for, and how like the real ones they are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg_diff.metrics import realism
from medseg_diff.metrics.brain_volumes import brain_volumes
from medseg_diff.metrics.likeness import diversity

INTENSITY = {"ventricle_volume_ml": 0, "brain_volume_ml": 1}  # covariates that intensities alone can measure
REGRESSOR, BY_INTENSITY, GIVEN = "regressor", "intensity", "given"  # who measured
Floats = npt.NDArray[np.float64]


class Measured(NamedTuple):
    """Images' features [N, F] and, by who measured, covariates by name [N] each."""

    features: Floats
    spatial: Floats
    covariates: Mapping[str, Mapping[str, Floats]]


def measured_by_intensity(images: Tensor, spacing_mm: Sequence[float], background: float) -> dict[str, Floats]:
    """Ventricle and brain volume of T1 images [N, 1, X, Y, Z], whose brain is what is brighter than the background."""
    found = [brain_volumes(image, image > background, spacing_mm) for image in images[:, 0].double().numpy()]
    return {name: np.array([volumes[place] for volumes in found]) for name, place in INTENSITY.items()}


def obedience(name: str, asked: Floats, measured: Measured) -> list[dict[str, Any]]:
    """A row for each way that a covariate was measured: Pearson's r of `asked` [N] and measured, and its interval."""
    rows = []
    for by, values in measured.covariates.items():
        if name in values:
            r = realism.correlation(asked, values[name])
            rows.append({"covariate": name, "by": by, "n": len(asked), **_rounded("r", r)})
    return rows


def likeness_to(real: Measured, drawn: Measured, images: Tensor, real_images: Tensor, *, seed: int) -> dict[str, Any]:
    """How like the real images [M, C, *S] drawn ones [N, C, *S] are, beside what two sets of real ones show."""
    count = min(len(images), len(real_images))
    covered = realism.precision_recall(drawn.features, real.features)
    return {
        "n": len(images),
        "n_real": len(real_images),
        **_rounded("frechet_distance", realism.jackknife(realism.frechet_distance, drawn.features, real.features)),
        "frechet_floor": _round(realism.frechet_floor(real.features, count=count // 2, seed=seed)),
        **_rounded(
            "spatial_frechet_distance", realism.jackknife(realism.frechet_distance, drawn.spatial, real.spatial)
        ),
        "mmd": _round(realism.mmd(drawn.features, real.features)),
        "precision": _round(covered.precision),
        "recall": _round(covered.recall),
        "ms_ssim_of_pairs": _round(diversity(images, seed=seed)),
        "ms_ssim_of_real_pairs": _round(diversity(real_images, seed=seed)),
    }


def memory(drawn: Tensor, trained: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Distances of x_0 [N, D, *R] to the nearest one trained on, of drawn images and of other real ones."""
    flat = [each.flatten(1).double().numpy() for each in (drawn, trained, held_out)]
    found = realism.memorised(*flat)
    return {name: _round(value) for name, value in found._asdict().items()}


def _rounded(name: str, estimate: realism.Estimate) -> dict[str, float | None]:
    values = (_round(value) for value in estimate)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _round(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None


def stacked(parts: Sequence[Tensor]) -> Floats:
    """Features [B, F, …] of several batches as one array."""
    array: Floats = torch.cat(list(parts)).double().numpy()
    return array
