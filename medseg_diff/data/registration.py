"""Rigid registration of two images of one head, of any two contrasts: Mattes mutual information, coarse to fine.

SimpleITK does it; with one thread and fixed samples the same images give the same numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg_diff.data.brain import find_brain_or_head
from medseg_diff.data.geometry import Volume, is_sheared, shape_text, spacing_of
from medseg_diff.errors import ImageError

LEVELS_MM = (8.0, 3.0, 1.0)  # no axis is finer than this, level by level
STEPS_MM = (4.0, 2.0, 1.0)  # the first step of each level
SMALLEST_STEP_MM, RELAXATION, ITERATIONS = 0.01, 0.8, 100  # a step shrinks to so much of it where the path turns
SAMPLES, SEED, BINS = 60_000, 1, 50
AROUND_HEAD_MM = 6.0  # of the fixed image: what is sampled beside the head
FEWEST_VOXELS = 4  # along an axis
RADIUS_MM = 80.0  # of a head, where its surface is
SURFACE = RADIUS_MM * np.concatenate([np.eye(3), -np.eye(3)])
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS and back


@dataclass(frozen=True)
class Alignment:
    """How an image is moved onto another: `matrix` [4, 4] takes its RAS millimetres, as scanned, to those of the other.

    Mutual information in nats, the more the better: `before` at the scanner's positions (None where the images do not
    touch there) and `after` with the matrix. `start` is where the search began, `middle` that of the other image, in RAS mm.
    """

    matrix: np.ndarray
    before: float | None
    after: float
    start: str
    middle: np.ndarray

    @property
    def degrees(self) -> float:
        """The angle of the rotation."""
        cosine = (np.trace(self.matrix[:3, :3]) - 1) / 2
        return math.degrees(math.acos(min(1.0, max(-1.0, float(cosine)))))

    @property
    def mm(self) -> float:
        """How far the middle of the head moves."""
        return float(np.linalg.norm(moved(self.matrix, self.middle) - self.middle))

    @property
    def surface_mm(self) -> float:
        """How far the surface of the head moves, on average."""
        surface = self.middle + SURFACE
        return float(np.linalg.norm(moved(self.matrix, surface) - surface, axis=1).mean())

    @property
    def is_better(self) -> bool:
        """Whether the images go together better than where the scanner says that they are."""
        return self.before is None or self.after > self.before


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., 3] in mm where a matrix [4, 4] takes them."""
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3])


def align(image: Volume, fixed: Volume) -> Alignment:
    """The rigid motion of `image` onto `fixed`, searched for from the scanner's positions and with the middles of both on
    each other; whichever leads to more mutual information on the coarsest level is followed to the finest.

    Raises: ImageError, without its place, where the two do not overlap, or one is sheared or has too few slices.
    """
    for volume in (image, fixed):
        _check(volume)
    coarse, *finer = (_Level.of(image, fixed, mm, step) for mm, step in zip(LEVELS_MM, STEPS_MM, strict=True))
    middle = _middle_of(coarse.fixed)
    starts = {"scanner": np.zeros(3), "middles": _middle_of(coarse.image) - middle}
    searched = {name: coarse.improved(_pose(middle, [0, 0, 0, *shift])) for name, shift in starts.items()}
    found = {name: coarse.information(pose) for name, pose in searched.items() if pose is not None}
    reached = {name: information for name, information in found.items() if information is not None}
    if not reached:
        raise ImageError(
            "does not overlap with the image that it is registered to", fix="check that both show the same head"
        )
    start = max(reached, key=reached.__getitem__)
    pose = searched[start]
    for level in finer:
        pose = level.improved(pose) or pose
    fine = finer[-1]
    return Alignment(
        matrix=FLIP @ np.linalg.inv(_matrix_of(pose)) @ FLIP,
        before=fine.information(_pose(middle)),
        after=fine.information(pose) or 0.0,
        start=start,
        middle=FLIP[:3, :3] @ middle,
    )


def _check(volume: Volume) -> None:
    """Raises: ImageError."""
    if is_sheared(volume.affine):
        raise ImageError(
            "its axes are sheared, so it cannot be registered", fix="resample it onto a grid without shear"
        )
    if min(volume.shape) < FEWEST_VOXELS:
        found = f"has only {shape_text(volume.shape)} voxels, too few to register"
        raise ImageError(found, fix="register it with a tool for slices")


