"""Volumes from intensities: what they follow on phantoms, whose truth is known, and that they bear noise and emptiness."""

import numpy as np
import pytest

from medseg_diff.metrics.brain_volumes import brain_volumes
from medseg_diff.phantoms.make import PhantomSettings, make_case


@pytest.fixture(scope="module")
def cases():
    settings = PhantomSettings(cases=24, shape=(48, 48, 36), healthy=1.0, seed=1)
    return [make_case(settings, number) for number in range(24)]


def measured(case, change=lambda image: image):
    image = change(case.images["t1"].astype(float))
    return brain_volumes(image, case.images["t1"] > 0, np.abs(np.diag(case.affine)[:3]))


def test_they_follow_the_truth(cases):
    """Not chosen on these phantoms."""
    found = np.array([measured(case) for case in cases])
    truth = np.array([[case.covariates[f"{name}_volume_ml"] for name in ("ventricle", "brain")] for case in cases])
    r = [np.corrcoef(found[:, k], truth[:, k])[0, 1] for k in (0, 1)]
    assert r[0] > 0.85 and r[1] > 0.9
    assert found[:, 1].mean() == pytest.approx(truth[:, 1].mean(), rel=0.1)


def test_a_scanners_unit_does_not_count(cases):
    assert measured(cases[0], lambda image: 3 * image + 100) == pytest.approx(measured(cases[0]), rel=1e-6)


def test_voxels_count_by_their_size(cases):
    case = cases[0]
    image, spacing = case.images["t1"].astype(float), np.abs(np.diag(case.affine)[:3])
    once = brain_volumes(image, image > 0, spacing)
    fine = [each.repeat(2, 0).repeat(2, 1).repeat(2, 2) for each in (image, image > 0)]
    assert brain_volumes(*fine, spacing / 2).brain_ml == pytest.approx(once.brain_ml, rel=0.06)


def test_nothing_to_measure_is_not_a_number():
    flat = np.ones((12, 12, 12))
    assert np.isnan(brain_volumes(flat, np.zeros_like(flat, bool), (2, 2, 2))).all()
    assert np.isnan(brain_volumes(flat, flat > 0, (2, 2, 2))).all()
