"""Inpainting: hide a part of the brain, let a denoiser of healthy tissue fill the gap, and ask how surprising the scan is.

After Bercea et al., Mask, Stitch, and Re-Sample (AutoDDPM), 2023, arXiv 2305.19643: what stands out at first is hidden as a
whole and filled again; Behrendt et al., Patched Diffusion Models for Unsupervised Anomaly Detection, MIDL 2023, arXiv
2303.03758: every place is hidden once in turn; and Behrendt et al., 2024, arXiv 2407.12474: a difference counts by how far
reconstructions vary. Here all is hidden (t = T), one pass gives mean and deviation of what lies in the gap, and nothing is
walked: no structure of a lesion can pass.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.diffusion.hiding import blurred_inside, grown, patches, shown
from medseg_diff.diffusion.noise import NoiseSource, SeededNoise
from medseg_diff.methods.anomaly.checks import checks_of, probability, reference_of
from medseg_diff.methods.anomaly.engine import Check, Cohort, Engine, Evidence, Facts, Networks
from medseg_diff.settings import ChannelName

LEAST_DEVIATION = 0.1  # of a filled value in [-1, 1]: a network that is surer has never seen the scanner at hand


class Inpainting(Engine):
    """The brain is looked at `looks` times: half of it hidden in random patches (of noise blurred over `patch` voxels), then
    the other half. Where the surprise, blurred over `blur` voxels, is above `suspicious`, everything is hidden at once and
    filled in; that is done `refills` times, each by the surprise of the one before. The last one is the score, which is 0
    where nothing was suspicious.

    Surprise is (x - mean) / deviation of each channel. `directions` adds it up with a weight for each channel and keeps
    what is positive, in standard deviations: `{t1: -1, flair: 1}` finds what is dark in T1 and bright in FLAIR. Without it
    any change counts: its root mean square above 1.
    The classifier does not guide: what it says of the scan and of the filled one is the check.
    """

    networks: ClassVar[tuple[str, ...]] = ("denoiser", "classifier")
    learns_from: ClassVar[Cohort] = "tissue"
    swept: ClassVar[tuple[str, ...]] = ("looks", "refills", "suspicious")

    kind: Literal["inpainting"] = "inpainting"
    looks: int = Field(default=4, ge=1, le=1000)
    refills: int = Field(default=3, ge=1, le=100)
    patch: float = Field(default=4.0, gt=0, le=100)
    blur: float = Field(default=1.3, gt=0, le=100)
    suspicious: float = Field(default=1.0, ge=0, le=100)
    directions: Mapping[ChannelName, float] = Field(default={})

    @property
    def named_channels(self) -> tuple[str, ...]:
        return tuple(self.directions)

    @property
    def evaluations(self) -> dict[str, int]:
        return {"denoiser": 2 * self.looks + self.refills, "classifier": 2}  # p(healthy) before and after

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
        odd = first = self.oddness(surprises, networks.channels)
        for _ in range(self.refills):
            hidden = grown(blurred_inside(odd, brain, self.blur) > self.suspicious) & brain
            mean, surprise = filled(x, hidden, networks)
            healthy = torch.where(hidden, mean, x)
            odd = torch.where(hidden, self.oddness(surprise, networks.channels), first)
        facts = {}
        if networks.classifier is not None:
            before, after = (probability(networks.classifier, each, 0) for each in (x, healthy))
            facts = {"p_healthy_before": before, "p_healthy_after": after}
        return Evidence(odd * hidden, networks.space.decode(healthy), facts)

    def oddness(self, surprise: Tensor, channels: tuple[str, ...]) -> Tensor:
        """Surprise of each channel [B, C, *S] as one number [B, 1, *S], 0 or more, in standard deviations."""
        if not self.directions:
            return (surprise.square().mean(dim=1, keepdim=True).sqrt() - 1).relu()
        weights = surprise.new_tensor([self.directions.get(name, 0.0) for name in channels])
        weights = (weights / weights.norm()).view(1, -1, *(1,) * (surprise.ndim - 2))
        return (surprise * weights).sum(dim=1, keepdim=True).relu()

    def round_trip(self, image: Tensor, networks: Networks) -> Tensor:
        """The image filled in everywhere, each half from the other."""
        x, brain = networks.space.encode(image), networks.brain(image)
        trip = x
        for hidden in halves(SeededNoise([0] * len(x))(x[:, :1], 0), brain, self.patch):
            trip = torch.where(hidden, filled(x, hidden, networks)[0], trip)
        return networks.space.decode(trip)

    def reference(self, facts: Facts) -> dict[str, float]:
        return reference_of(facts)

    def checks(self, facts: Facts, reference: Mapping[str, float]) -> list[Check]:
        return checks_of(facts, reference)


def halves(noise: Tensor, brain: Tensor, width: float) -> Iterator[Tensor]:
    """Two halves of the brain [B, 1, *S] in patches, one after the other."""
    half = patches(noise, brain, width=width)
    yield half
    yield brain & ~half


def filled(x: Tensor, hidden: Tensor, networks: Networks) -> tuple[Tensor, Tensor]:
    """The mean of what may lie in the gap, and how many deviations x is from it; both [B, C, *S], the latter 0 elsewhere."""
    denoiser = networks.denoiser
    with torch.no_grad():
        said = denoiser(torch.zeros_like(x), denoiser.schedule.length, shown(x, hidden))
    deviation = torch.ones_like(x) if said.deviation is None else said.deviation.clamp(min=LEAST_DEVIATION)
    return said.clean, torch.where(hidden, (x - said.clean) / deviation, 0)
