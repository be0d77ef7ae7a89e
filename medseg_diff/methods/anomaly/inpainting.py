"""Inpainting: hide a part of the brain, let a denoiser of healthy tissue fill the gap, and ask how surprising the scan is.

After Bercea et al., Mask, Stitch, and Re-Sample (AutoDDPM), 2023, arXiv 2305.19643: what stands out at first is hidden as a
whole and filled again; Behrendt et al., Patched Diffusion Models for Unsupervised Anomaly Detection, MIDL 2023, arXiv
2303.03758: every place is hidden once in turn; and Behrendt et al., 2024, arXiv 2407.12474: a difference counts by how far
reconstructions vary. Here all is hidden (t = T), one pass gives mean and deviation of what lies in the gap, and nothing is
walked: no structure of a lesion can pass.
"""

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.diffusion.hiding import Patches, blurred_inside, grown, highest, patches, shown, without_holes
from medseg_diff.diffusion.noise import NoiseSource, SeededNoise
from medseg_diff.methods.anomaly.checks import checks_of, probability, reference_of
from medseg_diff.methods.anomaly.engine import (
    LEAST_DEVIATION,
    Check,
    Cohort,
    Conditioning,
    Engine,
    Evidence,
    Facts,
    Networks,
)
from medseg_diff.settings import ChannelName
from medseg_diff.spaces import ImageSpace

SIGMAS = 1.4826  # of a normal number, in median absolute deviations
DISAGREEMENT = 0.5  # share of the difference of two channels that have to agree
LARGEST_DRIFT = (
    4.0  # times the mean score of healthy slices, nearly all of whose voxels score 0: it varies more than a map
)
MOST_HIDDEN = 0.4  # of a brain: a gap is filled from what is left


class Inpainting(Engine):
    """The brain is looked at `looks` times: half of it hidden in random patches (of noise blurred over `patch` voxels), then
    the other half. Where the surprise, blurred over `blur` voxels, is above `suspicious`, everything is hidden at once and
    filled in; that is done `refills` times, each by the surprise of the one before. The last one is the score, which is 0
    where nothing was suspicious.

    Surprise is (x - mean) / deviation of each channel, above what is usual in the slice. `directions` adds it up with a
    weight for each channel and keeps what is positive, in standard deviations: `{t1: -1, flair: 1}` finds what is dark in T1
    and bright in FLAIR. Of two channels that are `agreeing`, half of what they differ by is taken off: fluid is bright in T2
    and dark in FLAIR, a lesion bright in both. Without directions any change counts: its root mean square above 1.
    A classifier does not guide: as a `witness`, what it says of the scan and of the filled one is the check. Where all cases
    are healthy there is nothing that it could learn from.
    """

    learns_from: ClassVar[Cohort] = "tissue"
    conditioned_on: ClassVar[Conditioning] = "rest"
    wants_deviation: ClassVar[bool] = True
    follows_classifier: ClassVar[bool] = False
    swept: ClassVar[tuple[str, ...]] = ("looks", "refills", "suspicious")

    kind: Literal["inpainting"] = "inpainting"
    looks: int = Field(default=4, ge=1, le=1000)
    refills: int = Field(default=3, ge=1, le=100)
    patch: float = Field(default=4.0, gt=0, le=100)
    blur: float = Field(default=1.3, gt=0, le=100)
    suspicious: float = Field(default=0.5, ge=0, le=100)
    directions: Mapping[ChannelName, float] = Field(default={})
    agreeing: tuple[ChannelName, ChannelName] | None = None
    witness: bool = True

    @model_validator(mode="after")
    def _agree(self) -> "Inpainting":
        if self.directions and not any(self.directions.values()):
            raise ValueError("directions needs a weight that is not 0, or none at all")
        if self.agreeing is not None and not set(self.agreeing) <= set(self.directions):
            raise ValueError(f"agreeing needs two channels of directions: found {', '.join(self.agreeing)}")
        return self

    @property
    def networks(self) -> tuple[str, ...]:
        return ("denoiser", "classifier") if self.witness else ("denoiser",)

    @property
    def named_channels(self) -> tuple[str, ...]:
        return tuple(self.directions)

    @property
    def hiding(self) -> Patches:
        return Patches(self.patch)

    @property
    def evaluations(self) -> dict[str, int]:
        witness = {"classifier": 2} if self.witness else {}  # p(healthy) before and after
        return {"denoiser": 2 * self.looks + self.refills} | witness

    def deepest(self, schedule: NoiseSchedule) -> int:
        """Its classifier is asked about images without noise."""
        return 1

    def learned_times(self, schedule: NoiseSchedule, deepest: int) -> tuple[int, int]:
        """Its denoiser is asked about nothing but noise."""
        return schedule.length, schedule.length

    def score(self, image: Tensor, networks: Networks, noise: NoiseSource, *, baselines: bool = False) -> Evidence:
        x, brain = networks.space.encode(image), networks.brain(image)
        surprises = torch.zeros_like(x)
        for look in range(self.looks):
            for hidden in halves(noise(x, look)[:, :1], brain, self.patch):
                surprises += filled(x, hidden, networks)[1] / self.looks
        usual = Usual.of(surprises, brain)
        odd = first = self.oddness(usual.less(surprises), networks.channels)
        for _ in range(self.refills):
            hidden = self.standing_out(odd, brain)
            mean, surprise = filled(x, hidden, networks)
            healthy = torch.where(hidden, mean, x)
            odd = torch.where(hidden, self.oddness(usual.less(surprise), networks.channels), first)
        facts = {}
        if networks.classifier is not None:
            before, after = (probability(networks.classifier, each, 0) for each in (x, healthy))
            facts = {"p_healthy_before": before, "p_healthy_after": after}
        return Evidence(odd * hidden, networks.space.decode(healthy), facts)

    def standing_out(self, odd: Tensor, brain: Tensor) -> Tensor:
        """Where a blurred score [B, 1, *S] is suspicious, a rim, and what these enclose, such as a dark core; but no more
        than the highest MOST_HIDDEN of a brain, and what that encloses."""
        smooth = blurred_inside(odd, brain, self.blur)
        count = (brain.flatten(1).sum(dim=1) * MOST_HIDDEN).long()
        hidden = grown(smooth > self.suspicious) & highest(smooth.masked_fill(~brain, -math.inf), count) & brain
        return without_holes(hidden) & brain

    def oddness(self, surprise: Tensor, channels: tuple[str, ...]) -> Tensor:
        """Surprise of each channel [B, C, *S] as one number [B, 1, *S], 0 or more, in standard deviations."""
        if not self.directions:
            return (surprise.square().mean(dim=1, keepdim=True).sqrt() - 1).relu()
        of = {name: surprise[:, place : place + 1] for place, name in enumerate(channels)}
        total = torch.stack([weight * of[name] for name, weight in self.directions.items()]).sum(dim=0)
        if self.agreeing is not None:
            one, other = (self.directions[name] * of[name] for name in self.agreeing)
            total = total - DISAGREEMENT * (one - other).abs()
        return (total / math.hypot(*self.directions.values())).relu()

    def round_trip(self, image: Tensor, networks: Networks) -> Tensor:
        """The image filled in everywhere, each half from the other."""
        x, brain = networks.space.encode(image), networks.brain(image)
        trip = x
        for hidden in halves(SeededNoise([0] * len(x))(x[:, :1], 0), brain, self.patch):
            trip = torch.where(hidden, filled(x, hidden, networks)[0], trip)
        return networks.space.decode(trip)

    def reference(self, facts: Facts) -> dict[str, float]:
        return reference_of(facts) if self.witness else {}

    def checks(self, facts: Facts, reference: Mapping[str, float]) -> list[Check]:
        return checks_of(facts, reference, largest_drift=LARGEST_DRIFT) if self.witness else []


