"""A case as a network sees it, and the way back: intensity → orient → brain box → spacing, and the chain's inverse.

Built of MONAI's dictionary transforms, fed with arrays and affines of our own reader: MONAI's may replace an affine.
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from medseg_diff.data import brain as brains
from medseg_diff.data import geometry
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import Volume
from medseg_diff.data.reading import CaseImages
from medseg_diff.data.tables.case import Case
from medseg_diff.errors import ImageError
from medseg_diff.settings import ChannelName, Settings

SAME_SPACING = 1e-3  # relative; closer than this nothing is resampled
LARGEST_BRAIN_ML = 2300.0  # with its fluid; more is a head whose skull was not stripped
PERCENTILES = (1.0, 99.0)
ROBUST_RANGE = (-5.0, 10.0)  # robust deviations; the fluid in T2, the brightest of a brain, is at about 10
AXIS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))
MODES = {"image": "bilinear", "brain": "nearest", "reference": "nearest", "raters": "nearest"}

Edge = Annotated[int, Field(ge=1, le=4096)]
Spacing = Annotated[float, Field(ge=0.1, le=20)] | None


def _is_orientation(axes: str) -> str:
    if not re.fullmatch(r"(?=.*[LR])(?=.*[PA])(?=.*[IS]).{3}", axes):
        raise ValueError("an orientation names each axis once, as in RAS")
    return axes


class Preparation(Settings):
    """How a case is brought before a network; part of every recipe that reads images."""

    # The channel whose grid all others are read onto; null: they have to lie on one.
    resample_to: ChannelName | None = None
    orientation: Annotated[str, AfterValidator(_is_orientation)] = "RAS"
    # Along each axis after reorientation; null keeps what the scan has.
    spacing_mm: tuple[Spacing, Spacing, Spacing] = (None, None, None)
    margin_mm: float = Field(default=5.0, ge=0, le=1000)
    # At most so many voxels along each axis, in the middle of the volume as it lies then; null keeps all.
    window: tuple[Edge | None, Edge | None, Edge | None] = (None, None, None)
    # foreground: what differs from a constant background; head: Otsu's threshold; auto: the first that works.
    brain: Literal["auto", "foreground", "head"] = "auto"
    # robust: the brain's median becomes 0 and a robust deviation 1, clipped at -5 and 10; a large or bright lesion hardly
    # moves it. percentile: 1 to 99 % of the brain become -1 to 1, clipped.
    intensity: Literal["percentile", "robust"] = "percentile"
    per_slice: bool = False  # each axial slice by itself, as Wolleb et al. do
    # Stands everywhere outside the brain, in every channel: the lowest value of the scale, or less.
    background: float = -1.0

    @model_validator(mode="after")
    def _background_is_outside(self) -> "Preparation":
        lowest = ROBUST_RANGE[0] if self.intensity == "robust" else -1.0
        if self.background > lowest:
            raise ValueError(f"background must be {lowest:g} or lower where intensity is {self.intensity}")
        return self


@dataclass(frozen=True)
class Prepared:
    """A case on the network's grid: image float32 [C, *S], brain bool [1, *S], reference int16 [1, *S], raters
    int16 [R, *S]; `affine` [4, 4] and `voxel_ml` are of this grid, and `restore` leads back to `native_shape`."""

    name: str
    channels: tuple[str, ...]
    image: Tensor
    brain: Tensor
    reference: Tensor | None
    raters: Tensor | None
    affine: np.ndarray
    native_affine: np.ndarray
    native_code: int
    native_shape: geometry.Shape
    box: tuple[slice, ...]  # of the brain and its margin, after reorientation and before resampling
    preparation: Preparation
    warnings: tuple[str, ...]
    operations: tuple[Mapping[str, Any], ...]  # MONAI's record of what was done, which its inverse replays

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel of this grid in millilitres."""
        return geometry.voxel_ml(self.affine)

    def write(self, path: Path, voxels: np.ndarray) -> None:
        """Write voxels [X, Y, Z] of the case's own grid, placed as the case is. Raises: EnvironmentFault."""
        write_volume(path, voxels, self.native_affine, code=self.native_code)

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        return tuple(float(mm) for mm in geometry.spacing_of(self.affine))


