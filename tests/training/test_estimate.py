"""The estimate counts what it says it counts."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from medseg_diff.training.estimate import Work, flops_per_second, forward_flops, in_words
from medseg_diff.training.fit import FitSettings


def test_operations_are_counted_without_memory():
    def build():
        return nn.Conv2d(3, 5, 3, padding=1, bias=False)

    found = forward_flops(build, lambda model: model(torch.empty(2, 3, 1000, 2000)))
    assert found == 2 * 9 * 3 * 5 * 2 * 1000 * 2000  # a multiplication and an addition each


def test_a_rate_is_positive():
    assert flops_per_second(torch.device("cpu"), torch.float32, 16) > 1e7


def test_accumulated_passes_and_the_sampling_of_validations_are_counted(monkeypatch):
    """A pass forward and back takes a second, so a sample forward takes a third of its share of the batch."""
    monkeypatch.setattr(Work, "_pass_seconds", lambda *_: 1.0)
    settings = FitSettings(steps=100, batch=8, accumulate=2, validate_every=40)
    work = Work(nn.Identity, settings, width=8, size=(4, 4), channels=1)
    assert work.seconds(torch.device("cpu"), "fp32") == 200
    sampling = replace(work, sampled=6)
    assert sampling.seconds(torch.device("cpu"), "fp32") == pytest.approx(200 + 3 * 6 / 4 / 3)


def test_the_network_is_shown_what_it_is_trained_on():
    shown = []

    def network(x, t, condition):
        shown.append((x.shape, t.shape, None if condition.image is None else condition.image.shape))
        return x

    for image_channels in (0, 5):
        work = Work(nn.Identity, FitSettings(), 8, (4, 6), channels=2, image_channels=image_channels)
        work.forward(network, 3, torch.device("cpu"))
    assert shown == [((3, 2, 4, 6), (3,), None), ((3, 2, 4, 6), (3,), (3, 5, 4, 6))]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (45 * 60, "45 min"), (3.5 * 3600, "3.5 h"), (41 * 86400, "41 days")],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
