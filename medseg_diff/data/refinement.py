"""A scan at a finer resolution: its own field of view in smaller voxels, its brain as a network drew it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg_diff.data import geometry
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import Volume
from medseg_diff.data.reading import CaseImages
from medseg_diff.data.transforms import Prepared, brain_of, scale_of


@dataclass(frozen=True)
class Refined:
    """Channels float32 [C, X, Y, Z] in the units of the scan, on the grid that `affine` says."""

    channels: tuple[str, ...]
    image: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    code: int

    def write(self, folder: Path) -> None:
        """CHANNEL.nii.gz of each. Raises: EnvironmentFault."""
        for name, voxels in zip(self.channels, self.image, strict=True):
            write_volume(folder / f"{name}.nii.gz", voxels, self.affine, code=self.code)


def refined(images: CaseImages, prepared: Prepared, fine: Tensor, factor: int) -> Refined:
    """The scan with `factor` times as many voxels along each axis; in its brain stands `fine` [C, *S factor], drawn of the
    prepared case's image [C, *S], which was not resampled. Outside of the brain voxels are repeated.

    What the scale of the prepared image cuts off of the brightest and the darkest voxels is added again, linearly between
    them: an enhanced scan is not to lose a lesion for its brightness.
    """
    brain, (whole, _) = (
        _on_scan(prepared.brain, images, prepared, factor=1)[0] > 0,
        brain_of(images, prepared.preparation),
    )
    drawn = _on_scan(fine, images, prepared, factor=factor)
    inside = _repeated(brain, factor)
    out = np.stack([_repeated(channel, factor) for channel in images.image]).astype(np.float32)
    for number, channel in enumerate(images.image):
        scale = scale_of(channel[whole], prepared.preparation.intensity)
        low, high = (scale.middle + scale.unit * end for end in (scale.lowest, scale.highest))
        cut_off = np.where(brain, channel - np.clip(channel, low, high), 0)
        out[number][inside] = (scale.middle + scale.unit * drawn[number] + _between(cut_off, factor))[inside]
    return Refined(images.channels, out, geometry.finer(images.affine, factor), images.code)


def _on_scan(part: Tensor, images: CaseImages, prepared: Prepared, *, factor: int) -> npt.NDArray[np.float32]:
    """[C, *S factor] on the network's grid → [C, X, Y, Z] of the scan's in voxels smaller by the factor; 0 elsewhere."""
    empty = Volume(np.zeros(prepared.native_shape, dtype=np.uint8), images.affine)
    oriented = geometry.reoriented(empty, prepared.preparation.orientation)
    box = tuple(slice(side.start * factor, side.stop * factor) for side in prepared.box)
    affine, axes = geometry.finer(oriented.affine, factor), geometry.axes_of(images.affine)
    channels = []
    for channel in part:
        whole = np.zeros([n * factor for n in oriented.shape], dtype=np.float32)
        whole[box] = channel.numpy()
        channels.append(geometry.reoriented(Volume(whole, affine), axes).voxels)
    return np.stack(channels)


def _repeated(voxels: np.ndarray, factor: int) -> np.ndarray:
    """[X, Y, Z] with every voxel `factor` times along each axis."""
    for axis in range(voxels.ndim):
        voxels = voxels.repeat(factor, axis=axis)
    return voxels


def _between(voxels: np.ndarray, factor: int) -> np.ndarray:
    """[X, Y, Z] in voxels smaller by the factor, linearly between the middles of the old ones."""
    image = torch.from_numpy(voxels.astype(np.float32))[None, None]
    enlarged = torch.nn.functional.interpolate(image, scale_factor=factor, mode="trilinear", align_corners=False)
    return enlarged[0, 0].numpy()
