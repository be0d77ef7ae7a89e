"""What an anomaly map is worth: cleaned inside the brain, above the normative mean of healthy brains, cut at a threshold."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from medseg_diff.methods.anomaly.baselines import smoothed
from medseg_diff.settings import Settings


class AnomalyFindings(Settings):
    """From a score to findings: how it is smoothed, and above what it counts.

    It is smoothed by a Gaussian of `smoothing_mm` (standard deviation) and a median of `median` voxels a side (0: none); a
    rim of `rim_mm` is left out.
    threshold: `healthy` is stored with the model, at `false_positive_rate` of the voxels of healthy validation brains;
    `otsu` is each scan's own; a number is taken as it stands. Components below `smallest_ml` are dropped.
    The map is written above the normative mean of healthy brains, or as it is where `normative` is off, which leaves a
    threshold of theirs nothing to say.
    """

    smoothing_mm: float = Field(default=3.0, ge=0, le=100)
    median: int = Field(default=0, ge=0, le=25)
    rim_mm: float = Field(default=2.0, ge=0)
    normative: bool = True
    threshold: Literal["healthy", "otsu"] | Annotated[float, Field(ge=0)] = "healthy"
    false_positive_rate: float = Field(default=0.002, gt=0, lt=1)  # 2.4 ml of a brain of 1.2 litres
    smallest_ml: float = Field(default=0.5, ge=0)

    @field_validator("threshold", mode="before")
    @classmethod
    def _called_healthy_now(cls, value: object) -> object:
        if value == "healthy_percentile":
            raise ValueError("`healthy_percentile` is now called `healthy`")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "AnomalyFindings":
        if self.median and self.median % 2 == 0:
            raise ValueError(f"a median needs an odd number of voxels per side, or 0; found {self.median}")
        if not self.normative and self.threshold == "healthy":
            raise ValueError("without a normative mean there is no healthy threshold: use threshold otsu or a number")
        return self


# Where the bins of the normative mean begin, from the brain's surface.
DEPTHS_MM = (0.0, 2.0, 4.0, 6.0, 9.0, 13.0, 18.0)
FEWEST_VOXELS = 50  # a bin with fewer takes the mean of all
TOP_SHARE = 0.01  # of the brain's voxels, whose mean is the score of a slice or volume
OWN = "anomaly"  # the engine's own map among the baselines'
RECONSTRUCTED = (OWN, "scale_0")  # differences between a scan and its reconstruction: see NormativeMean.gain_of


def stored(number: float) -> float:
    """To six digits, as files keep what belongs to a map, whose scores may be of any size."""
    return float(f"{number:.6g}")


class NormativeMean(Settings):
    """What the map of a healthy brain shows, by the depth below the brain's surface: mean `score` in each bin."""

    depth_mm: tuple[float, ...]
    score: tuple[float, ...]

    @classmethod
    def measured(cls, scores: npt.NDArray[np.float32], depth_mm: npt.NDArray[np.float32]) -> "NormativeMean":
        """That of healthy voxels [N] at depths [N]."""
        bins = np.digitize(depth_mm, DEPTHS_MM) - 1
        voxels = np.bincount(bins, minlength=len(DEPTHS_MM))
        sums = np.bincount(bins, weights=scores, minlength=len(DEPTHS_MM))
        means = np.where(voxels >= FEWEST_VOXELS, sums / np.maximum(voxels, 1), scores.mean(dtype=np.float64))
        return cls(depth_mm=DEPTHS_MM, score=tuple(stored(float(mean)) for mean in means))

    def at(self, depth_mm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The mean at each depth, linear between the middles of the bins."""
        ends = [*self.depth_mm[1:], self.depth_mm[-1]]
        middles = [(low + high) / 2 for low, high in zip(self.depth_mm, ends, strict=True)]
        return np.interp(depth_mm, middles, self.score).astype(np.float32)

    def gain_of(self, scores: npt.NDArray[np.float32], depth_mm: npt.NDArray[np.float32]) -> float:
        """The intensity gain of a scan: how many times the normative mean its middle voxel lies, never below 1; its voxels
        [N] at depths [N].

        A scan unlike those of the training comes back a little worse everywhere. The median does not see a lesion that
        takes less than half of the brain.
        """
        expected = self.at(depth_mm)
        known = expected > 0
        return max(1.0, float(np.median(scores[known] / expected[known]))) if known.any() else 1.0


def depth_of(brain: Tensor, spacing_mm: Sequence[float]) -> npt.NDArray[np.float32]:
    """Millimetres from each voxel of the brain [1, *S] to the nearest one outside, [*S]; 0 outside.

    Beyond the edge of the volume counts as outside.
    """
    from scipy import ndimage

    around = np.pad(brain[0].numpy(), 1)
    inside = (slice(1, -1),) * (around.ndim)
    return ndimage.distance_transform_edt(around, sampling=tuple(spacing_mm))[inside].astype(np.float32)


def cleaned(score: Tensor, brain: Tensor, findings: AnomalyFindings, *, spacing_mm: Sequence[float]) -> Tensor:
    """A raw map [1, *S] after the median and the smoothing that the recipe asks for, inside the brain alone."""
    from scipy import ndimage

    inside = score * brain
    if findings.median > 1:
        inside = torch.from_numpy(ndimage.median_filter(inside[0].numpy(), size=findings.median))[None] * brain
    return smoothed(inside, brain, spacing_mm=spacing_mm, deviation_mm=findings.smoothing_mm)


def above_normal(
    score: npt.NDArray[np.float32],
    depth_mm: npt.NDArray[np.float32],
    normal: NormativeMean | None,
    *,
    rim_mm: float,
    gain: float = 1.0,
) -> npt.NDArray[np.float32]:
    """A cleaned map over its scan's `gain`, less the normative mean; 0, as in a healthy brain, in the rim and outside.

    score and depth_mm [*S], or voxels [N] of them.
    """
    values = score / gain - (0 if normal is None else normal.at(depth_mm))
    return np.where(depth_mm > rim_mm, values, 0).astype(np.float32)


def top_mean(values: npt.NDArray[np.float32]) -> float:
    """Mean of the highest hundredth of voxels [N], at least one: the score of a slice or a volume."""
    if not values.size:
        return 0.0
    count = max(1, round(TOP_SHARE * values.size))
    return float(np.partition(values, values.size - count)[values.size - count :].mean(dtype=np.float64))


def otsu(values: npt.NDArray[np.float32]) -> float:
    """Otsu's threshold of the voxels of a brain [N]."""
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(values)) if values.size and values.min() < values.max() else float("inf")
