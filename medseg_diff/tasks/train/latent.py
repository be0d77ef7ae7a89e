"""The latent space that a recipe's denoiser learns in: its autoencoder trained, standardised and kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg_diff.console import bar, log
from medseg_diff.data.datasets.batch import Items, Key
from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.autoencoders import Autoencoder
from medseg_diff.recipes.base import Recipe
from medseg_diff.recipes.spaces import AUTOENCODER, LatentSettings
from medseg_diff.recipes.trained import load_network
from medseg_diff.spaces import PLAIN, Space
from medseg_diff.tasks.train.trajectories import draw_beside
from medseg_diff.training.compression import Compression, Features, compression_error, decoded, latents_of
from medseg_diff.training.estimate import Work
from medseg_diff.training.fit import Progress
from medseg_diff.training.job import Bench, Phase, seeded
from medseg_diff.training.weights import save_weights

SHOWN = 3  # images of a picture
MEASURED = 64  # images trained on that mean and deviation of latents are measured on
KEPT = ("label", "covariates")  # parts of a batch that stand beside a latent


def autoencoder_phase(
    recipe: Recipe,
    autoencoder: Autoencoder,
    examples: Items,
    held: Tensor,
    bench: Bench,
    *,
    features: Features | None = None,
) -> Phase:
    """Learn to compress `examples`; the last weights are kept, and `held` [N, C, *S] says how well they do."""
    space = recipe.space
    assert isinstance(space, LatentSettings)
    settings, weights = space.training, space.compression
    channels, dims = len(recipe.channels), recipe.view.dims
    discriminator = seeded(settings.seed, lambda: weights.discriminator(dims=dims, channels=channels))
    objective = Compression(
        autoencoder, weights, features=features, discriminator=discriminator, accumulate=settings.accumulate
    )

    def again(progress: Progress, images: Tensor) -> Tensor:
        average = progress.averages[AUTOENCODER]
        assert isinstance(average, Autoencoder)
        with bench.fabric.autocast():
            return decoded(average, images.to(bench.fabric.device)).cpu()

    def draw(progress: Progress, path: Path) -> None:
        shown = {"held out": held[:SHOWN], "decoded": again(progress, held[:SHOWN])}
        draw_beside(shown, path, orientation=recipe.preparation.orientation)

    return Phase(
        AUTOENCODER,
        objective,
        examples,
        settings,
        validate=lambda progress: compression_error(again(progress, held), held),
        draw=draw,
        prefix="autoencoder_",
        weights={AUTOENCODER: {"best": AUTOENCODER}},
    )


def standardise(autoencoder: Autoencoder, images: Iterator[Tensor], bench: Bench) -> Autoencoder:
    """The trained autoencoder, its latents of mean 0 and deviation 1 over these images [1, C, *S], and its weights with what
    was measured. Again is the same: raw latents know nothing of it."""
    fabric, path = bench.fabric, bench.run.weights(AUTOENCODER)
    load_network(autoencoder, path, fabric.device)
    if fabric.global_rank == 0:
        with fabric.autocast():
            raw = latents_of(autoencoder, (image.to(fabric.device) for image in images))
        autoencoder.standardise(raw)
        save_weights(autoencoder, path)
        deviation = ", ".join(f"{value:.3g}" for value in autoencoder.deviation.flatten().tolist())
        log.info("latents of %s: deviations %s before they become 1", tuple(raw.shape[1:]), deviation)
    fabric.barrier()
    return load_network(autoencoder, path, fabric.device)


@dataclass(frozen=True)
class Encoded:
    """Items whose images were encoded once, in P passes over the data, each augmented otherwise; epochs take them in turn.

    `parts` are those of a batch, [P, N, …]: latents as its image, labels and covariates; no mask lies on their grid.
    """

    parts: Mapping[str, Tensor]

    @classmethod
    def of(cls, items: Items, space: Space, bench: Bench, *, passes: int) -> "Encoded":
        """Every process encodes all of it, one image after the other: the same latents whatever the batch."""
        device, found = bench.fabric.device, []
        with bar("encoding", passes * len(items)) as advance:
            for number in range(passes * len(items)):
                item = items[Key(*divmod(number, len(items)))]
                with bench.fabric.autocast():  # augmentation is not to be rounded
                    latent = space.encode(item["image"][None].to(device))[0].float().cpu()
                found.append({"image": latent} | {name: item[name] for name in KEPT if name in item})
                advance()
        together = {name: torch.stack([each[name] for each in found]) for name in found[0]}
        return cls({name: part.unflatten(0, (passes, len(items))) for name, part in together.items()})

    def __len__(self) -> int:
        return self.parts["image"].shape[1]

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {name: part[key.epoch % len(part), key.index] for name, part in self.parts.items()}


def examples_in(recipe: Recipe, items: Items, space: Space, bench: Bench) -> tuple[Items, Space]:
    """What the denoiser learns from, encoded once where the recipe says so, and the space it is yet to be brought to."""
    if isinstance(recipe.space, LatentSettings) and recipe.encodes_once:
        return Encoded.of(items, space, bench, passes=recipe.space.passes), PLAIN
    return items, space


def work_of_autoencoder(recipe: Recipe, bench: Bench, examples: Items | None) -> Work:
    """What is left to do for it."""
    assert isinstance(recipe.space, LatentSettings)
    return Work(
        lambda: AsNetwork(recipe.build_autoencoder()),
        bench.left(AUTOENCODER, recipe.space.training),
        recipe.space.autoencoder.width,
        recipe.view.size,
        len(recipe.channels),
        examples=examples,
    )


class AsNetwork(nn.Module):
    """An autoencoder called as every network is, for an estimate of its time."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.autoencoder.image_of(self.autoencoder.raw(x))
