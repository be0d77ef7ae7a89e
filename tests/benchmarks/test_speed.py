"""The speed benchmark in miniature, and that the two sides of a comparison do the same work."""

import pytest
import torch

from benchmarks.speed import Setting, measure, show, with_torch_norms
from benchmarks.timing import in_turn
from medseg_diff.diffusion import Condition
from medseg_diff.errors import ConfigError
from medseg_diff.recipes.lookup import load_recipe


@pytest.fixture(scope="module")
def recipe():
    words = ("network.width=32", "view.size=[16,16]")
    return load_recipe("quick/mask_logits", task="segment", overrides=words)


def test_every_duel_has_a_ratio(recipe):
    result = measure(recipe, batch=2, slices=2, members=2, rounds=2)
    assert len(result["duels"]) == 6
    for row in result["duels"]:
        assert row["ratio"]["best"] == pytest.approx(
            row["slow_seconds_per_slice"]["best"] / row["fast_seconds_per_slice"]["best"]
        )
        assert row["name"] in show(result)


def test_more_slices_than_the_batch_are_refused(recipe):
    with pytest.raises(ConfigError, match="3 slices"):
        measure(recipe, batch=2, slices=3)


def test_the_other_norm_computes_the_same(recipe):
    setting = Setting.of(recipe, 2, torch.device("cpu"))
    for parameter in setting.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    other = with_torch_norms(setting.network)
    assert any(isinstance(module, torch.nn.GroupNorm) for module in other.modules())
    asked = (setting.batch.mask, torch.ones(1), Condition(image=setting.batch.image))
    with torch.no_grad():
        wanted, found = setting.network(*asked), other(*asked)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_contenders_take_turns():
    order = []
    taken = in_turn(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, device=torch.device("cpu")
    )
    assert order == ["a", "b"] * 3
    assert len(taken["a"].seconds) == 2
    assert taken["a"].best <= taken["a"].median
