"""Was each lesion found? Sensitivity, precision and false alarms counted in lesions instead of voxels.

A lesion is a connected component (26 neighbours in 3D, 8 in 2D) of the reference. It is *found* where the mask covers at
least a share `hit` of its voxels. A component of the mask is *right* where at least the same share of it lies in the
reference, so that marking a whole brain finds everything and is yet one false alarm; the others are false positives.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg_diff.metrics.overlap import Mask, pair_of

HIT = 0.1


@dataclass(frozen=True)
class Detection:
    """Counts of one case: `lesions`, `hits` among them; `components` of the mask, `false_positives` among them."""

    lesions: int
    hits: int
    components: int
    false_positives: int
    false_positive_ml: float

    @property
    def sensitivity(self) -> float | None:
        """Share of the lesions that were found; None without lesions."""
        return self.hits / self.lesions if self.lesions else None

    @property
    def precision(self) -> float | None:
        """Share of the mask's components that are right; None where nothing was marked."""
        return 1 - self.false_positives / self.components if self.components else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of both; 0 where lesions were missed by an empty mask, None where there was nothing to find."""
        if not self.lesions:
            return None
        sensitivity, precision = self.hits / self.lesions, self.precision or 0.0
        return 2 * sensitivity * precision / (sensitivity + precision) if sensitivity + precision else 0.0


def lesion_detection(
    mask: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    voxel_ml: float,
    smallest_ml: float = 0.0,
    hit: float = HIT,
) -> Detection:
    """Count lesions found and false alarms of two boolean masks [*S] of one shape.

    Components below `smallest_ml` are neither lesions nor false alarms; a component of the mask may still be right by
    covering a small lesion. `hit` in (0, 1] is the share that makes a match, of at least one voxel.
    Raises: ValueError for other types, shapes or shares.
    """
    marked, truth = pair_of(mask, reference)
    if not 0 < hit <= 1:
        raise ValueError(f"a match needs a share above 0 and up to 1, found {hit}")
    smallest = smallest_ml / voxel_ml
    marked_sizes, marked_right = _matches(marked, truth, hit)
    lesion_sizes, found = _matches(truth, marked, hit)
    lesions, alarms = lesion_sizes >= smallest, (marked_sizes >= smallest) & ~marked_right
    return Detection(
        lesions=int(lesions.sum()),
        hits=int((found & lesions).sum()),
        components=int(((marked_sizes >= smallest) | marked_right).sum()),
        false_positives=int(alarms.sum()),
        false_positive_ml=float(marked_sizes[alarms].sum() * voxel_ml),
    )


def components_of(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Connected components of a boolean mask [*S]: labels [*S], 0 outside and then from 1, and their voxels [components]."""
    labels = np.zeros(mask.shape, dtype=np.int32)
    if not mask.any():
        return labels, np.zeros(0, dtype=np.int64)
    from scipy import ndimage
    from skimage.measure import label

    (box,) = ndimage.find_objects(mask.view(np.uint8))
    labels[box] = label(mask[box], connectivity=mask.ndim)
    return labels, np.bincount(labels[box].ravel())[1:]


def _matches(mask: Mask, other: Mask, hit: float) -> tuple[npt.NDArray[np.int64], Mask]:
    """Voxels of every component of `mask`, and whether a share `hit` of them lies in `other`; [components] each."""
    labels, sizes = components_of(mask)
    common = np.bincount(labels[other], minlength=len(sizes) + 1)[1:]
    return sizes, common >= np.maximum(hit * sizes - 1e-9, 1)
