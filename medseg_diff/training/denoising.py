"""Learning to denoise: a random time and fresh noise for every sample, and the denoiser's loss."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.data.datasets.labelled import UNKNOWN, slice_labels
from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import Denoiser
from medseg_diff.diffusion.losses import denoising_loss, hybrid
from medseg_diff.seeds import seed_of
from medseg_diff.training.objective import Turn


class MaskDenoising:
    """x_0 is the mask, the MR channels are the condition."""

    def __init__(self, denoiser: Denoiser, *, seed: int, rank: int = 0) -> None:
        assert isinstance(denoiser.network, nn.Module)
        self.denoiser, self.seed, self.rank = denoiser, seed, rank
        self.models: dict[str, nn.Module] = {"denoiser": denoiser.network}

    def adopt(self, name: str, model: nn.Module) -> None:
        self.denoiser.network = model

    def turns(self, batch: Batch, step: int) -> Iterator[Turn]:
        t, noise = self.draw(batch.mask, step)
        losses = denoising_loss(self.denoiser, batch.mask, t, noise, Condition(image=batch.image))
        loss = hybrid(losses, self.denoiser.schedule.length).mean()
        yield Turn("denoiser", loss, {f"loss_{name}": value.detach().mean() for name, value in losses.items()})

    def draw(self, clean: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Times [B] in 1 … T, and noise like `clean`."""
        own = seed_of(self.seed, "denoising", self.rank, step)
        return draw_times_and_noise(clean, own, deepest=self.denoiser.schedule.length)


class ImageDenoising:
    """x_0 is the image × `image_scale`, at times 1 … `deepest`.

    A network that knows labels is told healthy or diseased, but for a share `label_dropout` of the samples and those of
    which nothing is known; they teach it its blank.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        seed: int,
        rank: int = 0,
        image_scale: float = 1.0,
        deepest: int | None = None,
        label_dropout: float | None = None,
    ) -> None:
        assert isinstance(denoiser.network, nn.Module)
        self.denoiser, self.seed, self.rank = denoiser, seed, rank
        self.image_scale, self.label_dropout = image_scale, label_dropout
        self.deepest = deepest or denoiser.schedule.length
        self.models: dict[str, nn.Module] = {"denoiser": denoiser.network}

    def adopt(self, name: str, model: nn.Module) -> None:
        self.denoiser.network = model

    def turns(self, batch: Batch, step: int) -> Iterator[Turn]:
        clean = batch.image * self.image_scale
        own = seed_of(self.seed, "denoising", self.rank, step)
        t, noise = draw_times_and_noise(clean, own, deepest=self.deepest)
        losses = denoising_loss(self.denoiser, clean, t, noise, self.condition(batch, step))
        loss = hybrid(losses, self.denoiser.schedule.length).mean()
        yield Turn("denoiser", loss, {f"loss_{name}": value.detach().mean() for name, value in losses.items()})

    def condition(self, batch: Batch, step: int) -> Condition:
        """The labels of a batch, some of them dropped; empty for a network that knows none."""
        if self.label_dropout is None:
            return Condition()
        labels = slice_labels(batch.mask)
        own = seed_of(self.seed, "label dropout", self.rank, step)
        generator = torch.Generator(labels.device).manual_seed(own)
        dropped = torch.rand(len(labels), generator=generator, device=labels.device) < self.label_dropout
        return Condition(label=labels.clamp(min=0)).drop(dropped | (labels == UNKNOWN))


def draw_times_and_noise(clean: Tensor, seed: int, *, deepest: int) -> tuple[Tensor, Tensor]:
    """Times [B] spread evenly over 1 … deepest (a random offset, then stratified: less variance), and noise like `clean`."""
    generator = torch.Generator(clean.device).manual_seed(seed)
    batch = len(clean)
    share = torch.rand(batch, generator=generator, device=clean.device)
    place = (torch.randperm(batch, generator=generator, device=clean.device) + share) / batch
    t = (place * deepest).long().clamp(max=deepest - 1) + 1
    return t, torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