@dataclass(frozen=True)
class _Level:
    """Both images and the head of the fixed one as SimpleITK has them, at one scale; `share` of the head is sampled, and the
    first step of a search is `step` mm."""

    image: Any
    fixed: Any
    head: Any
    share: float
    step: float

    @classmethod
    def of(cls, image: Volume, fixed: Volume, mm: float, step: float) -> "_Level":
        """Both blurred alike; the fixed one, whose voxels are sampled, is thinned out too."""
        from scipy import ndimage

        thin = _thinned(_blurred(fixed, mm), mm)
        head = ndimage.binary_dilation(find_brain_or_head(thin.voxels[None]), iterations=math.ceil(AROUND_HEAD_MM / mm))
        share = min(1.0, SAMPLES / max(1, int(head.sum())))
        mask = Volume(head.astype(np.uint8), thin.affine)
        return cls(_to_itk(_blurred(image, mm)), _to_itk(thin), _to_itk(mask), share, step)

    def improved(self, pose: Any) -> Any:
        """Where the search from a pose ends, or None where the images do not overlap."""
        import SimpleITK

        found = SimpleITK.Euler3DTransform(pose)
        method = self._method(found)
        smallest = min(SMALLEST_STEP_MM, self.step)
        method.SetOptimizerAsRegularStepGradientDescent(self.step, smallest, ITERATIONS, RELAXATION, 1e-7)
        method.SetOptimizerScalesFromPhysicalShift()
        try:
            method.Execute(self.fixed, self.image)
        except RuntimeError:
            return None
        return found

    def information(self, pose: Any) -> float | None:
        """Mutual information at a pose, or None where the images do not overlap."""
        try:
            return -float(self._method(pose).MetricEvaluate(self.fixed, self.image))
        except RuntimeError:
            return None

    def _method(self, pose: Any) -> Any:
        import SimpleITK

        SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
        method = SimpleITK.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetNumberOfWorkUnits(1)  # sums of several threads depend on how many there are
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricFixedMask(self.head)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(self.share, SEED)
        method.SetInterpolator(SimpleITK.sitkLinear)
        method.SetInitialTransform(pose, inPlace=True)
        return method


def _blurred(volume: Volume, mm: float) -> Volume:
    """Along the axes that are finer than a level, as one of `mm` would be."""
    from scipy import ndimage

    spacing = spacing_of(volume.affine)
    sigma = np.where(_steps_of(volume, mm) > 1, 0.5 * mm / spacing, 0.0)
    return Volume(ndimage.gaussian_filter(volume.voxels, sigma), volume.affine)


def _thinned(volume: Volume, mm: float) -> Volume:
    steps = _steps_of(volume, mm)
    affine = volume.affine.copy()
    affine[:3, :3] *= steps
    return Volume(volume.voxels[tuple(slice(None, None, step) for step in steps)], affine)


def _steps_of(volume: Volume, mm: float) -> np.ndarray:
    """Every how manieth voxel lies about `mm` further, along each axis [3]; FEWEST_VOXELS at least remain."""
    wanted = np.floor(mm / spacing_of(volume.affine) + 1e-6).astype(int)
    return np.clip(wanted, 1, np.maximum(1, np.array(volume.shape) // FEWEST_VOXELS))


def _to_itk(volume: Volume) -> Any:
    """As SimpleITK keeps it: [Z, Y, X] in LPS."""
    import SimpleITK

    lps, spacing = FLIP @ volume.affine, spacing_of(volume.affine)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.voxels.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def _middle_of(image: Any) -> np.ndarray:
    """In LPS mm [3]."""
    return np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def _pose(middle: np.ndarray, parameters: Sequence[float] = (0, 0, 0, 0, 0, 0)) -> Any:
    """Where points of the fixed image lie in the other: three angles about its middle, and a shift in mm."""
    import SimpleITK

    pose = SimpleITK.Euler3DTransform()
    pose.SetCenter(middle.tolist())
    pose.SetParameters([float(value) for value in parameters])
    return pose


def _matrix_of(pose: Any) -> np.ndarray:
    """[4, 4] in LPS mm."""
    matrix, middle = np.eye(4), np.array(pose.GetCenter())
    matrix[:3, :3] = np.array(pose.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = middle + np.array(pose.GetTranslation()) - matrix[:3, :3] @ middle
    return matrix
