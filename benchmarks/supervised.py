"""Supervised baselines, image to mask: trained by our loop on our slices, written as `segment` writes, scored by `evaluate`.

A deterministic network has one opinion: its probability is the sigmoid, its uncertainty p (1 - p), its only member its
mask. `level_sets` turns the probability into as many nested masks as one likes: the cheapest ensemble there is.
"""

import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg_diff.data import geometry
from medseg_diff.data.datasets.batch import Batch, SeededDraws, batches
from medseg_diff.data.datasets.slices import PieceDataset
from medseg_diff.data.geometry import spacing_of
from medseg_diff.data.reading import read_case
from medseg_diff.data.results import SCHEMA
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Prepared, prepare_case, restore
from medseg_diff.device import autocast
from medseg_diff.diffusion import Condition
from medseg_diff.diffusion.losses import soft_dice_loss
from medseg_diff.files import write_json
from medseg_diff.methods.components import HALF
from medseg_diff.methods.cuts import SpreadCut, Surfaces
from medseg_diff.methods.labels import labels_of_masks, painted
from medseg_diff.networks.prior import WithPriorSettings
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.apply.segmentation_maps import cut_masks
from medseg_diff.tasks.train.study import Study
from medseg_diff.training.denoising import Denoising, MaskAndImage
from medseg_diff.training.fit import Progress, channels_last, fit
from medseg_diff.training.objective import Objective, Turn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Loss = Callable[[Tensor, Tensor], Tensor]  # logits and mask in {0, 1}, both [B, R, *S] → []

LEVELS = SpreadCut(own=1.0)
WARM_UP_STEPS = 3
TIMED_STEPS = 12
WIDTHS = range(4, 1025, 2)
MONAI_DEPTH = 4  # levels of MONAI's network, each twice as wide as the one above


@dataclass(frozen=True)
class Baseline:
    """A network image [B, C, *S] → logits [B, R, *S], not yet trained, and the loss that trains it."""

    name: str
    network: nn.Module
    loss: Loss


def same_unet(recipe: SegmentationRecipe) -> Baseline:
    """The recipe's own U-Net (its prior, where it has one) without noise and time: image in, logits out, the loss that the
    recipe gives to logits."""
    network = recipe.network.prior if isinstance(recipe.network, WithPriorSettings) else recipe.network
    shown = recipe.view.shown(len(recipe.channels))
    with _seeded(recipe):
        unet = network.build(dims=recipe.view.dims, channels=shown, outputs=len(recipe.regions))

    def loss(logits: Tensor, mask: Tensor) -> Tensor:
        error = functional.binary_cross_entropy_with_logits(logits, mask)
        return error + recipe.denoiser.dice * soft_dice_loss(logits, 2 * mask - 1).mean()

    return Baseline("supervised U-Net, same size", WithoutTime(unet), loss)


def monai_unet(recipe: SegmentationRecipe) -> Baseline:
    """MONAI's U-Net (two residual units a level, instance norm, PReLU: its defaults) with Dice + cross-entropy.

    Its last block norms the logits of each slice, so that they tell little of how sure it is before it is trained for long.
    """
    return _monai("MONAI U-Net", _monai_unet, recipe)


def nnunet(recipe: SegmentationRecipe) -> Baseline:
    """The plain network of nnU-Net (Isensee et al. 2021) as MONAI has it, DynUNet: two convolutions a level, instance norm,
    leaky ReLU, without deep supervision, with Dice + cross-entropy."""
    return _monai("nnU-Net's network", _dynunet, recipe)


def _monai(name: str, build: Callable[[SegmentationRecipe, int], nn.Module], recipe: SegmentationRecipe) -> Baseline:
    """The narrowest with as many parameters as the recipe's network; Dice over the whole batch, as nnU-Net does in 2D."""
    from monai.losses import DiceCELoss

    wanted = parameters(recipe.build_denoiser())
    with torch.device("meta"):
        width = WIDTHS[bisect_left(WIDTHS, wanted, key=lambda width: parameters(build(recipe, width)))]
    with _seeded(recipe):
        network = build(recipe, width)
    padded = Padded(network, 2 ** (MONAI_DEPTH - 1))
    return Baseline(name, padded, DiceCELoss(sigmoid=True, batch=True))


def parameters(module: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in module.parameters())


class WithoutTime(nn.Module):
    """A diffusion network as an ordinary one: the image in the place of x_t, one fixed time, no condition."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, *S] → [B, R, *S]."""
        logits: Tensor = self.network(image, torch.ones(1, device=image.device), Condition())
        return logits


