"""Learning to draw from a discriminator's verdicts: a GAN and, where an encoder learns beside it, a VAE-GAN.

Least squares: Mao et al., Least Squares Generative Adversarial Networks, 2017, arXiv 1611.04076. The encoder, and likeness
by the discriminator's features: Larsen et al., Autoencoding beyond Pixels Using a Learned Similarity Metric, 2016, arXiv
1512.09300.
"""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import Denoiser
from medseg_diff.networks.generators import Judged, noise_with
from medseg_diff.seeds import seed_of
from medseg_diff.settings import Settings
from medseg_diff.training.objective import Turn


class LikenessSettings(Settings):
    """How an encoder learns beside the generator: of what scans' latents become, the discriminator's features are to be
    those of the scan, which counts `reconstruction` beside the verdict. `price` is the weight of the encoder's KL
    divergence; with 1 it learns by the variational bound.
    """

    reconstruction: float = Field(default=1.0, ge=0)
    price: float = Field(default=1.0, ge=0)


class AdversarialSettings(Settings):
    """How a generator learns from a discriminator, whose verdicts are compared with 1 (a scan) and 0 by `verdict`, and whose
    learning rate is `discriminator_rate` times its own; with `encoder` it is a VAE-GAN."""

    verdict: Literal["least_squares", "cross_entropy"] = "least_squares"
    discriminator_rate: float = Field(default=1.0, gt=0, le=100)
    encoder: LikenessSettings | None = None


def _least_squares(verdict: Tensor, target: float) -> Tensor:
    return 0.5 * (verdict - target).square().mean()  # LSGAN Eq. 9: a = 0, b = c = 1


def _cross_entropy(verdict: Tensor, target: float) -> Tensor:
    return functional.binary_cross_entropy_with_logits(verdict, torch.full_like(verdict, target))


DISTANCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "least_squares": _least_squares,
    "cross_entropy": _cross_entropy,
}


@dataclass(eq=False)
class Adversarial:
    """The turns of the encoder, where there is one, of the generator and of the discriminator, on the same scans.

    The generator is the network of `denoiser`, of a schedule of one step.
    """

    denoiser: Denoiser
    discriminator: nn.Module
    settings: AdversarialSettings
    _: KW_ONLY
    latent: int
    seed: int
    rank: int = 0
    encoder: nn.Module | None = None

    def __post_init__(self) -> None:
        encoder = {} if self.encoder is None else {"encoder": self.encoder}
        self.models = {**encoder, "denoiser": self.denoiser.module(), "discriminator": self.discriminator}
        self.adopted = dict(self.models)

    def adopt(self, name: str, model: nn.Module) -> None:
        self.adopted[name] = model
        if name == "denoiser":
            self.denoiser.network = model

    def turns(self, batch: Batch, step: int) -> Iterator[Turn]:
        image, weights, distance = batch.image, self.settings.encoder, DISTANCES[self.settings.verdict]
        generator = torch.Generator(image.device).manual_seed(seed_of(self.seed, "adversarial", self.rank, step))
        normal, prior = torch.randn(2, len(image), self.latent, generator=generator, device=image.device)
        latents = prior
        if weights:
            with torch.no_grad():
                features = self._judged(image).maps
            mean, log_variance = self.adopted["encoder"](image).unbind(dim=1)
            latent = mean + (log_variance / 2).exp() * normal
            unlike = _unlike(self._judged(self._drawn(latent, image)).maps, features)
            divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1).mean()
            # Larsen et al. Eq. 8, for each of the features' values.
            bound = unlike + weights.price * divergence / features[0].numel()
            yield Turn("encoder", bound, {"unlike": unlike.detach(), "divergence": divergence.detach()})
            latents = torch.cat([latent.detach(), prior])
        drawn = self._drawn(latents, image)
        judged = self._judged(drawn)
        deceived = distance(judged.verdict, 1.0)
        loss = deceived
        if weights:
            loss = loss + weights.reconstruction * _unlike(judged.maps[: len(image)], features)
        yield Turn("denoiser", loss, {"deceived": deceived.detach()})
        real, false = self._judged(image).verdict, self._judged(drawn.detach()).verdict
        told_apart = 0.5 * (distance(real, 1.0) + distance(false, 0.0))
        yield Turn("discriminator", told_apart, {"discriminator": told_apart.detach()})

    def _drawn(self, latent: Tensor, like: Tensor) -> Tensor:
        """The images that latents [B, latent] become."""
        noise = noise_with(latent, like.shape[1:])
        return self.denoiser(noise, self.denoiser.schedule.length, Condition()).clean

    def _judged(self, image: Tensor) -> Judged:
        judged = self.adopted["discriminator"](image)
        assert isinstance(judged, Judged)
        return judged


def _unlike(maps: Tensor, features: Tensor) -> Tensor:
    """[]: half the mean squared distance from the scans' features (Larsen et al. Eq. 7, a normal distribution)."""
    return 0.5 * (maps - features).square().mean()
