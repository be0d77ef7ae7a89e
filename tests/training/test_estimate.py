"""The estimate counts what it says it counts."""

import pytest
import torch
from torch import nn

from medseg_diff.training.estimate import flops_per_second, forward_flops, in_words


def test_operations_are_counted_without_memory():
    def build():
        return nn.Conv2d(3, 5, 3, padding=1, bias=False)

    found = forward_flops(build, lambda model: model(torch.empty(2, 3, 1000, 2000)))
    assert found == 2 * 9 * 3 * 5 * 2 * 1000 * 2000  # a multiplication and an addition each


def test_a_rate_is_positive():
    assert flops_per_second(torch.device("cpu"), torch.float32, 16) > 1e7


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (45 * 60, "45 min"), (3.5 * 3600, "3.5 h"), (41 * 86400, "41 days")],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
