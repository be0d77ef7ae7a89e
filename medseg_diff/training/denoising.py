"""Learning to denoise: a random time and fresh noise for every sample, and the denoiser's loss."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.data.datasets.labelled import UNKNOWN
from medseg_diff.diffusion.coarse import WHOLE, Detail, coarse, shown_coarse
from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import Denoiser
from medseg_diff.diffusion.hiding import Hiding, between, blurred, brain_of, shown
from medseg_diff.diffusion.losses import denoising_loss, hybrid
from medseg_diff.diffusion.noise import AnyNoise, GaussianNoise
from medseg_diff.diffusion.schedule import NoiseSchedule
from medseg_diff.seeds import seed_of
from medseg_diff.spaces import PLAIN, Space
from medseg_diff.training.objective import Turn

RIM_WIDTHS, RIM = (0.1, 0.5), 0.05  # of a gap's span: what a lesion is blurred over; all above RIM is hidden with it


class Example(NamedTuple):
    """x_0 [B, D, *S], what it is conditioned on, and how much each voxel teaches [B, 1, *S] (None: all alike)."""

    clean: Tensor
    condition: Condition = Condition()
    weight: Tensor | None = None


Pair = Callable[[Batch, int], Example]  # of a batch and its step


@dataclass(eq=False)
class Denoising:
    """A denoiser of what `pair` makes of a batch, at times `earliest` … `deepest` (None: the whole schedule)."""

    denoiser: Denoiser
    pair: Pair
    _: KW_ONLY
    seed: int
    rank: int = 0
    earliest: int = 1
    deepest: int | None = None
    noise: AnyNoise = GaussianNoise()

    def __post_init__(self) -> None:
        assert isinstance(self.denoiser.network, nn.Module)
        self.models: dict[str, nn.Module] = {"denoiser": self.denoiser.network}

    def adopt(self, name: str, model: nn.Module) -> None:
        self.denoiser.network = model

    def turns(self, batch: Batch, step: int) -> Iterator[Turn]:
        clean, condition, weight = self.pair(batch, step)
        own = seed_of(self.seed, "denoising", self.rank, step)
        deepest = self.deepest or self.denoiser.schedule.length
        t, noise = draw_times_and_noise(clean, own, earliest=self.earliest, deepest=deepest, kind=self.noise)
        losses = denoising_loss(self.denoiser, clean, t, noise, condition, weight)
        loss = hybrid(losses, self.denoiser.schedule.length, dice=self.denoiser.dice).mean()
        yield Turn("denoiser", loss, {f"loss_{name}": value.detach().mean() for name, value in losses.items()})


@dataclass(frozen=True)
class MaskAndImage:
    """x_0 is the mask in its space, conditioned on the MR channels."""

    space: Space = PLAIN

    def __call__(self, batch: Batch, step: int) -> Example:
        assert batch.mask is not None
        return Example(self.space.encode(batch.mask), self.space.condition(Condition(image=batch.image)))


@dataclass(frozen=True)
class ImageAndLabel:
    """x_0 is the image in its space, conditioned on its label, or on nothing where `dropout` is None.

    A share `dropout` of the labels, and those that are not known, are left out: they teach it the unconditional prediction.
    """

    space: Space = PLAIN
    dropout: float | None = None
    seed: int = 0
    rank: int = 0

    def __call__(self, batch: Batch, step: int) -> Example:
        return Example(self.space.encode(batch.image), self.space.condition(self._condition(batch.label, step)))

    def _condition(self, label: Tensor | None, step: int) -> Condition:
        if self.dropout is None:
            return Condition()
        assert label is not None
        dropped = some_of(label, self.dropout, seed_of(self.seed, "label dropout", self.rank, step))
        return Condition(label=label.clamp(min=0)).drop(dropped | (label == UNKNOWN))


@dataclass(frozen=True)
class ImageAndCovariates:
    """x_0 is the image in its space, conditioned on covariates and on the mask, where a batch has any; those of a share
    `dropout` of the images are left out."""

    space: Space
    dropout: float
    seed: int = 0
    rank: int = 0

    def __call__(self, batch: Batch, step: int) -> Example:
        condition = described(batch)
        if condition.batch is not None and self.dropout:
            own = seed_of(self.seed, "covariate dropout", self.rank, step)
            condition = condition.drop(some_of(batch.image, self.dropout, own))
        return Example(self.space.encode(batch.image), condition)


def described(batch: Batch) -> Condition:
    """Its covariates, and its mask as classes of 0 and 1, as far as it has any."""
    mask = None if batch.mask is None else (batch.mask > 0).to(batch.image.dtype)
    return Condition(covariates=batch.covariates, mask=mask)


@dataclass(frozen=True)
class FineFromCoarse:
    """x_0 is the image, or its detail, conditioned on the means of its blocks of `factor` voxels along each axis, noised to
    a time drawn from 0 … `noisiest`, which the network is told."""

    schedule: NoiseSchedule
    factor: int
    noisiest: int
    detail: Detail = WHOLE
    seed: int = 0
    rank: int = 0

    def __call__(self, batch: Batch, step: int) -> Example:
        image = coarse(batch.image, self.factor)
        own = seed_of(self.seed, "condition noise", self.rank, step)
        s, noise = draw_times_and_noise(image, own, earliest=0, deepest=self.noisiest)
        shown = shown_coarse(image, s, noise, schedule=self.schedule, factor=self.factor)
        assert shown.image is not None
        return Example(self.detail.encode(batch.image, shown.image), shown)


@dataclass(frozen=True)
class ImageOnItself:
    """x_0 is the image, and the condition is the image too: what a denoiser takes over of it is for its network to limit."""

    space: Space = PLAIN

    def __call__(self, batch: Batch, step: int) -> Example:
        clean = self.space.encode(batch.image)
        return Example(clean, Condition(image=clean))


@dataclass(frozen=True)
class HiddenTissue:
    """x_0 is the image, conditioned on what is left of it when a part of the brain is hidden; of that the healthy voxels
    teach, so that the denoiser says what healthy tissue would be there whatever lies around the gap.

    The gap is what `hiding` draws; in half of the images it also holds the lesion and some of what surrounds it. An image
    without a mask is healthy.
    """

    hiding: Hiding
    space: Space = PLAIN
    background: float = -1.0
    seed: int = 0
    rank: int = 0

    def __call__(self, batch: Batch, step: int) -> Example:
        image, brain = batch.image, brain_of(batch.image, self.background)
        lesion = (batch.mask > 0).any(dim=1, keepdim=True) if batch.mask is not None else torch.zeros_like(brain)
        # Drawn on the CPU: widths are wanted as numbers, and no step has to wait for a GPU to tell them.
        generator = torch.Generator().manual_seed(seed_of(self.seed, "hiding", self.rank, step))
        share, covered, drawn = torch.rand(3, len(image), generator=generator)
        noise = torch.empty(len(image), 1, *image.shape[2:], dtype=image.dtype).normal_(generator=generator)
        rim = self.hiding.span(image.shape[2:]) * between(RIM_WIDTHS, float(drawn[1 % len(drawn)]))
        covered, noise = (part.to(image.device, non_blocking=True) for part in (covered, noise))
        hidden = self.hiding.drawn(noise, brain, torch.stack([share, drawn]))
        around = blurred(lesion.to(image.dtype), rim) > RIM
        hidden |= around & brain & (covered < 0.5).view(-1, *(1,) * (image.ndim - 1))
        clean = self.space.encode(image)
        return Example(clean, shown(clean, hidden), (hidden & ~lesion).to(clean.dtype))


def some_of(part: Tensor, share: float, seed: int) -> Tensor:
    """Which samples of a part of a batch [B, …] are drawn, each with the probability `share`: [B] booleans."""
    generator = torch.Generator(part.device).manual_seed(seed)
    return torch.rand(len(part), generator=generator, device=part.device) < share


def draw_times_and_noise(
    clean: Tensor, seed: int, *, deepest: int, earliest: int = 1, kind: AnyNoise = GaussianNoise()
) -> tuple[Tensor, Tensor]:
    """Times [B] spread evenly over earliest … deepest (a random offset, then stratified: less variance), and noise like
    `clean`."""
    generator = torch.Generator(clean.device).manual_seed(seed)
    batch, count = len(clean), deepest - earliest + 1
    share = torch.rand(batch, generator=generator, device=clean.device)
    place = (torch.randperm(batch, generator=generator, device=clean.device) + share) / batch
    t = (place * count).long().clamp(max=count - 1) + earliest
    return t, kind.draw(clean, generator)


def validation_loss(
    denoiser: Denoiser,
    pair: Pair,
    batches: Iterable[Batch],
    fabric: Fabric,
    *,
    seed: int,
    noise: AnyNoise,
    times: tuple[int, int] | None = None,
) -> float:
    """The mean simple loss of a denoiser on batches, at `times` from the first to the second (None: the whole schedule) and
    with noise that are the same at every call."""
    (earliest, deepest), losses, start = times or (1, denoiser.schedule.length), [], 0
    with torch.no_grad(), fabric.autocast():
        for batch in batches:
            clean, condition, weight = pair(batch.to(fabric.device), start)
            own = seed_of(seed, "validation", start)
            t, drawn = draw_times_and_noise(clean, own, earliest=earliest, deepest=deepest, kind=noise)
            losses.append(denoising_loss(denoiser, clean, t, drawn, condition, weight)["simple"].float())
            start += len(batch)
    return float(torch.cat(losses).mean())
