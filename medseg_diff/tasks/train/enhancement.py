"""`train-enhance`: a table of cases in, a run folder out with the network that draws scans at a finer resolution."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from lightning_fabric import Fabric
from torch import Tensor

from medseg_diff.data.datasets.batch import Batch, Items, Key
from medseg_diff.data.datasets.cache import prepare_training_case
from medseg_diff.data.datasets.slices import PieceDataset
from medseg_diff.diffusion.coarse import coarse, enlarged
from medseg_diff.evenly import evenly_spaced
from medseg_diff.metrics.likeness import psnr
from medseg_diff.recipes.enhancement import DENOISER, EnhancementRecipe
from medseg_diff.recipes.typicality import write_typicality
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.train.study import cases_of, cut_study, learned_from_phantoms
from medseg_diff.tasks.train.train import Material, TrainVerb, averaged, say_how_long
from medseg_diff.tasks.train.trajectories import draw_beside
from medseg_diff.tasks.training_options import TrainingRun
from medseg_diff.training.denoising import Denoising, FineFromCoarse, validation_loss
from medseg_diff.training.estimate import Work
from medseg_diff.training.fit import Progress
from medseg_diff.training.job import Bench, Phase, seeded

SHOWN_STEPS = 10


@with_plain_keywords
def train_enhance(
    data: Annotated[Path, "Table of cases (CSV)."],
    training: TrainingRun,
    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps."] = "auto",
    data_root: Annotated[Path | None, "Folder that paths in the table are relative to [the table's]."] = None,
) -> Run:
    """Train the network that draws scans at a finer resolution, from scans of that resolution: those of the table `data`.

    Returns the run: weights/denoiser.safetensors.
    Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; Diverged.
    """
    return VERB.run(data, training, device=device, data_root=data_root)


@dataclass(frozen=True)
class ImagesAlone:
    """Pieces without their masks, which teach nothing here."""

    pieces: PieceDataset

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {"image": self.pieces[key]["image"]}


def _phases(given: Material[EnhancementRecipe], bench: Bench) -> Iterator[Phase]:
    recipe, fabric = given.recipe, bench.fabric
    trained, validated = cases_of(given.manifest)
    study = cut_study(
        recipe,
        trained,
        validated,
        lambda case: prepare_training_case(
            case, recipe.channels, recipe.preparation, given.cache, needs_reference=False
        ),
        lambda cases: {},
    )
    examples = ImagesAlone(study.training)
    chosen = evenly_spaced(range(len(study.held)), recipe.validation.images)
    held = torch.stack([study.held.plain(number)["image"] for number in chosen])
    say_how_long([work_of(recipe, bench, examples)], bench, quick="quick/cascade_x2")
    seed = recipe.training.seed
    built = seeded(seed, recipe.build_denoiser)
    given.warmed(DENOISER, built.module())
    pair = FineFromCoarse(
        recipe.schedule, recipe.factor, recipe.condition_noise, recipe.detail, seed=seed, rank=fabric.global_rank
    )

    image, latest = held[: recipe.validation.drawn], dict[int, Tensor]()
    low = enlarged(coarse(image, recipe.factor), recipe.factor)

    def drawn_now(progress: Progress) -> Tensor:
        """The same pieces by the weights of this step, drawn once for their numbers and their picture."""
        if progress.step not in latest:
            latest.clear()
            latest[progress.step] = drawn(progress, recipe, image, fabric)
        return latest[progress.step]

    def validate(progress: Progress) -> dict[str, float]:
        fixed = replace(pair, noisiest=recipe.sampling.condition_noise, rank=0)
        batches = [Batch(part) for part in held.split(recipe.training.passes_batch)]
        loss = validation_loss(averaged(progress, recipe), fixed, batches, fabric, seed=seed, noise=recipe.noise)
        sharpness = {"val_psnr": drawn_now(progress), "val_psnr_linear": low}
        return {"val_loss": loss} | {name: float(psnr(fine, image).mean()) for name, fine in sharpness.items()}

    def draw(progress: Progress, path: Path) -> None:
        shown = {"held out": image, "coarse": low, "drawn": drawn_now(progress)}
        draw_beside(shown, path, orientation=recipe.preparation.orientation)

    yield Phase(
        DENOISER,
        Denoising(built, pair, seed=seed, rank=fabric.global_rank, noise=recipe.noise),
        examples,
        recipe.training,
        validate=validate,
        draw=draw,
        prefix="denoiser_",
        weights={DENOISER: {"best": DENOISER}},
    )
    if fabric.global_rank == 0:
        write_typicality(bench.run, study.appearances, phantoms=learned_from_phantoms(given.manifest))


VERB = TrainVerb("train-enhance", "enhance", "cascade_x2", _phases)


def drawn(progress: Progress, recipe: EnhancementRecipe, image: Tensor, fabric: Fabric) -> Tensor:
    """Images [N, C, *S] drawn again from their coarse forms, by the averaged weights in a few steps."""
    enhancing = recipe.enhancing(steps=min(recipe.sampling.steps, SHOWN_STEPS))
    denoiser, low = averaged(progress, recipe), coarse(image, recipe.factor)
    with fabric.autocast():
        seeds = [seed_of(recipe.training.seed, "shown", number) for number in range(len(low))]
        parts = [enhancing.volume(denoiser, each, [seed], fabric.device) for each, seed in zip(low, seeds, strict=True)]
    return torch.stack(parts)


def work_of(recipe: EnhancementRecipe, bench: Bench, examples: Items) -> Work:
    """What is left to do."""
    channels = len(recipe.channels)
    return Work(
        lambda: recipe.build_denoiser().module(),
        bench.left(DENOISER, recipe.training),
        recipe.network.width,
        recipe.view.size,
        channels,
        image_channels=channels,
        examples=examples,
    )
