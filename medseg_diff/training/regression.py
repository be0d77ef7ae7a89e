"""Learning to read covariates off an image: what measures synthetic images, and whose features say what looks alike."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg_diff.data.datasets.batch import Batch
from medseg_diff.training.objective import Turn


@dataclass(eq=False)
class Regression:
    """The mean squared error of every covariate, each of them in [0, 1] over its range."""

    regressor: nn.Module

    def __post_init__(self) -> None:
        self.models: dict[str, nn.Module] = {"regressor": self.regressor}

    def adopt(self, name: str, model: nn.Module) -> None:
        self.regressor = model

    def turns(self, batch: Batch, step: int) -> Iterator[Turn]:
        assert batch.covariates is not None
        said = measured(self.regressor, batch.image)
        yield Turn("regressor", (said - batch.covariates).square().mean(), {})


def measured(regressor: nn.Module, image: Tensor) -> Tensor:
    """The covariates [B, K] that a network reads off images [B, C, *S], each in [0, 1] over its range."""
    said = regressor(image, torch.ones(1, device=image.device))  # of all times the one with the least noise
    assert isinstance(said, Tensor)
    return said.float()
