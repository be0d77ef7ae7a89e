"""Films of models at work on a few validation slices, the same ones every time: noise to mask, scan to healed scan."""

from pathlib import Path
from typing import TYPE_CHECKING

from medseg_diff.diffusion import DDIM, Condition, SeededNoise, walk
from medseg_diff.diffusion.denoiser import AnyDenoiser
from medseg_diff.methods.filming import Film, film
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.reporting.panels import Plane, shown_channels
from medseg_diff.reporting.strips import Line, Picture, displayed, strip
from medseg_diff.seeds import seed_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FILM_STEPS = 20  # of healing: a film need not take the paper's thousand calls


def film_segmentation(
    denoiser: AnyDenoiser,
    recipe: SegmentationRecipe,
    image: "Tensor",
    mask: "Tensor",
    path: Path,
    *,
    device: "torch.device | str",
) -> None:
    """Draw one member of a few slices (`validation.film`), step by step: x_t above, the belief about the mask below.

    image [N, C, *S] and mask [N, R, *S] booleans are all validation slices (or patches); the outermost region is shown.
    Written to `path` as PNG. Raises: EnvironmentFault.
    """
    import torch

    chosen = worth_showing(mask[:, 0], recipe.validation.film)
    seeds = [seed_of(recipe.training.seed, "film", number) for number in chosen]
    noise = SeededNoise(seeds)
    begin = noise(torch.empty((len(chosen), mask.shape[1], *mask.shape[2:]), device=device), 0)
    plan = recipe.plan(members=1)
    seen = film(denoiser, plan.solver, begin, plan.times, Condition(image=image[chosen].to(device)), noise)
    lines = [
        line
        for place, number in enumerate(chosen)
        for line in _lines(place, number, image[number, shown_channel(recipe)], mask[number, 0], seen)
    ]
    columns = ["image", *(f"t = {frame.t}" for frame in seen.frames), "probability"]
    strip(lines, columns=columns, path=path)


def film_healing(
    denoiser: AnyDenoiser,
    guided: AnyDenoiser,
    recipe: AnomalyRecipe,
    image: "Tensor",
    label: "Tensor",
    path: Path,
    *,
    device: "torch.device | str",
) -> None:
    """Draw the way back of a few slices (`validation.film`), diseased ones where there are: x_t above, the belief below.

    image [N, C, *S] and label [N] of 0 and 1 are all validation slices. They are encoded with `denoiser` and decoded with
    `guided`, in FILM_STEPS at most. Written to `path` as PNG. Raises: EnvironmentFault.
    """
    chosen = worth_showing(label[:, None] > 0, recipe.validation.film)
    levels = recipe.heals(steps=min(recipe.healing.steps, FILM_STEPS)).levels(recipe.schedule)
    clean = image[chosen].to(device)
    noisy = walk(denoiser, DDIM(), clean * recipe.image_scale, levels)
    seen = film(guided, DDIM(), noisy, levels[::-1], recipe.healing.way_back(clean))
    channel = recipe.channels.index(shown_channels(recipe.channels)[0])
    lines = []
    for place, number in enumerate(chosen):
        scan = displayed(image[number, channel].float().cpu().numpy())
        window = float(scan.min()), float(scan.max())

        def shown(tensor: "Tensor", place: int = place, window: tuple[float, float] = window) -> Picture:
            return Picture(displayed(tensor[place, channel].numpy() / recipe.image_scale), *window)

        kind = "diseased" if label[number] else "healthy"
        lines.append(
            Line(
                f"slice {number + 1}\n{kind}",
                [Picture(scan, *window), *(shown(frame.noisy) for frame in seen.frames), None],
            )
        )
        lines.append(Line("belief", [None, *(shown(frame.clean) for frame in seen.frames), shown(seen.end)]))
    strip(lines, columns=["image", *(f"t = {frame.t}" for frame in seen.frames), "healed"], path=path)


def worth_showing(mask: "Tensor", count: int) -> list[int]:
    """Numbers of at most `count` slices of mask [N, *S], spread over those with something in them (over all, if none)."""
    marked = mask.flatten(1).any(1).nonzero().flatten().tolist() or list(range(len(mask)))
    count = min(count, len(marked))
    return [marked[int((place + 0.5) * len(marked) / count)] for place in range(count)]


def shown_channel(recipe: SegmentationRecipe) -> int:
    """The channel worth a picture among those that the network is shown, itself and not its neighbours in 2.5D."""
    number, among = recipe.channels.index(shown_channels(recipe.channels)[0]), recipe.view.shown(1)
    return number * among + among // 2


def _lines(place: int, number: int, image: "Tensor", reference: "Tensor", seen: Film) -> list[Line]:
    """Two lines of one slice: image and x_t; reference and belief."""
    middle = _fullest(reference)

    def plane(tensor: "Tensor") -> Plane:
        values = tensor.float().cpu().numpy()
        return displayed(values if values.ndim == 2 else values[..., middle])

    outline = plane(reference) > 0.5
    grey = plane(image)
    window = float(grey.min()), float(grey.max())
    noisy = [Picture(plane(frame.noisy[place, 0]), -2.0, 2.0) for frame in seen.frames]
    clean = [Picture(plane(frame.clean[place, 0]), -1.0, 1.0) for frame in seen.frames]
    end = Picture(plane((seen.end[place, 0] + 1) / 2), outline=outline)
    return [
        Line(f"slice {number + 1}\nnoisy mask", [Picture(grey, *window), *noisy, None]),
        Line("belief", [Picture(grey, *window, outline), *clean, end]),
    ]


def _fullest(reference: "Tensor") -> int:
    """The last axis's plane with most in it; the middle one where there is nothing. Of no use in 2D."""
    if reference.ndim == 2:
        return 0
    areas = reference.flatten(0, -2).sum(0)
    return int(areas.argmax()) if areas.any() else reference.shape[-1] // 2
