"""Errors of a reconstruction against its twin, where they are known by construction."""

import numpy as np
import pytest

from medseg_diff.metrics.reconstruction import reconstruction_errors

rng = np.random.default_rng(0)
TWIN = rng.normal(10, [[[[1.0]]], [[[5.0]]]], (2, 8, 8, 8)).astype(np.float32)
BRAIN = np.ones((8, 8, 8), bool)
LESION = np.zeros_like(BRAIN)
LESION[2:5, 2:5, 2:5] = True
UNIT = TWIN[:, BRAIN].std(axis=1).reshape(2, 1, 1, 1)
SCAN = TWIN + 3 * UNIT * LESION


def errors(healthy, *, lesion=LESION):
    return reconstruction_errors(healthy, TWIN, SCAN, lesion=lesion, brain=BRAIN)


@pytest.mark.parametrize("left", [0.0, 0.25, 1.0])
def test_the_share_of_the_lesion_that_is_left(left):
    found = errors(TWIN + left * (SCAN - TWIN) + 0.1 * UNIT * ~LESION)
    assert found.left == pytest.approx(left, abs=1e-5) and found.elsewhere == pytest.approx(0.1, abs=1e-5)
    assert found.scan_lesion == pytest.approx(3, rel=1e-5)


def test_every_channel_counts_in_its_own_unit():
    dark, bright = (np.reshape(each, (2, 1, 1, 1)) * UNIT * ~LESION for each in ([1, 0], [0, 1]))
    assert errors(TWIN + dark).elsewhere == pytest.approx(errors(TWIN + bright).elsewhere, rel=1e-5)


def test_without_a_lesion_there_is_nothing_to_undo():
    found = errors(TWIN, lesion=np.zeros_like(LESION))
    assert found.left is None and found.lesion is None and found.elsewhere == 0