def prepare_case(images: CaseImages, preparation: Preparation) -> Prepared:
    """Scale inside the brain, orient, crop to the brain and a margin, resample (images linear, labels nearest).

    The scale is that of the native voxels: mixed with background at the edges they would shift its percentiles.
    Raises: ImageError where no brain is found in the way that was asked for, or none in the window.
    """
    found, warnings = brain_of(images, preparation)
    oriented = geometry.reoriented(Volume(found, images.affine), preparation.orientation)
    box = _box_of(oriented, preparation)
    if any(side.start >= side.stop for side in box):
        raise ImageError("its brain is outside preparation.window", fix="widen the window", case=images.name)
    after = _chain(oriented.affine, preparation, box)(_as_tensors(images, _scaled(images, found, preparation), found))
    image, brain = after["image"].as_tensor(), after["brain"].as_tensor() > 0.5
    image = torch.where(brain, image, preparation.background).contiguous()
    labels = {key: after[key].as_tensor().round().to(torch.int16) for key in ("reference", "raters") if key in after}
    return Prepared(
        name=images.name,
        channels=images.channels,
        image=image,
        brain=brain.contiguous(),
        reference=labels.get("reference"),
        raters=labels.get("raters"),
        affine=after["image"].affine.numpy().astype(np.float64),
        native_affine=images.affine,
        native_code=images.code,
        native_shape=Volume(found, images.affine).shape,
        box=box,
        preparation=preparation,
        warnings=images.warnings + warnings,
        operations=tuple(after["image"].applied_operations),
    )


def restore(prepared: Prepared, maps: Tensor, *, fill: float = 0.0) -> np.ndarray:
    """Maps [M, *S] on the network's grid → float32 [M, X, Y, Z] on the case's own, linearly; `fill` outside the box.

    Exact, voxel for voxel, where the preparation did not resample (and `fill` is 0).
    """
    from monai.data import MetaTensor
    from monai.transforms.utils import allow_missing_keys_mode
    from monai.utils import TraceKeys

    assert maps.shape[1:] == prepared.image.shape[1:], (maps.shape, prepared.image.shape)
    chain = _chain(prepared.native_affine, prepared.preparation, prepared.box)
    shifted = (maps.detach().cpu().float() - fill).contiguous()  # the inverse of cropping pads with zeros
    # The chain is built anew, so that a Prepared may be stored; MONAI else insists on the very objects it ran before.
    record = [deepcopy(dict(operation)) | {TraceKeys.ID: TraceKeys.NONE} for operation in prepared.operations]
    tensor = MetaTensor(shifted, affine=torch.from_numpy(prepared.affine), applied_operations=record)
    with allow_missing_keys_mode(chain):
        back = chain.inverse({"image": tensor})["image"].as_tensor()
    assert back.shape[1:] == prepared.native_shape, (back.shape, prepared.native_shape)
    return np.ascontiguousarray((back + fill).numpy(), dtype=np.float32)


def with_change(images: CaseImages, prepared: Prepared, change: Tensor) -> np.ndarray:
    """The case's channels [C, X, Y, Z] as they were, changed inside the brain by `change` [C, *S] of the network's grid and
    scale: float32 in the units of the input and on its grid.

    Only the change is resampled, so that the rest stays as sharp as it was. Brain voxels that the scale cuts off are cut
    off here too: the change is one from there.
    """
    native, (brain, _) = restore(prepared, change), brain_of(images, prepared.preparation)
    out = images.image.astype(np.float32, copy=True)
    for at in _scaled_together(images, brain, prepared.preparation):
        inside = brain[at]
        for target, delta in zip(out, native, strict=True):
            scale = scale_of(target[at][inside], prepared.preparation.intensity)
            low, high = (scale.middle + scale.unit * end for end in (scale.lowest, scale.highest))
            target[at][inside] = np.clip(target[at][inside], low, high) + scale.unit * delta[at][inside]
    return out


def _box_of(brain: Volume, preparation: Preparation) -> tuple[slice, ...]:
    """The bounding box of a brain and a margin around it, within the volume and the window in its middle."""
    margins = np.ceil(preparation.margin_mm / geometry.spacing_of(brain.affine)).astype(int).tolist()
    tight = brains.bounding_box(brain.voxels)
    box = []
    for side, margin, n, most in zip(tight, margins, brain.shape, preparation.window, strict=True):
        first = max(n - (most or n), 0) // 2
        box.append(slice(max(first, side.start - margin), min(first + (most or n), n, side.stop + margin)))
    return tuple(box)


def _chain(affine: np.ndarray, preparation: Preparation, box: tuple[slice, ...]) -> Any:
    """The geometric part, which has an inverse; `affine` in any orientation."""
    from monai.transforms import Compose, Orientationd, Spacingd, SpatialCropd

    keys, modes = list(MODES), list(MODES.values())
    steps = [
        Orientationd(keys, axcodes=preparation.orientation, labels=AXIS_LABELS, allow_missing_keys=True),
        # Cropping first: resampling then touches a sixth of a volume.
        SpatialCropd(keys, roi_slices=box, allow_missing_keys=True),
    ]
    empty = Volume(np.zeros((1, 1, 1), dtype=np.uint8), affine)
    spacing = geometry.spacing_of(geometry.reoriented(empty, preparation.orientation).affine)
    wanted = [mm if asked is None else asked for asked, mm in zip(preparation.spacing_mm, spacing, strict=True)]
    if not np.allclose(wanted, spacing, rtol=SAME_SPACING, atol=0):
        steps.append(Spacingd(keys, pixdim=wanted, mode=modes, dtype=torch.float32, allow_missing_keys=True))
    return Compose(steps)


