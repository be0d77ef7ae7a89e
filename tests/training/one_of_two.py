"""One of the processes of a training (`python -m tests.training.one_of_two FILE`): what it has after a few updates."""

import sys

import torch
from torch import nn

from medseg_diff.data.datasets.batch import Batch, SeededDraws
from medseg_diff.device import make_fabric
from medseg_diff.training.denoising import Denoising, MaskAndImage
from medseg_diff.training.fit import FitSettings, Learners, fit
from medseg_diff.training.objective import Turn
from tests.training.test_on_a_card import learning

TOGETHER = 8  # images of an update, in all processes
SETTINGS = FitSettings(steps=5, warm_up_steps=0, learning_rate=0.02, precision="fp32")


def batches(draws):
    """Of twelve images with a mask each, which follow from their key."""
    for keys in draws:
        seeded = [torch.Generator().manual_seed(1000 * key.epoch + key.index) for key in keys]
        image = torch.stack([torch.randn(2, 8, 6, generator=each) for each in seeded]).clamp(-1, 1)
        yield Batch(image, (image > 0).float() * 2 - 1)


class Filter:
    """A convolution that is to make the mask: nothing is drawn. At the updates `spoilt` the last process has no number."""

    def __init__(self, fabric, spoilt=()):
        torch.manual_seed(0)
        self.models, self.fabric, self.spoilt = {"filter": nn.Conv2d(2, 2, 3, padding=1)}, fabric, spoilt

    def adopt(self, name, model):
        self.models = {name: model}

    def turns(self, batch: Batch, step):
        loss = (self.models["filter"](batch.image) - batch.mask).square().mean()
        last = self.fabric.global_rank == self.fabric.world_size - 1
        yield Turn("filter", loss * float("nan") if last and step in self.spoilt else loss, {})


def masks(fabric):
    """A denoiser of masks with a prior, whose times and noise are drawn in each process."""
    torch.manual_seed(0)
    whole = learning("masks with a prior")
    return Denoising(whole.denoiser, MaskAndImage(), seed=0, rank=fabric.global_rank)


def trained(fabric, objective, settings=SETTINGS):
    """What training moves, and at each update how many were left out up to there."""
    ranks, passes = fabric.world_size, settings.accumulate
    draws = SeededDraws(12, TOGETHER // passes, settings.steps * passes, seed=3, rank=fabric.global_rank, ranks=ranks)
    learners = Learners(objective, settings, fabric)
    steps = fit(objective, batches(draws), settings, fabric, learners=learners)
    skipped = torch.stack([progress.skipped.clone() for progress in steps])
    return {name: value.detach().clone() for name, value in learners.state().items()} | {"each_skipped": skipped}


def lessons(fabric):
    return {
        "filter": trained(fabric, Filter(fabric)),
        "filter, two passes": trained(fabric, Filter(fabric), SETTINGS.but(accumulate=2)),
        "filter, spoilt": trained(fabric, Filter(fabric, spoilt=(2, 3))),
        "masks": trained(fabric, masks(fabric)),
        "masks again": trained(fabric, masks(fabric)),
    }


if __name__ == "__main__":
    torch.save(lessons(make_fabric(torch.device("cpu"), "fp32")), sys.argv[1])
