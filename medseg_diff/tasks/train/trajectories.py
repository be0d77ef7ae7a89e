"""Denoising trajectories of a few validation slices, the same ones every time: noise to mask, scan to healthy scan."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from medseg_diff.diffusion import AnySolver, Condition, SeededNoise, trajectory
from medseg_diff.diffusion.denoiser import AnyDenoiser
from medseg_diff.diffusion.noise import NoiseSource
from medseg_diff.evenly import evenly_spaced
from medseg_diff.methods.anomaly.engine import Networks, Reconstruction
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.reporting.panels import Plane, shown_channels
from medseg_diff.reporting.trajectories import Line, Picture, displayed, draw_lines, middle_planes, sides_of
from medseg_diff.seeds import seed_of
from medseg_diff.spaces import Space
from medseg_diff.tasks.train.labelled_study import LabelledStudy
from medseg_diff.tasks.train.study import ValidationSlices

FRAMES = 6
SHOWN_STEPS = 20  # a picture need not take the paper's thousand calls


class Frame(NamedTuple):
    """At time t: x_t and the prediction of x_0, both [B, C, *S] on the CPU."""

    t: int
    noisy: Tensor
    clean: Tensor


class Trajectory(NamedTuple):
    """Some frames of a walk, and where it ended, [B, C, *S] on the CPU."""

    frames: list[Frame]
    end: Tensor


class Shown(NamedTuple):
    """One slice in two lines, x_t above and the prediction below: their first pictures, and how a tensor [C, *S] of the
    walk becomes one."""

    title: str
    above: Picture | None
    below: Picture | None
    noisy: Callable[[Tensor], Picture]
    clean: Callable[[Tensor], Picture]
    end: Callable[[Tensor], Picture]


def record(
    denoiser: AnyDenoiser,
    solver: AnySolver,
    x: Tensor,
    times: Sequence[int],
    condition: Condition,
    noise: NoiseSource | None = None,
) -> Trajectory:
    """Walk x [B, C, *S] along `times` and keep at most FRAMES of the steps, evenly spaced, first and last included."""
    kept = set(evenly_spaced(range(len(times) - 1), FRAMES))
    frames, now = [], x
    for number, step in enumerate(trajectory(denoiser, solver, x, times, condition, noise)):
        if number in kept:
            frames.append(Frame(times[number], now.float().cpu(), step.prediction.clean.float().cpu()))
        now = step.x
    return Trajectory(frames, now.float().cpu())


def draw(recorded: Trajectory, slices: Sequence[Shown], path: Path, *, end: str) -> None:
    """Write the trajectory of a batch as a PNG, `end` the name of its last column. Raises: EnvironmentFault."""
    lines = []
    for row, shown in enumerate(slices):
        noisy = [shown.noisy(frame.noisy[row]) for frame in recorded.frames]
        clean = [shown.clean(frame.clean[row]) for frame in recorded.frames]
        lines.append(Line(shown.title, [shown.above, *noisy, None]))
        lines.append(Line("prediction", [shown.below, *clean, shown.end(recorded.end[row])]))
    draw_lines(lines, columns=["image", *(f"t = {frame.t}" for frame in recorded.frames), end], path=path)


def draw_masks(
    denoiser: AnyDenoiser, recipe: SegmentationRecipe, slices: ValidationSlices, path: Path, fabric: Fabric
) -> None:
    """One member of a few slices (`validation.trajectories`) from noise to a mask; the outermost region is shown."""
    mask, plan = slices.mask, recipe.plan(members=1)
    chosen = worth_showing(mask[:, 0], recipe.validation.trajectories)
    noise = SeededNoise([seed_of(recipe.training.seed, "film", number) for number in chosen], recipe.noise)
    begin = noise(torch.empty((len(chosen), mask.shape[1], *mask.shape[2:]), device=fabric.device), 0)
    condition = recipe.space.condition(Condition(image=slices.image[chosen].to(fabric.device)))
    with fabric.autocast():
        recorded = record(denoiser, plan.solver, begin, plan.times, condition, noise)
    channel = shown_channel(recipe)
    sides = sides_of(recipe.preparation.orientation)
    shown = [
        _shown_mask(number, slices.image[number, channel], mask[number, 0], recipe.space, sides) for number in chosen
    ]
    draw(recorded, shown, path, end="probability")


def draw_reconstruction(
    networks: Networks, recipe: AnomalyRecipe, study: LabelledStudy, path: Path, fabric: Fabric
) -> None:
    """How an engine that reconstructs decodes a few slices (`validation.trajectories`), diseased ones where there are."""
    chosen = worth_showing(study.label[:, None] > 0, recipe.validation.trajectories)
    assert isinstance(recipe.engine, Reconstruction)
    engine = recipe.engine.but(steps=min(recipe.engine.steps, SHOWN_STEPS))
    image = study.validation.image[chosen]
    noise = SeededNoise([seed_of(recipe.training.seed, "film", number) for number in chosen], recipe.noise)
    with fabric.autocast():
        x = networks.space.encode(image.to(fabric.device))
        recorded = record(*engine.decoding(x, networks, noise))
    channel = recipe.channels.index(shown_channels(recipe.channels)[0])
    sides = sides_of(recipe.preparation.orientation)

    def shown(number: int, scan: Plane) -> Shown:
        window = float(scan.min()), float(scan.max())

        def picture(x: Tensor) -> Picture:
            return Picture(displayed(networks.space.decode(x[None])[0, channel].numpy()), *window)

        title = f"slice {number + 1}\n{'diseased' if study.label[number] else 'healthy'}"
        return Shown(title, Picture(scan, *window, sides=sides), None, picture, picture, picture)

    scans = [displayed(each[channel].float().numpy()) for each in image]
    draw(recorded, [shown(number, scan) for number, scan in zip(chosen, scans, strict=True)], path, end="healthy")


def draw_beside(images: Mapping[str, Tensor], path: Path, *, orientation: str) -> None:
    """Images [N, C, *S] of each name below those of the one before, the first channel, at the grey values of the first."""
    first = next(iter(images.values()))
    window = float(first[:, 0].min()), float(first[:, 0].max())

    columns = ["axial", "coronal", "sagittal"] if first.ndim == 5 else ["axial"]

    def pictures(shown: Tensor) -> list[Picture]:
        return [
            Picture(displayed(plane), *window, sides=sides_of(orientation, name))
            for image in shown
            for name, plane in zip(columns, middle_planes(image[0].float().numpy()), strict=True)
        ]

    draw_lines([Line(name, pictures(each)) for name, each in images.items()], columns=columns * len(first), path=path)


def worth_showing(mask: Tensor, count: int) -> list[int]:
    """Numbers of at most `count` slices of mask [N, *S], spread over those with something in them (over all, if none)."""
    marked = mask.flatten(1).any(1).nonzero().flatten().tolist() or list(range(len(mask)))
    count = min(count, len(marked))
    return [marked[int((place + 0.5) * len(marked) / count)] for place in range(count)]


def shown_channel(recipe: SegmentationRecipe) -> int:
    """The channel worth a picture among those that the network is shown, itself and not its neighbours in 2.5D."""
    number, among = recipe.channels.index(shown_channels(recipe.channels)[0]), recipe.view.shown(1)
    return number * among + among // 2


def _shown_mask(number: int, image: Tensor, reference: Tensor, space: Space, sides: str) -> Shown:
    """image and reference [*S], the mask drawn in `space`; of a patch the plane with most of the reference in it."""
    middle = _fullest(reference)

    def plane(tensor: Tensor) -> Plane:
        values = tensor.float().cpu().numpy()
        return displayed(values if values.ndim == 2 else values[..., middle])

    outline, grey = plane(reference) > 0.5, plane(image)
    window = float(grey.min()), float(grey.max())
    return Shown(
        f"slice {number + 1}\nnoisy mask",
        Picture(grey, *window, sides=sides),
        Picture(grey, *window, outline, sides),
        lambda x: Picture(plane(space.decode(x)[0]), -2.0, 2.0),
        lambda x: Picture(plane(space.decode(x)[0]), -1.0, 1.0),
        lambda x: Picture(plane((space.decode(x)[0] + 1) / 2), outline=outline),
    )


def _fullest(reference: Tensor) -> int:
    """The last axis's plane with most in it; the middle one where there is nothing. Of no use in 2D."""
    if reference.ndim == 2:
        return 0
    areas = reference.flatten(0, -2).sum(0)
    return int(areas.argmax()) if areas.any() else reference.shape[-1] // 2
