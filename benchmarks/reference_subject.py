"""The network, weights and scan of `benchmarks.reference`, and ways to take one step of an ensemble of it."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.speed import MonaiDiffusion
from benchmarks.volumes import phantoms_of
from medseg_diff.data.datasets.batch import Batch
from medseg_diff.data.transforms import Prepared, prepare_case
from medseg_diff.data.views import fit_to
from medseg_diff.device import autocast
from medseg_diff.diffusion import Condition, Denoiser
from medseg_diff.methods.sampled_segmentation import sample_masks
from medseg_diff.networks.encoder import padded
from medseg_diff.networks.monai_unet import MonaiUNet
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.training.denoising import Denoising, MaskAndImage
from medseg_diff.training.fit import channels_last

CONFIG = "quick/mask_logits"
NETWORK = "network={kind: monai_unet, widths: [32, 64, 64], blocks: [1, 1, 1], attention: [2], head_width: 64}"
OVERRIDES = (
    NETWORK,
    "sampling.cut={kind: half}",
    "sampling.mirrors=[]",
    "sampling.members=5",
    "sampling.network_batch=30",
)
CPU = torch.device("cpu")
MEMBERS, TOGETHER = 5, 6  # of a slice, and slices whose members share a batch
PLANE_MM = 240  # of a whole slice
ROUGH = 0.02  # of weights that begin at zero


@dataclass(frozen=True)
class Subject:
    """One recipe around MONAI's network, with random weights, and a phantom of a head's usual size."""

    recipe: SegmentationRecipe
    ours: Denoiser
    theirs: nn.Module
    case: Prepared

    @classmethod
    def made(cls, shape: tuple[int, int, int], changes: Sequence[str] = ()) -> "Subject":
        recipe = load_recipe(CONFIG, task="segment", overrides=[*OVERRIDES, *changes])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            ours = recipe.build_denoiser()
            for weight in ours.parameters():
                if not weight.any():
                    nn.init.normal_(weight, std=ROUGH)
        assert isinstance(ours.network, MonaiUNet)
        theirs = plain.monai_network(ours.network)
        channels_last(ours.network).eval()
        return cls(recipe, ours, theirs, prepare_case(phantoms_of(shape)[0], recipe.preparation))

    @cached_property
    def images(self) -> Tensor:
        """Every slice [N, C, H, W], cut to where the brain is."""
        return padded(self.recipe.view.cut(self.case.image), self.recipe.network.step).contiguous()

    @cached_property
    def whole(self) -> Tensor:
        """Every slice as it was scanned, not cut to the brain."""
        background = self.recipe.preparation.background
        plane = [round(PLANE_MM / mm) for mm in self.case.spacing_mm[:2]]
        return torch.stack([fit_to(plane, image, fill=background) for image in self.images])

    @cached_property
    def shown(self) -> list[int]:
        """The slices that hold brain."""
        return self.recipe.view.for_sampling(self.case.brain)

    def some(self, number: int) -> list[int]:
        """Slices from the middle of the brain."""
        middle = len(self.shown) // 2
        return self.shown[middle - number // 2 :][:number]

    def segment(self, slices: list[int], *, precision: str = "bf16", **changes: int) -> Tensor:
        """Our ensembles, [members, len(slices), H, W], drawn as the recipe says but for `changes`."""
        probability = torch.zeros(MEMBERS, len(self.images), *self.images.shape[2:])
        drawn = sample_masks(
            self.recipe.for_masks(self.ours),
            self.images,
            slices,
            self.recipe.plan(**changes),
            regions=1,
            seed_of=seed_of,
        )
        with autocast(CPU, precision):
            for sample, mask in drawn:
                probability[sample.member, sample.slice] = mask[0]
        return probability[:, slices]


def passes(subject: Subject) -> dict[str, Callable[[], object]]:
    """One step of the ensemble of a slice, the reference first and then with one thing more each; the last of six slices."""
    image, t = subject.images[subject.some(1)], torch.tensor([500])
    x = torch.randn(MEMBERS, 1, *image.shape[2:], generator=torch.Generator().manual_seed(0))
    layered = channels_last(copy.deepcopy(subject.theirs))

    def one_by_one(network: nn.Module, precision: str) -> None:
        with torch.no_grad(), autocast(CPU, precision):
            for member in x.split(1):
                network(torch.cat([member, image], dim=1), timesteps=t)

    def together(network: Callable[..., object], slices: int) -> None:
        many = MEMBERS * slices
        with torch.no_grad(), autocast(CPU, "bf16"):
            network(x.repeat(slices, 1, 1, 1), t, Condition(image=image.expand(many, -1, -1, -1)))

    return {
        "reference": partial(one_by_one, subject.theirs, "fp32"),
        "channels last": partial(one_by_one, layered, "fp32"),
        "bf16": partial(one_by_one, layered, "bf16"),
        "members in one batch": partial(together, MonaiDiffusion(layered, 1), 1),
        "norms of ours": partial(together, subject.ours.network, 1),
        "six slices in one batch": partial(together, subject.ours.network, TOGETHER),
    }


def our_training(recipe: SegmentationRecipe, network: nn.Module, batch: Batch) -> Iterator[None]:
    """The losses and updates of our training on one batch; `dice` is 0, as the reference has none."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    settings = recipe.denoiser.but(dice=0)
    objective = Denoising(settings.around(network, recipe.schedule), MaskAndImage(recipe.space), seed=0)
    network.train()
    for step in itertools.count():
        with autocast(CPU, "bf16"):
            turns = list(objective.turns(batch, step))
        for turn in turns:
            turn.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield
