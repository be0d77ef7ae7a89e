"""How healthy is a pseudo-healthy reconstruction? Its errors against the lesion-free twin of the scan."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Channels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class ReconstructionErrors(NamedTuple):
    """Mean absolute errors over voxels and channels, each channel in standard deviations of the twin inside the brain.

    `lesion` and `elsewhere` are the reconstruction's, `scan_lesion` is the scan's own inside the lesion: what there was to
    undo. Of a place without voxels: None.
    """

    lesion: float | None
    elsewhere: float | None
    scan_lesion: float | None

    @property
    def left(self) -> float | None:
        """How much of the lesion is left: 0 where the reconstruction is the twin, 1 where it is no nearer than the scan."""
        return self.lesion / self.scan_lesion if self.lesion is not None and self.scan_lesion else None


def reconstruction_errors(
    healthy: Channels, twin: Channels, scan: Channels, *, lesion: Mask, brain: Mask
) -> ReconstructionErrors:
    """Reconstruction, twin and scan [C, X, Y, Z] in one unit; lesion and brain [X, Y, Z], the lesion within the brain."""
    deviation = twin[:, brain].std(axis=1, dtype=np.float64, keepdims=True)

    def error(image: Channels, where: Mask) -> float | None:
        lost = np.abs(image[:, where] - twin[:, where]) / np.maximum(deviation, 1e-6)
        return float(lost.mean(dtype=np.float64)) if lost.size else None

    inside = lesion & brain
    return ReconstructionErrors(error(healthy, inside), error(healthy, brain & ~inside), error(scan, inside))
