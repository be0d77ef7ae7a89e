"""One volume healed slice by slice in batches of one size: the healed brain, the raw maps, and what the guards need."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medseg_diff.data.transforms import Prepared
from medseg_diff.device import autocast
from medseg_diff.errors import UsageError
from medseg_diff.methods.anomaly.inversion import saliency
from medseg_diff.tasks.apply.healer import Healer

if TYPE_CHECKING:
    from medseg_diff.methods.anomaly.inversion import Healed

CHECKED_SLICES = 4  # of each volume, brought back at scale 0
Advance = Callable[[int], None]


@dataclass(frozen=True)
class HealedVolume:
    """On the network's grid, CPU: `healed` [C, *S] (the image itself where nothing was done), the raw `score` [1, *S] and
    further raw maps, saliency and scale_0, where they were asked for.

    For each of `slices` [N]: p(healthy) `before`, `believed` [N, steps + 1] from L down to the healed image, and `drift`,
    the mean raw score over its brain. `round_trip` is the relative error of some slices that came back at scale 0.
    """

    slices: list[int]
    healed: Tensor
    score: Tensor
    rivals: dict[str, Tensor]
    before: np.ndarray
    believed: np.ndarray
    drift: np.ndarray
    round_trip: float | None


def heal_volume(
    prepared: Prepared,
    healer: Healer,
    *,
    slices: Sequence[int] | None = None,
    rivals: bool = False,
    advance: Advance = lambda slices: None,
) -> HealedVolume:
    """Heal the slices that hold brain (or those of `slices`); `rivals` adds the saliency and the map at scale 0.

    Each batch has `network_batch` slices, the last one padded, so that the networks always see one shape; one batch at a
    time is on the device. Raises: UsageError where the numbers run away, as they do under too large a scale.
    """
    view = healer.recipe.view
    wanted = view.for_sampling(prepared.brain) if slices is None else list(slices)
    image, brain = view.cut(prepared.image), view.cut(prepared.brain)
    healed, score = image.clone(), torch.zeros(len(image), 1, *image.shape[2:])
    maps = {name: torch.zeros_like(score) for name in (("saliency", "scale_0") if rivals else ())}
    checked = set(np.linspace(0, len(wanted) - 1, min(CHECKED_SLICES, len(wanted))).round().astype(int).tolist())
    before, believed, kept = [], [], []
    frame = Frame.around(image.shape[2:], view.size, prepared.preparation.background)
    with autocast(healer.device, healer.precision):
        for places in batches(wanted, healer.healing.network_batch):
            here = len(places.wanted)
            batch = frame.put(image[places.padded]).to(healer.device).contiguous()
            found = healer.heal(batch)
            _check_finite(found, healer)
            healed[places.wanted] = frame.take(found.healed)[:here].cpu()
            score[places.wanted] = frame.take(healer.difference(batch, found.healed))[:here].cpu()
            assert found.before is not None and found.believed is not None
            before.append(found.before[:here].cpu().numpy())
            believed.append(found.believed[:, :here].cpu().numpy())
            for number in sorted(checked & places.numbers):
                one = slice(number - places.first, number - places.first + 1)
                kept.append((batch[one].clone(), found.noisy[one].clone()))
            if rivals:
                for name, values in _rivals(healer, batch, found).items():
                    maps[name][places.wanted] = frame.take(values)[:here].cpu()
            advance(here)
        trip = _round_trip(healer, kept, frame, brain[[wanted[number] for number in sorted(checked)]])
    score, maps = score * brain, {name: values * brain for name, values in maps.items()}
    area = brain[wanted].flatten(1).sum(1).clamp(min=1)
    return HealedVolume(
        wanted,
        view.join(healed),
        view.join(score),
        {name: view.join(values) for name, values in maps.items()},
        np.concatenate(before) if before else np.zeros(0, np.float32),
        np.concatenate(believed, axis=1).T if believed else np.zeros((0, healer.healing.steps + 1), np.float32),
        (score[wanted].flatten(1).sum(1) / area).numpy(),
        trip,
    )


@dataclass(frozen=True)
class Places:
    """One batch of slices: those `wanted`, `padded` with the last one to the batch's size, counted from `first`."""

    wanted: list[int]
    padded: list[int]
    first: int

    @property
    def numbers(self) -> set[int]:
        return set(range(self.first, self.first + len(self.wanted)))


def batches(slices: Sequence[int], size: int) -> Iterator[Places]:
    """Slices in batches of exactly `size`."""
    for first in range(0, len(slices), size):
        wanted = list(slices[first : first + size])
        yield Places(wanted, wanted + [wanted[-1]] * (size - len(wanted)), first)


@dataclass(frozen=True)
class Frame:
    """Background around slices smaller than those of the training: a classifier that pools has never seen less of it."""

    sides: tuple[int, int, int, int]  # left, right of the last axis, then of the one before, as torch pads
    background: float

    @classmethod
    def around(cls, size: Sequence[int], trained: Sequence[int], background: float) -> "Frame":
        missing = [max(wanted - n, 0) for n, wanted in zip(size, trained, strict=True)]
        first, last = [(extra // 2, extra - extra // 2) for extra in missing]
        return cls((*last, *first), background)

    def put(self, slices: Tensor) -> Tensor:
        """[B, C, X, Y] with the frame around it."""
        return functional.pad(slices, self.sides, value=self.background)

    def take(self, slices: Tensor) -> Tensor:
        """[B, C, X, Y] without its frame."""
        left, right, top, bottom = self.sides
        return slices[:, :, top : slices.shape[2] - bottom, left : slices.shape[3] - right]


def _rivals(healer: Healer, batch: Tensor, found: "Healed") -> dict[str, Tensor]:
    """What the same networks give for free: one backward pass, and the way back without guidance."""
    levels = healer.levels
    shown = saliency(
        healer.classifier,
        batch,
        t=levels[len(levels) // 2],
        schedule=healer.recipe.schedule,
        image_scale=healer.recipe.image_scale,
    )
    return {"saliency": shown, "scale_0": healer.difference(batch, healer.back_unguided(found.noisy))}


def _round_trip(healer: Healer, kept: Sequence[tuple[Tensor, Tensor]], frame: Frame, brain: Tensor) -> float | None:
    """Root mean square of what a few slices lost at scale 0, relative to their own deviation inside the brain."""
    if not kept:
        return None
    image = frame.take(torch.cat([image for image, _ in kept])).cpu()
    noisy = torch.cat([noisy for _, noisy in kept]).split(healer.healing.network_batch)
    back = frame.take(torch.cat([healer.back_unguided(part) for part in noisy])).cpu()
    inside = brain.expand_as(image)
    lost, own = (image - back)[inside].square().mean().sqrt(), image[inside].std()
    return float(lost / own.clamp(min=1e-6))


def _check_finite(found: "Healed", healer: Healer) -> None:
    if not torch.isfinite(found.healed).all():
        raise UsageError(
            f"the way back at scale {healer.healing.scale:g} ran out of all numbers", fix="lower --scale or --depth"
        )
