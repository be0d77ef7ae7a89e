"""A pseudo-healthy reconstruction by inversion: encode with DDIM, decode guided to healthy, and look at the difference.

Wolleb et al., Diffusion Models for Medical Anomaly Detection, MICCAI 2022, arXiv 2203.04306; with classifier-free guidance:
Sanchez et al., What is Healthy? Generative Counterfactual Diffusion for Lesion Localization, 2022, arXiv 2207.12268.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medseg_diff.diffusion import DDIM, AnySolver, ClassifierFree, ClassifierGuided, Condition, NoiseSchedule, walk
from medseg_diff.diffusion.denoiser import AnyDenoiser, Network
from medseg_diff.diffusion.noise import NoiseSource
from medseg_diff.methods.anomaly.checks import checks_of, probability, reference_of
from medseg_diff.methods.anomaly.engine import Check, Decoding, Evidence, Facts, Networks, Reconstruction
from medseg_diff.networks.noisy_classifier import HEALTHY


class GuidedInversion(Reconstruction):
    """DDIM both ways, or what else is deterministic: encode with the bare denoiser, decode with a guided one.

    Nothing is clipped on either way: what leaves the range while encoding must be able to come back.
    """

    swept: ClassVar[tuple[str, ...]] = ("depth", "steps", "scale")

    scale: float = Field(ge=-1e6, le=1e6)
    solver: AnySolver = DDIM()

    @model_validator(mode="after")
    def _encodes(self) -> "GuidedInversion":
        if self.solver.stochastic:
            raise ValueError("solver draws noise, which an encoding cannot undo; use ddim with eta 0")
        return self

    @abstractmethod
    def guided(self, x: Tensor, networks: Networks) -> AnyDenoiser:
        """The denoiser that decodes what x_0 [B, D, *S] was encoded to."""

    def label(self, x: Tensor) -> Condition:
        """What the guided denoiser is conditioned on: `healthy`."""
        return healthy_label(x)

    def decoding(self, x: Tensor, networks: Networks, noise: NoiseSource | None = None) -> Decoding:
        times = self.times(networks.denoiser.schedule)
        x_L = walk(networks.denoiser, self.solver, x, times, noise=noise)
        condition = networks.space.condition(self.label(x))
        return Decoding(self.guided(x, networks), self.solver, x_L, times[::-1], condition, noise)

    def score(self, image: Tensor, networks: Networks, noise: NoiseSource, *, baselines: bool = False) -> Evidence:
        space, x = networks.space, networks.space.encode(image)
        decoding = self.decoding(x, networks, noise)
        x_0 = walk(*decoding)
        healthy, facts, others = space.decode(x_0), {}, {}
        if networks.classifier is not None:
            facts = {
                "p_healthy_before": probability(networks.classifier, x, 0),
                "p_healthy_noisy": probability(networks.classifier, decoding.x, decoding.times[0]),
                "p_healthy_after": probability(networks.classifier, x_0, 0),
            }
        if baselines:
            unguided = space.decode(walk(*without_guidance(decoding, networks)))
            others["scale_0"] = self.difference(image, unguided, networks.channels)
        if baselines and networks.classifier is not None:
            others["saliency"] = self.saliency(x, networks.classifier, networks.denoiser.schedule)
        return Evidence(self.difference(image, healthy, networks.channels), healthy, facts, others)

    def saliency(self, x: Tensor, classifier: Network, schedule: NoiseSchedule) -> Tensor:
        """The classifier's saliency [B, 1, *S] of x_0, halfway to the noise level."""
        times = self.times(schedule)
        return saliency(classifier, x, schedule=schedule, t=times[len(times) // 2])

    def round_trip(self, image: Tensor, networks: Networks) -> Tensor:
        decoding = self.decoding(networks.space.encode(image), networks)
        return networks.space.decode(walk(*without_guidance(decoding, networks)))


class ClassifierInversion(GuidedInversion):
    """Guided by a noisy classifier's gradient times `scale`, which 0 switches off. The gradient is shared out among the
    voxels of a slice: `scale_at` is how many of them `scale` was chosen for, and more are pushed so much more (None: as in
    the paper, whatever the slice). With `condition_on_healthy` a denoiser that knows labels is also conditioned on healthy
    while decoding; while encoding it never is.
    """

    scale: float = Field(default=100.0, ge=-1e6, le=1e6)
    scale_at: int | None = Field(default=None, ge=1, le=10**9)
    condition_on_healthy: bool = False

    @property
    def networks(self) -> tuple[str, ...]:
        return ("denoiser", "classifier")

    @property
    def needs_labels(self) -> bool:
        return self.condition_on_healthy

    @property
    def evaluations(self) -> dict[str, int]:
        gradients = self.steps if self.scale else 0
        return {"denoiser": 2 * self.steps, "classifier": gradients + 3}  # p(healthy) before, at depth and after

    def guided(self, x: Tensor, networks: Networks) -> AnyDenoiser:
        if networks.classifier is None or not self.scale:
            return networks.denoiser
        voxels = x[0, 0].numel()
        scale = self.scale if self.scale_at is None else self.scale * voxels / self.scale_at
        return ClassifierGuided(
            networks.denoiser, networks.classifier, HEALTHY, scale, mask=self.guided_where(x, networks)
        )

    def guided_where(self, x: Tensor, networks: Networks) -> Tensor | None:
        """The voxels that are guided, [B, 1, *S]; None: all of them."""
        return None

    def label(self, x: Tensor) -> Condition:
        return healthy_label(x) if self.condition_on_healthy else Condition()

    def reference(self, facts: Facts) -> dict[str, float]:
        return reference_of(facts)

    def checks(self, facts: Facts, reference: Mapping[str, float]) -> list[Check]:
        return checks_of(facts, reference)


class Inversion(ClassifierInversion):
    """The whole slice is guided, as in the paper."""

    kind: Literal["inversion"] = "inversion"


class ClassifierFreeInversion(GuidedInversion):
    """Guided by the denoiser's own labels: away from the unconditional prediction, towards `healthy`, by `scale`."""

    kind: Literal["classifier_free"] = "classifier_free"
    scale: float = Field(default=3.0, ge=-1e6, le=1e6)

    @property
    def needs_labels(self) -> bool:
        return True

    @property
    def evaluations(self) -> dict[str, int]:
        return {"denoiser": 3 * self.steps}  # two while decoding: with the label, and without

    def guided(self, x: Tensor, networks: Networks) -> AnyDenoiser:
        return ClassifierFree(networks.denoiser, self.scale)


def without_guidance(decoding: Decoding, networks: Networks) -> Decoding:
    """The same decoding by the bare denoiser."""
    return decoding._replace(denoiser=networks.denoiser, condition=Condition())


def healthy_label(like: Tensor) -> Condition:
    """`healthy` for every sample of a batch."""
    return Condition(label=torch.full((len(like),), HEALTHY, device=like.device))


def saliency(
    classifier: Network, x: Tensor, *, schedule: NoiseSchedule, t: int = 1, noise: Tensor | None = None
) -> Tensor:
    """The cheap baseline of guidance, [B, 1, *S]: Σ over channels of |grad log p(healthy | x_t)|, one backward pass.

    It is what the guidance pulls at first: large in slices that look diseased, next to nothing in those that do not
    (the gradient of log p(diseased) is the other way round). x_t is x_0 = `x` at the level of t >= 1, with `noise`
    [B, C, *S] or, without it, its mean.
    """
    level = schedule.level(t)
    with torch.enable_grad():
        x_t = (level.alpha * x).detach()
        x_t = (x_t if noise is None else x_t + level.sigma * noise).requires_grad_(True)
        logits = classifier(x_t, torch.full((1,), t, device=x.device), Condition())
        (gradient,) = torch.autograd.grad(logits.float().log_softmax(dim=1)[:, HEALTHY].sum(), x_t)
    return gradient.abs().sum(dim=1, keepdim=True)
