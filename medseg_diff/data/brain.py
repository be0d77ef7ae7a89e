"""Where the brain is: what differs from a constant background, or, failing that, the head by Otsu's threshold."""

import numpy as np

from medseg_diff.data.geometry import Volume, resampled

CONSTANT_BORDER = 0.5  # share of the border that must hold one value exactly for it to be the background
SMALLEST_PART = 0.05  # of the largest component: a cerebellum cut off stays, specks go


def find_brain(image: np.ndarray) -> np.ndarray | None:
    """Brain [X, Y, Z] (bool) of image [C, X, Y, Z] with a constant background, holes filled; None without one.

    The background of a channel is the value that half of its border holds exactly (0 in BraTS, negative voxels of a
    brain notwithstanding); a voxel belongs to the brain where any channel differs from it.
    """
    found = [(channel, background_of(channel)) for channel in image]
    masks = [channel != value for channel, value in found if value is not None]
    return solid(np.logical_or.reduce(masks)) if masks else None


def find_head(image: np.ndarray) -> np.ndarray:
    """Head [X, Y, Z] (bool), skull included: above half of the first channel's Otsu threshold, gaps closed."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    # Without its extremes: one bright vessel must not set the bins. Half: the threshold itself cuts off grey matter.
    channel = ndimage.gaussian_filter(np.clip(image[0], *np.percentile(image[0], [0.5, 99.5])), 1.0)
    low = float(channel.min())
    return solid(channel > low + 0.5 * (threshold_otsu(channel) - low))


def find_brain_or_head(image: np.ndarray) -> np.ndarray:
    """The brain of image [C, X, Y, Z], or, without a constant background, its head: [X, Y, Z] (bool)."""
    brain = find_brain(image)
    return find_head(image) if brain is None else brain


def background_of(channel: np.ndarray) -> float | None:
    """The value that at least half of the border's voxels have, or None; an axis of one voxel has no border."""
    faces = [channel[(slice(None),) * axis + (end,)].ravel() for axis in range(channel.ndim) for end in (0, -1)]
    border = np.concatenate([face for face, n in zip(faces, np.repeat(channel.shape, 2), strict=True) if n > 1])
    values, counts = np.unique(border, return_counts=True)
    most = int(counts.argmax())
    return float(values[most]) if counts[most] >= CONSTANT_BORDER * border.size else None


def onto_grid(volume: Volume, grid: Volume) -> Volume:
    """An image, or labels in int16, resampled onto another grid; beyond its field of view an image is as it is outside the
    head, where that is one value, and else its smallest."""
    labels = volume.voxels.dtype == np.int16
    return resampled(volume, grid, nearest=labels, outside=None if labels else background_of(volume.voxels))


def solid(mask: np.ndarray) -> np.ndarray:
    """The large components of a mask, holes filled."""
    from scipy import ndimage

    box = bounding_box(mask)
    inside = mask[box]
    labels, count = ndimage.label(inside)
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        inside = (sizes >= SMALLEST_PART * sizes.max())[labels]
    out = np.zeros_like(mask)
    out[box] = _filled(inside)
    return out


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fill what cannot be reached from outside; one labelling of the outside, far faster than growing it inwards."""
    from scipy import ndimage

    around = np.pad(~mask, 1, constant_values=True)
    labels, _ = ndimage.label(around)
    return np.asarray(labels != labels[(0,) * mask.ndim])[(slice(1, -1),) * mask.ndim]


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The bounding box of what is set."""
    others = [tuple(a for a in range(mask.ndim) if a != axis) for axis in range(mask.ndim)]
    hits = [np.flatnonzero(mask.any(axis=axes)) for axes in others]
    return tuple(slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, 0) for hit in hits)