def _as_tensors(images: CaseImages, scaled: np.ndarray, brain: np.ndarray) -> dict[str, Any]:
    """What the chain takes: [C, X, Y, Z] tensors that know the affine."""
    from monai.data import MetaTensor

    arrays = {"image": scaled, "brain": brain[None].astype(np.float32)}
    if images.reference is not None:
        arrays["reference"] = images.reference[None]
    if images.raters is not None:
        arrays["raters"] = images.raters
    affine = torch.from_numpy(images.affine.astype(np.float64))
    return {key: MetaTensor(torch.from_numpy(array).float(), affine=affine) for key, array in arrays.items()}


def brain_of(images: CaseImages, preparation: Preparation) -> tuple[np.ndarray, tuple[str, ...]]:
    """Brain [X, Y, Z] (bool) on the native grid, and what is doubtful about it."""
    found = None if preparation.brain == "head" else brains.find_brain(images.image)
    warnings = []
    if found is None and preparation.brain == "foreground":
        fix = "strip the skull, or set preparation.brain=auto"
        raise ImageError("has no constant background, so its brain cannot be found", fix=fix, case=images.name)
    if found is None:
        found = brains.find_head(images.image)
        if preparation.brain == "auto":
            warnings.append("no constant background; the head was found by its brightness")
    volume_ml = float(found.sum()) * images.voxel_ml
    if volume_ml > LARGEST_BRAIN_ML and preparation.brain != "head":
        warnings.append(f"the brain found has {volume_ml:.0f} ml: the skull seems not to be stripped")
    if not found.any():
        raise ImageError("no brain was found", fix="check its voxels", case=images.name)
    return found, tuple(warnings)


def _scaled(images: CaseImages, brain: np.ndarray, preparation: Preparation) -> np.ndarray:
    """Intensities [C, X, Y, Z] of the brain on one scale, the background's value outside it."""
    out = np.full_like(images.image, preparation.background)
    for at in _scaled_together(images, brain, preparation):
        inside = brain[at]
        for source, target in zip(images.image, out, strict=True):
            values = source[at][inside]
            scale = scale_of(values, preparation.intensity)
            target[at][inside] = np.clip((values - scale.middle) / scale.unit, scale.lowest, scale.highest)
    return out


def _scaled_together(images: CaseImages, brain: np.ndarray, preparation: Preparation) -> list[tuple[Any, ...]]:
    """Where voxels share one scale: the whole volume, or each axial slice; without the slices that hold no brain."""
    axial = geometry.axial_axis(images.affine)
    slices = range(brain.shape[axial]) if preparation.per_slice else [slice(None)]
    places = [(slice(None),) * axial + (number,) for number in slices]
    return [at for at in places if brain[at].any()]


class Scale(NamedTuple):
    """What becomes 0, what 1 on the scale is worth, and where on it values are cut off."""

    middle: float
    unit: float
    lowest: float
    highest: float


def scale_of(values: np.ndarray, intensity: str) -> Scale:
    """The scale of the values of a brain [N]."""
    if intensity == "percentile":
        low, high = (float(value) for value in np.percentile(values, PERCENTILES))
        return Scale((low + high) / 2, max(high - low, 1e-6) / 2, -1.0, 1.0)
    middle = float(np.median(values))
    deviation = 1.4826 * float(np.median(np.abs(values - middle)))  # 1.4826: a standard deviation, for normal values
    return Scale(middle, max(deviation, 1e-6), *ROBUST_RANGE)


def present_channels(case: Case, channels: Sequence[str]) -> tuple[str, ...]:
    """Those of `channels` that the case has, in their order."""
    return tuple(channel for channel in channels if channel in case.channels)


def missing_channels(case: Case, channels: Sequence[str]) -> tuple[str, ...]:
    """Those of `channels` that the case lacks."""
    return tuple(channel for channel in channels if channel not in case.channels)


def filled(prepared: Prepared, channels: Sequence[str]) -> Prepared:
    """The case with all of `channels`, the background in each that it lacks, as channel dropout shows it in training."""
    if prepared.channels == tuple(channels):
        return prepared
    image = prepared.image.new_full((len(channels), *prepared.image.shape[1:]), prepared.preparation.background)
    for number, channel in enumerate(channels):
        if channel in prepared.channels:
            image[number] = prepared.image[prepared.channels.index(channel)]
    return replace(prepared, channels=tuple(channels), image=image)
