"""The arithmetic of a network, counted by hand and by the benchmark; and a limit that is one."""

import pytest
import torch

from benchmarks.amount import TINY
from benchmarks.limit import arithmetic, matmul_limit
from medseg_diff.recipes.lookup import load_recipe


def test_a_product_takes_twice_the_cube_of_its_side(monkeypatch):
    taken = iter((0.0, 4.0) * 3 + (0.0, 2.0) * 4 + (0.0, 1.0) * 6)
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: next(taken))
    assert matmul_limit(torch.device("cpu"), 8) == 2 * 8**3 / 1.0


def test_a_pass_of_a_plain_network_is_counted_as_its_convolutions():
    """One level of width 16 at 32×32: nine convolutions of 3×3, and what widens or narrows."""
    overrides = ("network.multipliers=[1]", "network.attention=[]")
    recipe = load_recipe("wolleb", task="segment", overrides=(*TINY.overrides, *overrides))
    of_slice, voxels, width = arithmetic(recipe), 32 * 32, 16
    seen = len(recipe.channels) + len(recipe.regions)
    outputs = recipe.denoiser.outputs * len(recipe.regions)
    convolutions = 9 * width * (seen + outputs + 2 * width + 2 * 2 * width + 2 * (2 * width + width))
    shortcuts = 2 * 2 * width * width  # of the way up, which is shown twice the channels
    once_a_slice = of_slice.sampled - 2 * voxels * (convolutions + shortcuts)
    assert 0 < once_a_slice < 0.01 * of_slice.sampled  # the time's embedding
    assert of_slice.once == 0
    assert of_slice.trained == pytest.approx(3 * of_slice.sampled, rel=0.1)  # each product has two gradients


def test_what_is_looked_at_once_is_counted_apart():
    recipe = load_recipe("mask_logits", task="segment", overrides=TINY.overrides)
    of_slice = arithmetic(recipe)
    says_prior = recipe.build_denoiser().says_prior
    assert (of_slice.once > 0) == says_prior and of_slice.sampled > 0
