"""The healthy brain behind a diseased one: encode with DDIM, decode guided towards healthy, and look at the difference.

Wolleb et al., Diffusion Models for Medical Anomaly Detection, MICCAI 2022, arXiv 2203.04306; with classifier-free guidance:
Sanchez et al., What is Healthy? Generative Counterfactual Diffusion for Lesion Localization, 2022, arXiv 2207.12268.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from medseg_diff.diffusion import DDIM, ClassifierFree, ClassifierGuided, Condition, NoiseSchedule, trajectory, walk
from medseg_diff.diffusion.denoiser import AnyDenoiser, Network
from medseg_diff.networks.noisy_classifier import HEALTHY
from medseg_diff.settings import Settings

MapKind = Literal["absolute", "positive"]


class HealingSettings(Settings):
    """How deep the lesion is drowned in noise, in how many steps, and how hard the way back is pushed to healthy.

    `depth` is L, on the schedule's 0 … T, and `steps` the steps of each way. `spacing` of the times: `even`, or `quadratic`
    with short steps near the image. `told_healthy`: a denoiser that knows labels is also told `healthy` on the way back;
    on the way up it is never told anything.
    """

    engine: Literal["classifier", "classifier_free"] = "classifier"
    depth: int = Field(default=250, ge=1)
    steps: int = Field(default=10, ge=1)
    scale: float = 100.0
    spacing: Literal["even", "quadratic"] = "even"
    told_healthy: bool = False
    network_batch: int = Field(default=32, ge=1, le=4096)

    def levels(self, schedule: NoiseSchedule) -> list[int]:
        """The times from 0 up to `depth`; the way back is the same list reversed.

        Raises: UsageError where so many steps do not fit below `depth`, or the schedule ends before it.
        """
        even = schedule.times(self.steps, start=0, stop=self.depth)
        if self.spacing == "even":
            return even
        bent = [self.depth * (i / self.steps) ** 2 for i in range(self.steps + 1)]
        levels = [0]
        for wanted in bent[1:]:  # whole numbers, each above the one before
            levels.append(max(levels[-1] + 1, math.floor(wanted + 0.5)))
        return levels

    def guided(self, denoiser: AnyDenoiser, classifier: Network) -> AnyDenoiser:
        """The denoiser of the way back. At scale 0 it is the plain one: the round trip."""
        if self.engine == "classifier_free":
            return ClassifierFree(denoiser, self.scale)
        return ClassifierGuided(denoiser, classifier, HEALTHY, self.scale) if self.scale else denoiser

    def way_back(self, like: Tensor) -> Condition:
        """What the denoiser of the way back is told: `healthy`, or nothing."""
        if self.engine == "classifier_free" or self.told_healthy:
            return Condition(label=torch.full((len(like),), HEALTHY, device=like.device))
        return Condition()

    @property
    def passes(self) -> dict[str, int]:
        """Passes of each network through one slice; a gradient of the classifier counts as one."""
        back = 2 * self.steps if self.engine == "classifier_free" else self.steps
        return {"denoiser": self.steps + back, "classifier": self.steps if self.engine == "classifier" else 0}


class Healed(NamedTuple):
    """image, healed [B, C, *S] in the units that went in; noisy [B, C, *S] is x_L.

    `before` [B] is p(healthy) of the image and `believed` [steps + 1, B] p(healthy | x_t) along the way back, the first at
    L, the last of the healed image; both None where no classifier was given. A clean image is asked about at t = 1.
    """

    healed: Tensor
    noisy: Tensor
    before: Tensor | None = None
    believed: Tensor | None = None


def heal(
    image: Tensor,
    *,
    denoiser: AnyDenoiser,
    guided: AnyDenoiser,
    levels: Sequence[int],
    image_scale: float = 1.0,
    way_back: Condition | None = None,
    classifier: Network | None = None,
) -> Healed:
    """Encode image [B, C, *S] along `levels` (ascending from 0) with `denoiser`, decode along the same list with `guided`.

    The networks see x_0 = image × `image_scale`. Nothing is clipped on either way: what leaves the range on the way up must
    be able to come back. `way_back` is what `guided` is told; `classifier`, where given, watches the way back.
    """
    x = image * image_scale
    noisy = walk(denoiser, DDIM(), x, levels)
    seen = [] if classifier is None else [probability(classifier, noisy, levels[-1])]
    healed = noisy
    for step in trajectory(guided, DDIM(), noisy, levels[::-1], way_back or Condition()):
        healed = step.x
        if classifier is not None:
            seen.append(probability(classifier, healed, step.t))
    before = None if classifier is None else probability(classifier, x, 0)
    return Healed(healed / image_scale, noisy, before, torch.stack(seen) if seen else None)


def probability(classifier: Network, x_t: Tensor, t: int, label: int = HEALTHY) -> Tensor:
    """p(label | x_t), float32 [B]; at t = 0 the classifier is asked at t = 1, the first that it has seen."""
    with torch.no_grad():
        logits = classifier(x_t, torch.full((1,), max(t, 1), device=x_t.device), Condition())
    return logits.float().softmax(dim=1)[:, label]


def difference(image: Tensor, healed: Tensor, *, kind: MapKind = "absolute", channels: Sequence[int] = ()) -> Tensor:
    """The anomaly map [B, 1, *S]: Σ over channels of |x - x'|, or of what is brighter in the image (`positive`).

    image, healed [B, C, *S]; `channels` takes some of them only.
    """
    change = image - healed
    if channels:
        change = change[:, list(channels)]
    return (change.abs() if kind == "absolute" else change.clamp(min=0)).sum(dim=1, keepdim=True)


def saliency(
    classifier: Network,
    image: Tensor,
    *,
    schedule: NoiseSchedule,
    t: int = 1,
    noise: Tensor | None = None,
    image_scale: float = 1.0,
) -> Tensor:
    """The cheap rival of healing, [B, 1, *S]: Σ over channels of |grad log p(healthy | x_t)|, one backward pass.

    It is what the guidance pulls at first: large in slices that look diseased, next to nothing in those that do not
    (the gradient of log p(diseased) is the other way round). x_t is the image at the level of t >= 1, with `noise`
    [B, C, *S] or, without it, its mean.
    """
    level = schedule.level(t)
    with torch.enable_grad():
        x = (level.alpha * image_scale * image).detach()
        x = (x if noise is None else x + level.sigma * noise).requires_grad_(True)
        logits = classifier(x, torch.full((1,), t, device=x.device), Condition())
        (gradient,) = torch.autograd.grad(logits.float().log_softmax(dim=1)[:, HEALTHY].sum(), x)
    return gradient.abs().sum(dim=1, keepdim=True)
