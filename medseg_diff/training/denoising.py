"""Learning to denoise: a random time and fresh noise for every sample, and the denoiser's loss."""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.data.datasets.labelled import UNKNOWN
from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import Denoiser
from medseg_diff.diffusion.losses import denoising_loss, hybrid
from medseg_diff.diffusion.noise import AnyNoise, GaussianNoise
from medseg_diff.seeds import seed_of
from medseg_diff.spaces import PLAIN, Space
from medseg_diff.training.objective import Turn

# A batch and its step → x_0 [B, D, *S], what it is conditioned on.
Pair = Callable[[Batch, int], tuple[Tensor, Condition]]


@dataclass(eq=False)
class Denoising:
    """A denoiser of what `pair` makes of a batch, at times 1 … `deepest` (None: the whole schedule)."""

    denoiser: Denoiser
    pair: Pair
    _: KW_ONLY
    seed: int
    rank: int = 0
    deepest: int | None = None
    noise: AnyNoise = GaussianNoise()

    def __post_init__(self) -> None:
        assert isinstance(self.denoiser.network, nn.Module)
        self.models: dict[str, nn.Module] = {"denoiser": self.denoiser.network}

    def adopt(self, name: str, model: nn.Module) -> None:
        self.denoiser.network = model

    def turns(self, batch: Batch, step: int) -> Iterator[Turn]:
        clean, condition = self.pair(batch, step)
        own = seed_of(self.seed, "denoising", self.rank, step)
        deepest = self.deepest or self.denoiser.schedule.length
        t, noise = draw_times_and_noise(clean, own, deepest=deepest, kind=self.noise)
        losses = denoising_loss(self.denoiser, clean, t, noise, condition)
        loss = hybrid(losses, self.denoiser.schedule.length, dice=self.denoiser.dice).mean()
        yield Turn("denoiser", loss, {f"loss_{name}": value.detach().mean() for name, value in losses.items()})


@dataclass(frozen=True)
class MaskAndImage:
    """x_0 is the mask in its space, conditioned on the MR channels."""

    space: Space = PLAIN

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Condition]:
        assert batch.mask is not None
        return self.space.encode(batch.mask), self.space.condition(Condition(image=batch.image))


@dataclass(frozen=True)
class ImageAndLabel:
    """x_0 is the image in its space, conditioned on its label, or on nothing where `dropout` is None.

    A share `dropout` of the labels, and those that are not known, are left out: they teach it the unconditional prediction.
    """

    space: Space = PLAIN
    dropout: float | None = None
    seed: int = 0
    rank: int = 0

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Condition]:
        return self.space.encode(batch.image), self.space.condition(self._condition(batch.label, step))

    def _condition(self, label: Tensor | None, step: int) -> Condition:
        if self.dropout is None:
            return Condition()
        assert label is not None
        own = seed_of(self.seed, "label dropout", self.rank, step)
        generator = torch.Generator(label.device).manual_seed(own)
        dropped = torch.rand(len(label), generator=generator, device=label.device) < self.dropout
        return Condition(label=label.clamp(min=0)).drop(dropped | (label == UNKNOWN))


def draw_times_and_noise(
    clean: Tensor, seed: int, *, deepest: int, kind: AnyNoise = GaussianNoise()
) -> tuple[Tensor, Tensor]:
    """Times [B] spread evenly over 1 … deepest (a random offset, then stratified: less variance), and noise like `clean`."""
    generator = torch.Generator(clean.device).manual_seed(seed)
    batch = len(clean)
    share = torch.rand(batch, generator=generator, device=clean.device)
    place = (torch.randperm(batch, generator=generator, device=clean.device) + share) / batch
    t = (place * deepest).long().clamp(max=deepest - 1) + 1
    return t, kind.draw(clean, generator)
