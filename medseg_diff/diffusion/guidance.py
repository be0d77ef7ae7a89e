"""Predictions pushed towards a label, or held where something is known: denoisers wrapped round a denoiser.

Classifier guidance: Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, arXiv 2105.05233.
Classifier-free guidance: Ho & Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv 2207.12598.
Dynamic thresholding: Saharia et al., Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding, Imagen,
2022, arXiv 2205.11487.
"""

import math

import torch
from torch import Tensor

from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import AnyDenoiser, Network, Prediction, Wrapped, clean_from, time_tensor


class ClassifierGuided(Wrapped):
    """Follow the gradient of log p(label | x_t): eps ← eps - scale · sigma · grad.

    classifier(x_t, t, condition) gives logits [B, K]; t [B] or [1]. `label` is one of 0 … K - 1, for the whole batch.
    One backward pass of the classifier a step, none of the denoiser. With a `mask` [B, 1, *S] of booleans only what lies in
    it is pushed.
    """

    def __init__(
        self, denoiser: AnyDenoiser, classifier: Network, label: int, scale: float, *, mask: Tensor | None = None
    ) -> None:
        super().__init__(denoiser)
        self.classifier, self.label, self.scale, self.mask = classifier, label, scale, mask

    def forward(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Prediction:
        prediction = self.denoiser(x_t, t, condition)
        level = self.schedule.level(t, like=x_t)
        gradient = self.gradient(x_t, t, condition)
        push = gradient if self.mask is None else gradient * self.mask
        noise = prediction.noise - self.scale * level.sigma * push  # ADM Algorithm 2
        return prediction._replace(clean=clean_from(noise, x_t, level), noise=noise)

    def gradient(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Tensor:
        """grad of log p(label | x_t) with respect to x_t, [B, C, *S]."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            logits = self.classifier(x, time_tensor(t, x_t), condition)
            chosen = logits.to(x.dtype).log_softmax(dim=1)[:, self.label].sum()
            (gradient,) = torch.autograd.grad(chosen, x)
        return gradient


class ClassifierFree(Wrapped):
    """Away from the unconditional prediction: eps = null + scale · (conditioned - null).

    scale = 1 is the conditioned denoiser; the convention (1 + w) · conditioned - w · null has scale = 1 + w.
    """

    def __init__(self, denoiser: AnyDenoiser, scale: float) -> None:
        super().__init__(denoiser)
        self.scale = scale

    def forward(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Prediction:
        times = t if isinstance(t, int) else torch.cat([t, t])
        both = self.denoiser(torch.cat([x_t, x_t]), times, condition.beside(condition.null()))
        known, null = both.noise.chunk(2)
        noise = null + self.scale * (known - null)
        mix = None if both.variance_mix is None else both.variance_mix.chunk(2)[0]
        return Prediction(clean_from(noise, x_t, self.schedule.level(t, like=x_t)), noise, mix)


class Pinned(Wrapped):
    """What is known stays: outside `mask` the clean prediction is the `known` image, and the noise agrees with it.

    known [B, C, *S] in the space of x_0; mask [B, 1, *S] booleans, the region that is denoised. Like a clip it belongs
    outside of guidance, whose push it would otherwise undo.
    """

    def __init__(self, denoiser: AnyDenoiser, known: Tensor, mask: Tensor) -> None:
        super().__init__(denoiser)
        self.known, self.mask = known, mask

    def forward(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Prediction:
        prediction = self.denoiser(x_t, t, condition)
        return self.with_clean(prediction, torch.where(self.mask, prediction.clean, self.known), x_t, t)


class DynamicallyClipped(Wrapped):
    """Keep the clean prediction of each sample within ± `limit`, as large a share of its values as `share`: where more of
    them leave it, all are divided by as much (Imagen, Sec. 2.3). Guidance of a large scale needs it. Always outermost.
    """

    def __init__(self, denoiser: AnyDenoiser, limit: float, *, share: float) -> None:
        super().__init__(denoiser)
        self.limit, self.share = limit, share

    def forward(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Prediction:
        prediction = self.denoiser(x_t, t, condition)
        values = prediction.clean.flatten(1)
        rank = math.ceil(self.share * values.shape[1])
        reach = values.abs().float().kthvalue(rank, dim=1).values.clamp(min=self.limit)
        reach = reach.to(values.dtype).view(-1, *(1,) * (x_t.ndim - 1))
        clean = torch.maximum(torch.minimum(prediction.clean, reach), -reach) * (self.limit / reach)
        return self.with_clean(prediction, clean, x_t, t)
