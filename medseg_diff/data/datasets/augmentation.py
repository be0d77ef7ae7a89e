"""Random changes that leave a brain a brain, by MONAI, one seed an image: another place, another scanner.

First everything turns alike (flips, affine), then each channel gets a scanner of its own: the curve of its contrast, an
uneven coil, a wider voxel, noise. A slice with its neighbours is one image: what is drawn for a channel is drawn for all.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from math import pi, radians
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.data.datasets.draws import Draw, without_geometry
from medseg_diff.seeds import seed_of
from medseg_diff.settings import Axis, Settings

PASTED_SCALE = (-0.2, 1.5)  # 1 plus this: how many times smaller a pasted lesion gets along each axis
FADED = (-1.0, -0.5)  # what is taken of a faded channel's contrast: all to half of it
CONTROL_POINTS = (4, 8)  # of a histogram's curve; between them it is straight


class Augmentation(Settings):
    """How far each change may go; 0 (or no axes) switches it off. Intensities are those of the prepared image.

    `probability` is each change's own. `flips` lists axes of the view (0 is left-right in RAS). `gamma` bends a channel's
    curve over the range of its brain, whose mean and deviation stay; `histogram` is the share of a random rising curve over
    that range. `contrast` and `brightness` scale about 0 and shift. `bias` is the largest coefficient of a field of third
    degree, in logarithms; `blur` the largest deviation in voxels. `dimming` is the probability that a channel fades, up to
    nothing but its mean: what makes a model look at all of them. `lesion_contrast` scales what is labelled about the
    mean of the rest of its brain, so that a model of bright lesions finds faint ones. `lesion_paste` is the probability
    that the lesion of another piece, turned and mostly shrunk, is pasted in, so that few patients show lesions of any size
    and place (after CarveMix, Zhang et al. 2021, arXiv 2108.06883). `channel_dropout` is the probability
    that a channel is taken away whole, background in its place, never all of them: what makes a model accept cases that
    lack some.
    """

    probability: float = Field(default=0.5, ge=0, le=1)
    flips: tuple[Axis, ...] = (0,)
    rotation_degrees: float = Field(default=15.0, ge=0)
    scaling: float = Field(default=0.15, ge=0, lt=1)
    translation: float = Field(default=4.0, ge=0)  # voxels
    contrast: float = Field(default=0.2, ge=0)
    brightness: float = Field(default=0.2, ge=0)
    gamma: float = Field(default=0.4, ge=0)
    histogram: float = Field(default=0.0, ge=0, le=1)
    bias: float = Field(default=0.0, ge=0)
    blur: float = Field(default=0.0, ge=0)
    noise: float = Field(default=0.1, ge=0)
    dimming: float = Field(default=0.0, ge=0, le=1)
    lesion_contrast: float = Field(default=0.0, ge=0, le=1)
    lesion_paste: float = Field(default=0.0, ge=0, le=1)
    channel_dropout: float = Field(default=0.0, ge=0, lt=1)

    def __call__(
        self,
        image: Tensor,
        labels: Tensor,
        brain: Tensor,
        *,
        seed: int,
        background: float,
        donor: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """image [C N, *S], labels [R, *S] of 0 and 1, brain [N, *S] → the same under those names; equal seeds give equal
        bytes.

        N > 1 where a slice stands among its neighbours, those of a channel beside each other. Outside the (moved) brain
        every channel is `background` again, as in an image that was never changed, and a channel that is nothing else stays
        so: the case lacks it. The lesion of `donor`, the same three parts of another piece, is pasted in.
        """
        there = _present(image, len(brain), background)
        draw = Draw(self.probability, seed)
        with without_geometry():
            flips, turns = self._moves[brain.ndim - 1]
            moved = _moved({"image": image, "labels": labels, "brain": brain}, background, draw(flips), draw(turns))
            if donor is not None:
                always = Draw(1.0, seed_of(seed, "donor"))
                flips, turns = self._scattering[brain.ndim - 1]
                known = _present(donor["image"], len(brain), background)
                moved = self._pasted(moved, _moved(donor, background, always(flips), always(turns)), known)
            inside = moved["brain"] > 0.5
            channels = moved["image"].unflatten(0, (-1, len(inside)))
            if inside.any():
                if self.lesion_contrast:
                    channels = self._with_other_lesions(channels, moved["labels"], inside, draw)
                each = zip(channels, there.tolist(), strict=True)
                channels = torch.stack(
                    [self._scanned(channel, inside, background, draw) if has else channel for channel, has in each]
                )
        lacking = ~there | self._dropped(there, seed) if self.channel_dropout else ~there
        channels = torch.where(lacking.view(-1, *(1,) * inside.ndim), background, channels)
        return {
            "image": torch.where(inside, channels, background).flatten(0, 1),
            "labels": (moved["labels"] > 0.5).float(),
            "brain": inside,
        }

    def _pasted(self, parts: Mapping[str, Tensor], donor: Mapping[str, Tensor], known: Tensor) -> dict[str, Tensor]:
        """The moved parts with the donor's lesion where both have a brain, its edges softened by a voxel, and as far above
        the rest of this brain as it was above the rest of its own, in the channels `known` [C] of the donor."""
        inside, there = parts["brain"] > 0.5, donor["brain"] > 0.5
        both = inside & there
        lesion = both.all(0) & (donor["labels"].amax(0) > 0.5)
        here = inside & (parts["labels"].amax(0) < 0.5)
        rest = there & (donor["labels"].amax(0) < 0.5)
        if not lesion.any() or not here.any() or not rest.any():
            return dict(parts)
        share = self._soften(lesion[None].float()) * both
        channels = [part["image"].unflatten(0, (-1, len(inside))) for part in (parts, donor)]
        pasted = [
            own + share * (other - other[rest].mean() + own[here].mean() - own) if has else own
            for own, other, has in zip(*channels, known.tolist(), strict=True)
        ]
        labels = torch.where(lesion, donor["labels"], parts["labels"])
        return {"image": torch.stack(pasted).flatten(0, 1), "labels": labels, "brain": parts["brain"]}

    def _with_other_lesions(self, channels: Tensor, labels: Tensor, inside: Tensor, draw: Draw) -> Tensor:
        """[C, N, *S] with fainter or stronger lesions, each channel by itself, their edges softened by a voxel."""
        lesion = labels.amax(0)
        rest = inside & (lesion < 0.5)
        if not lesion.any() or not rest.any():
            return channels
        share = self._soften(lesion[None])
        changed = []
        for channel in channels:
            if draw.happens():
                gain = draw.state.uniform(-self.lesion_contrast, self.lesion_contrast)
                channel = channel + gain * share * (channel - channel[rest].mean())
            changed.append(channel)
        return torch.stack(changed)

    def _scanned(self, channel: Tensor, inside: Tensor, background: float, draw: Draw) -> Tensor:
        """A channel [N, *S] as another scanner would show it; its field multiplies what is counted from the background."""
        values = channel[inside]
        for curve, share in self._curves:
            for bend in draw([curve]):
                values = torch.lerp(values, bend(values), share)
        if self.dimming and draw.state.random() < self.dimming:
            values = self._fade.set_random_state(state=draw.state)(values)
        channel = channel.masked_scatter(inside, values)
        for field in draw(self._fields):
            channel = field(channel - background) + background
        for change in draw(self._changes):
            channel = change(channel)
        return channel

    def _dropped(self, there: Tensor, seed: int) -> Tensor:
        """Which channels are taken away, [C] booleans; of those that are `there` one at least stays."""
        choose = np.random.default_rng(seed_of(seed, "channels"))  # its own, so that the other changes stay as they are
        dropped, places = choose.random(len(there)) < self.channel_dropout, np.flatnonzero(there)
        if len(places) and dropped[places].all():
            dropped[places[choose.integers(len(places))]] = False
        return torch.from_numpy(dropped)

    @cached_property
    def _moves(self) -> dict[int, tuple[list[Any], list[Any]]]:
        """Flips and turns, for two spatial axes and for three."""
        import monai.transforms as mt

        flips = [mt.RandFlip(prob=1, spatial_axis=axis) for axis in self.flips]
        if not (self.rotation_degrees or self.scaling or self.translation):
            return dict.fromkeys((2, 3), (flips, []))
        angle = radians(self.rotation_degrees)
        return {
            # MONAI's ranges are for each axis (a lone number is the first one's); a slice has one axis of rotation.
            dims: (
                flips,
                [
                    mt.RandAffine(
                        prob=1,
                        rotate_range=(angle,) * (1 if dims == 2 else 3),
                        scale_range=(self.scaling,) * dims,
                        translate_range=(self.translation,) * dims,
                        padding_mode="zeros",
                    )
                ],
            )
            for dims in (2, 3)
        }

    @cached_property
    def _scattering(self) -> dict[int, tuple[list[Any], list[Any]]]:
        """A flip and a turn of a lesion to be pasted, for two spatial axes and for three."""
        import monai.transforms as mt

        return {
            dims: (
                [mt.RandFlip(prob=0.5, spatial_axis=0)],
                [
                    mt.RandAffine(
                        prob=1,
                        rotate_range=(pi,) * (1 if dims == 2 else 3),
                        scale_range=(PASTED_SCALE,) * dims,
                        translate_range=(2 * self.translation,) * dims,
                        padding_mode="zeros",
                    )
                ],
            )
            for dims in (2, 3)
        }

    @cached_property
    def _curves(self) -> list[tuple[Any, float]]:
        """Curves of a brain's values, each with the share that it has."""
        import monai.transforms as mt

        curves: list[tuple[Any, float]] = []
        if self.gamma:
            reach = 1 + self.gamma
            curves.append((mt.RandAdjustContrast(prob=1, gamma=(1 / reach, reach), retain_stats=True), 1.0))
        if self.histogram:
            curves.append((mt.RandHistogramShift(CONTROL_POINTS, prob=1), self.histogram))
        return curves

    @cached_property
    def _soften(self) -> Any:
        import monai.transforms as mt

        return mt.GaussianSmooth(sigma=1.0)

    @cached_property
    def _fade(self) -> Any:
        import monai.transforms as mt

        return mt.RandScaleIntensityFixedMean(prob=1, factors=FADED, fixed_mean=True, preserve_range=False)

    @cached_property
    def _fields(self) -> list[Any]:
        import monai.transforms as mt

        return [mt.RandBiasField(coeff_range=(-self.bias, self.bias), prob=1)] if self.bias else []

    @cached_property
    def _changes(self) -> list[Any]:
        """What is scaled and shifted about 0, then blurred and disturbed."""
        import monai.transforms as mt

        changes: list[Any] = []
        if self.contrast:
            changes.append(mt.RandScaleIntensity(factors=self.contrast, prob=1))
        if self.brightness:
            changes.append(mt.RandShiftIntensity(offsets=self.brightness, prob=1))
        if self.blur:
            changes.append(mt.RandGaussianSmooth(*[(0.0, self.blur)] * 3, prob=1))
        if self.noise:
            changes.append(mt.RandGaussianNoise(prob=1, std=self.noise))
        return changes


def _present(image: Tensor, neighbours: int, background: float) -> Tensor:
    """Which channels of an image [C N, *S] hold anything but background, [C] booleans."""
    return (image.unflatten(0, (-1, neighbours)) != background).flatten(1).any(1)


def _moved(
    parts: Mapping[str, Tensor], background: float, flips: Iterable[Any], turns: Iterable[Any]
) -> dict[str, Tensor]:
    """image, labels and brain [·, *S] flipped and turned together, between voxels linearly, with nothing where no voxel
    comes from."""
    sizes = [len(part) for part in parts.values()]
    whole = torch.cat([part.float() for part in parts.values()])
    nothing = torch.zeros(sum(sizes), *(1,) * (whole.ndim - 1))
    nothing[: sizes[0]] = background
    for flip in flips:
        whole = flip(whole)
    for turn in turns:
        whole = turn(whole - nothing) + nothing
    return dict(zip(parts, whole.split(sizes), strict=True))
