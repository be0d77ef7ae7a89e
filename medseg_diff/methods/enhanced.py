"""A volume at a finer resolution, drawn by a denoiser that is shown the coarse one: the second stage of a cascade.

Ho et al., Cascaded Diffusion Models for High Fidelity Image Generation, 2021, arXiv 2106.15282.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_diff.diffusion import AnySolver, Condition, Prediction, SeededNoise, walk
from medseg_diff.diffusion.coarse import WHOLE, Detail, shown_coarse
from medseg_diff.diffusion.denoiser import AnyDenoiser, Wrapped
from medseg_diff.diffusion.noise import AnyNoise, GaussianNoise
from medseg_diff.methods.tiled import Tiled, corners_of
from medseg_diff.seeds import seed_of


class ClippedImage(Wrapped):
    """Keep the fine image of the clean prediction in [-1, 1], whatever x_0 is of it, and make the noise agree. Outermost."""

    def __init__(self, denoiser: AnyDenoiser, detail: Detail) -> None:
        super().__init__(denoiser)
        self.detail = detail

    def forward(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Prediction:
        assert condition.image is not None
        prediction = self.denoiser(x_t, t, condition)
        image = self.detail.decode(prediction.clean, condition.image).clamp(-1, 1)
        return self.with_clean(prediction, self.detail.encode(image, condition.image), x_t, t)


@dataclass(frozen=True)
class Enhancing:
    """How a volume is drawn with `factor` times as many voxels along each axis, along `times`: in tiles of `tile` that share
    `overlap`, `network_batch` of them at a time. The coarse volume is noised to the time `condition_noise` first (0: it is
    not)."""

    factor: int
    tile: Sequence[int]
    overlap: float
    solver: AnySolver
    times: Sequence[int]
    condition_noise: int = 0
    detail: Detail = WHOLE
    noise: AnyNoise = GaussianNoise()
    network_batch: int = 1

    @property
    def evaluations(self) -> int:
        """NFE of a voxel and draw."""
        return len(self.times) - 1

    def tiles(self, size: Sequence[int]) -> int:
        """How many tiles cover a coarse volume of `size`."""
        return len(corners_of([n * self.factor for n in size], self.tile, self.overlap, self.factor))

    def volume(
        self,
        denoiser: AnyDenoiser,
        image: Tensor,
        seeds: Sequence[int],
        device: torch.device,
        *,
        advance: Callable[[int], None] = lambda tiles: None,
    ) -> Tensor:
        """The mean of as many draws as there are seeds, [C, *R factor] on the CPU, of a coarse image [C, *R] in [-1, 1].

        Each draw depends on its seed alone. `advance` is told of the tiles that each pass of the network finished.
        """
        low = image[None].to(device)
        # Tiles begin where coarse voxels do, as what was learned from did.
        tiled = Tiled(denoiser, self.tile, overlap=self.overlap, batch=self.network_batch, step=self.factor)
        tiled.advance = advance
        s = torch.tensor([self.condition_noise], device=device)
        total = torch.zeros(len(image), *(n * self.factor for n in image.shape[1:]))
        for seed in seeds:
            augmentation = SeededNoise([seed_of(seed, "condition")])(low, 0)
            condition = shown_coarse(low, s, augmentation, schedule=denoiser.schedule, factor=self.factor)
            noise = SeededNoise([seed], self.noise)
            begin = noise(torch.empty((1, *total.shape), device=device), 0)
            x = walk(ClippedImage(tiled, self.detail), self.solver, begin, self.times, condition, noise)
            assert condition.image is not None
            total += self.detail.decode(x, condition.image)[0].float().cpu()
        return total / len(seeds)
