"""The estimate counts what it says it counts."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from medseg_diff.training import estimate
from medseg_diff.training.estimate import Work, flops_per_second, forward_flops
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


class Slow:
    """Examples that take 10 ms each, by their own clock."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def __len__(self):
        return 8

    def __getitem__(self, key):
        self.now += 0.01
        return {"image": torch.zeros(1)}


@pytest.mark.parametrize(
    ("workers", "machine", "cores", "expected"),
    [(0, "cpu", 2, 1.08), (3, "cpu", 1, 1.08), (1, "cpu", 2, 1.04), (3, "cuda", 2, 1.0), (0, "cuda", 2, 1.08)],
)
def test_loading_is_counted_where_it_takes_time_of_its_own(monkeypatch, workers, machine, cores, expected):
    monkeypatch.setattr(Work, "_pass_seconds", lambda *_: 1.0)
    monkeypatch.setattr(estimate, "cores", lambda: cores)
    settings, slow = FitSettings(steps=1, batch=8, workers=workers), Slow()
    monkeypatch.setattr(estimate, "time", slow)
    work = Work(nn.Identity, settings, width=8, size=(4, 4), channels=1, examples=slow)
    assert work.seconds(torch.device(machine), "fp32") == pytest.approx(expected)


def test_the_network_is_shown_what_it_is_trained_on():
    shown = []

    def network(x, t, condition):
        shown.append((x.shape, t.shape, None if condition.image is None else condition.image.shape))
        return x

    for image_channels in (0, 5):
        work = Work(nn.Identity, FitSettings(), 8, (4, 6), channels=2, image_channels=image_channels)
        work.forward(network, 3, torch.device("cpu"))
    assert shown == [((3, 2, 4, 6), (3,), None), ((3, 2, 4, 6), (3,), (3, 5, 4, 6))]
