"""What an audit compares: copies are found however training had mirrored what they are copies of."""

from types import SimpleNamespace

import pytest
import torch

from medseg_diff.metrics.realism import memorised
from medseg_diff.spaces import PLAIN
from medseg_diff.tasks.apply import audited


@pytest.mark.parametrize(("flips", "copies"), [((0,), 1.0), ((0, 1), 1.0), ((), 0.0)])
def test_a_mirrored_copy_is_a_copy_where_training_mirrors(monkeypatch, flips, copies):
    draw = torch.Generator().manual_seed(0)
    scans, others = (torch.randn(12, 1, 8, 6, generator=draw) for _ in range(2))
    monkeypatch.setattr(audited, "prepared", lambda case, recipe: scans[case])
    system = SimpleNamespace(
        recipe=SimpleNamespace(augmentation=SimpleNamespace(flips=flips)),
        drawing=SimpleNamespace(space=PLAIN),
        device=torch.device("cpu"),
        precision="fp32",
    )
    held = audited.RealScans(others, {})
    mirrored = scans.flip([2 + axis for axis in flips] or [2])
    looked_at = []
    apart = audited.Audited(system, held, 12, 0).apart(mirrored, range(12), looked_at.append)
    assert apart.trained.shape == apart.usual.shape == apart.held_out.shape == (12, 12) and len(looked_at) == 12
    assert memorised(apart).copies == copies
