"""Learning to denoise: a random time and fresh noise for every sample, and the denoiser's loss."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from medseg_diff.data.loaders import Batch
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
        """Times [B] spread evenly over 1 … T (a random offset, then stratified: less variance), and noise like `clean`."""
        generator = torch.Generator(clean.device).manual_seed(seed_of(self.seed, "denoising", self.rank, step))
        batch, length = len(clean), self.denoiser.schedule.length
        share = torch.rand(batch, generator=generator, device=clean.device)
        place = (torch.randperm(batch, generator=generator, device=clean.device) + share) / batch
        t = (place * length).long().clamp(max=length - 1) + 1
        return t, torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