class Usual(NamedTuple):
    """What surprises everywhere in a slice, [B, C, 1…] each: the middle of each channel's surprise, and its deviation where
    that is above 1. A scanner or a patient unlike those of the training surprises everywhere, a lesion where it is."""

    middle: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, surprises: Tensor, brain: Tensor) -> "Usual":
        """Medians, over the brain [B, 1, *S], which a lesion in less than half of it does not move."""
        middle = _median(surprises, brain)
        return cls(middle, (SIGMAS * _median((surprises - middle).abs(), brain)).clamp(min=1))

    def less(self, surprises: Tensor) -> Tensor:
        return (surprises - self.middle) / self.deviation


def _median(values: Tensor, among: Tensor) -> Tensor:
    """Of each sample and channel [B, C, *S] over the voxels `among` [B, 1, *S], [B, C, 1…]; 0 where there are none."""
    flat = values.masked_fill(~among, math.nan).flatten(2).float()
    return flat.nanmedian(dim=2).values.nan_to_num().to(values.dtype).view(*values.shape[:2], *(1,) * (values.ndim - 2))


def halves(noise: Tensor, brain: Tensor, width: float) -> Iterator[Tensor]:
    """Two halves of the brain [B, 1, *S] in patches, one after the other."""
    half = patches(noise, brain, width=width)
    yield half
    yield brain & ~half


def filled(x: Tensor, hidden: Tensor, networks: Networks) -> tuple[Tensor, Tensor]:
    """The mean of what may lie in the gap, and how many deviations x is from it; both [B, C, *S], the latter 0 elsewhere."""
    denoiser = networks.denoiser
    with torch.no_grad():  # x_T at its mean, 0: noise tells the denoiser nothing, and none has to be drawn
        said = denoiser(torch.zeros_like(x), denoiser.schedule.length, shown(x, hidden))
    least = LEAST_DEVIATION * (networks.space.scale if isinstance(networks.space, ImageSpace) else 1)
    deviation = torch.ones_like(x) if said.deviation is None else said.deviation.clamp(min=least)
    return said.clean, torch.where(hidden, (x - said.clean) / deviation, 0)
