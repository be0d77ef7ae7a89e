"""The inversion guided by a classifier of `benchmarks.reference`: the recipe's, and the paper's, one slice at a time."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.speed import with_torch_norms
from medseg_diff.device import autocast
from medseg_diff.diffusion import Condition, SeededNoise
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.methods.anomaly.inversion import Inversion
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.spaces import space_of
from medseg_diff.training.fit import channels_last

CONFIG, OVERRIDES = "quick/guided", ("deepest=null", "engine.condition_on_healthy=false", "engine.scale_at=null")
DEPTH = 500  # of the paper, in as many steps
ROUGH = 0.02  # of weights that begin at zero


@dataclass(frozen=True)
class GuidedSubject:
    """A recipe's denoiser and classifier with random weights: for our engine, and as PyTorch's modules in float32."""

    recipe: AnomalyRecipe
    networks: Networks
    denoiser: nn.Module
    classifier: nn.Module

    @classmethod
    def made(cls) -> "GuidedSubject":
        recipe = load_recipe(CONFIG, task="anomaly", overrides=OVERRIDES)
        assert isinstance(recipe, AnomalyRecipe)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            built = [recipe.parts()[name]().eval() for name in ("denoiser", "classifier")]
            for weight in (weight for network in built for weight in network.parameters()):
                if not weight.any():
                    nn.init.normal_(weight, std=ROUGH)
        plainly = [with_torch_norms(copy.deepcopy(network)) for network in built]
        denoiser, classifier = (channels_last(network) for network in built)
        ours = recipe.denoiser.around(denoiser, recipe.schedule)
        networks = Networks(
            ours, classifier, recipe.channels, space_of(recipe.space, {}), recipe.preparation.background
        )
        return cls(recipe, networks, *plainly)

    @property
    def engine(self) -> Inversion:
        assert isinstance(self.recipe.engine, Inversion)
        return self.recipe.engine

    def ours(self, images: Tensor, *, precision: str = "bf16", engine: Inversion | None = None) -> Tensor:
        """Maps [N, 1, H, W] of images [N, C, H, W]."""
        noise = SeededNoise(list(range(len(images))), self.recipe.noise)
        with autocast(torch.device("cpu"), precision):
            return (engine or self.engine).score(images, self.networks, noise).score.float()

    def reference(self, image: Tensor, times: list[int]) -> Tensor:
        """The map [1, H, W] of one slice [1, C, H, W], encoded along these times and decoded back."""

        def said(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda x, t: network(x, t, Condition())

        schedule, scale = self.recipe.schedule, self.engine.scale
        networks = said(self.denoiser), said(self.classifier)
        return plain.anomaly_map(*networks, schedule, image, times=times, scale=scale)