class Padded(nn.Module):
    """A network that halves its grid, for any size: the far edge is repeated to a multiple, and cut off again."""

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, *S] → [B, R, *S]."""
        missing = [side for n in reversed(image.shape[2:]) for side in (0, -n % self.multiple)]
        logits: Tensor = self.network(functional.pad(image, missing, mode="replicate"))
        return logits[(slice(None), slice(None), *(slice(n) for n in image.shape[2:]))]


class SupervisedMasks:
    """The objective: the mask from the image alone. Nothing is drawn."""

    def __init__(self, baseline: Baseline) -> None:
        self.network, self.loss = baseline.network, baseline.loss
        self.models: dict[str, nn.Module] = {"network": baseline.network}

    def adopt(self, name: str, model: nn.Module) -> None:
        self.network = model

    def turns(self, batch: Batch, step: int) -> Iterator[Turn]:
        assert batch.mask is not None
        yield Turn("network", self.loss(self.network(batch.image).float(), (batch.mask + 1) / 2), {})


def seconds_per_step(
    recipe: SegmentationRecipe, study: Study, objectives: Mapping[str, Objective], fabric: "Fabric"
) -> dict[str, float]:
    """Median seconds of a training step of each objective, loading included.

    Taken in turn, so that a busy machine slows all of them alike. The networks are trained a little by it.
    """
    return timed_in_turn({name: few_steps(recipe, study, objective, fabric) for name, objective in objectives.items()})


def few_steps(recipe: SegmentationRecipe, study: Study, objective: Objective, fabric: "Fabric") -> Iterator[Progress]:
    """A training just long enough to be timed."""
    steps = WARM_UP_STEPS + TIMED_STEPS
    return fit(objective, slices_of(recipe, study.training, steps), recipe.training.but(steps=steps), fabric)


def timed_in_turn(runs: Mapping[str, Iterator[Progress]]) -> dict[str, float]:
    """Median seconds of a step of each of `few_steps`."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(WARM_UP_STEPS + TIMED_STEPS):
        for name, run in runs.items():
            start = time.perf_counter()
            next(run).read()  # reading waits for the device
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[WARM_UP_STEPS:]) for name, taken in seconds.items()}


@dataclass(frozen=True)
class Pace:
    """How many steps a baseline may take in the seconds of the recipe's training: seconds of one step of each."""

    recipe_seconds_per_step: float
    baseline_seconds_per_step: float
    recipe_steps: int

    @property
    def baseline_steps(self) -> int:
        return max(1, round(self.recipe_steps * self.recipe_seconds_per_step / self.baseline_seconds_per_step))

    @property
    def seconds(self) -> dict[str, float]:
        """Training seconds of both by these numbers."""
        return {
            "recipe": round(self.recipe_steps * self.recipe_seconds_per_step, 2),
            "baseline": round(self.baseline_steps * self.baseline_seconds_per_step, 2),
        }


def pace_of(
    recipe: SegmentationRecipe, study: Study, build: Callable[[SegmentationRecipe], Baseline], fabric: "Fabric"
) -> Pace:
    """Time the recipe's training step beside the baseline's, on networks that are thrown away."""
    objectives: dict[str, Objective] = {
        "recipe": Denoising(recipe.build_denoiser(), MaskAndImage(recipe.space), seed=0),
        "baseline": SupervisedMasks(build(recipe)),
    }
    taken = seconds_per_step(recipe, study, objectives, fabric)
    return Pace(taken["recipe"], taken["baseline"], recipe.training.steps)


@dataclass(frozen=True)
class Trained:
    """A baseline after training: the moving average of its weights, its steps and the seconds that they took."""

    name: str
    network: nn.Module
    steps: int
    seconds: float


def train_baseline(
    baseline: Baseline, recipe: SegmentationRecipe, study: Study, fabric: "Fabric", *, steps: int
) -> Trained:
    """Train with the recipe's optimiser, batches and augmentation for `steps` steps. Raises: Diverged."""
    training = recipe.training.but(steps=steps)
    started = time.perf_counter()
    for progress in fit(SupervisedMasks(baseline), slices_of(recipe, study.training, steps), training, fabric):
        if progress.step == steps:
            progress.read()
    seconds = time.perf_counter() - started
    return Trained(baseline.name, channels_last(progress.averages["network"]).eval(), steps, seconds)


def slices_of(recipe: SegmentationRecipe, slices: PieceDataset, steps: int) -> Iterator[Batch]:
    """The batches that `train-seg` would see, for `steps` updates."""
    training = recipe.training
    draws = SeededDraws(len(slices), training.passes_batch, steps * training.accumulate, seed=training.seed)
    return batches(slices, draws, workers=training.workers)


def segment_baseline(
    trained: Trained,
    cases: Sequence[Case],
    recipe: SegmentationRecipe,
    out: Path,
    fabric: "Fabric",
    *,
    precision: str,
    level_sets: int = 1,
    cut: SpreadCut = LEVELS,
) -> None:
    """Write OUT/<case>/{mask, probability, uncertainty, members/NN}.nii.gz and case.json for `evaluate`.

    The members are `level_sets` nested masks, at evenly spaced thresholds; one is the mask itself, before components are
    removed (members of a diffusion ensemble are counted so as well). Another `cut` gives each a surface of its own.
    """
    for case in cases:
        started = time.perf_counter()
        prepared = prepare_case(read_case(case, recipe.channels, reference=False), recipe.preparation)
        read_seconds = time.perf_counter() - started
        probability, passes = _probability(trained.network, prepared, recipe, fabric, precision)
        sample_seconds = time.perf_counter() - started - read_seconds
        surfaces = cut.surfaces(
            level_sets, prepared.native_shape, spacing_of(prepared.native_affine).tolist(), seed_of(0, case.name, "cut")
        )
        _write_maps(np.clip(restore(prepared, probability), 0, 1), prepared, recipe, out / case.name, surfaces)
        seconds = {"read": read_seconds, "sample": sample_seconds, "all": time.perf_counter() - started}
        facts: dict[str, Any] = {
            "case": case.name,
            "task": "segment",
            "schema": SCHEMA,
            "model": trained.name,
            "regions": {region: list(labels) for region, labels in recipe.regions.items()},
            "mask_labels": [label._asdict() for label in labels_of_masks(recipe.regions, {}, {})],
            "members": level_sets,
            "network_passes": passes,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }
        write_json(out / case.name / "case.json", facts)


def _probability(
    network: nn.Module, prepared: Prepared, recipe: SegmentationRecipe, fabric: "Fabric", precision: str
) -> tuple[Tensor, int]:
    """Sigmoids [R, X, Y, Z] on the network's grid, 0 where a slice has no brain; and the batches that it took."""
    images = recipe.view.cut(prepared.image)
    slices = recipe.view.for_sampling(prepared.brain)
    probability = torch.zeros(len(images), len(recipe.regions), *images.shape[2:])
    at_once = recipe.sampling.network_batch
    groups = [slices[start : start + at_once] for start in range(0, len(slices), at_once)]
    with torch.no_grad(), autocast(fabric.device, precision):
        for group in groups:
            probability[group] = network(images[group].to(fabric.device)).float().sigmoid().cpu()
    return recipe.view.join(probability), len(groups)


def _write_maps(
    probability: np.ndarray, prepared: Prepared, recipe: SegmentationRecipe, folder: Path, surfaces: Surfaces
) -> None:
    """Maps on the case's own grid, with the recipe's own rules for the mask. `probability` [R, X, Y, Z]."""
    voxel_ml = geometry.voxel_ml(prepared.native_affine)
    halves = dict.fromkeys(recipe.regions, recipe.findings.threshold or HALF)
    masks, _ = cut_masks(probability, recipe, recipe.findings, halves, voxel_ml)
    for region, values in zip(recipe.regions, probability, strict=True):
        suffix = f"_{region}" if len(recipe.regions) > 1 else ""
        prepared.write(folder / f"probability{suffix}.nii.gz", values)
        prepared.write(folder / f"uncertainty{suffix}.nii.gz", values * (1 - values))
        for member in range(len(surfaces.levels)):
            inside = values > surfaces.whole(member).numpy()
            prepared.write(folder / "members" / f"{member:02d}{suffix}.nii.gz", inside.astype(np.uint8))
    prepared.write(folder / "mask.nii.gz", painted(masks, labels_of_masks(recipe.regions, {}, {})))


def _monai_unet(recipe: SegmentationRecipe, width: int) -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=recipe.view.dims,
        in_channels=len(recipe.channels),
        out_channels=len(recipe.regions),
        channels=[width * 2**level for level in range(MONAI_DEPTH)],
        strides=[2] * (MONAI_DEPTH - 1),
        num_res_units=2,
    )


def _dynunet(recipe: SegmentationRecipe, width: int) -> nn.Module:
    from monai.networks.nets import DynUNet

    strides = [1] + [2] * (MONAI_DEPTH - 1)
    return DynUNet(
        spatial_dims=recipe.view.dims,
        in_channels=len(recipe.channels),
        out_channels=len(recipe.regions),
        kernel_size=[3] * MONAI_DEPTH,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[width * 2**level for level in range(MONAI_DEPTH)],
        norm_name=("instance", {"affine": True}),
    )


@contextmanager
def _seeded(recipe: SegmentationRecipe) -> Iterator[None]:
    """Weights drawn from the recipe's seed, the global generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(recipe.training.seed, "network"))
        yield
