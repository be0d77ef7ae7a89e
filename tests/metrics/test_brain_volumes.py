"""Volumes from intensities: what they follow on phantoms, whose truth is known, and that they bear noise and emptiness."""

import numpy as np
import pytest
from scipy import ndimage

from medseg_diff.metrics.brain_volumes import brain_volumes
from medseg_diff.phantoms.make import PhantomSettings, make_case


@pytest.fixture(scope="module")
def cases():
    settings = PhantomSettings(cases=24, shape=(48, 48, 36), healthy=1.0, seed=1)
    return [make_case(settings, number) for number in range(24)]


def measured(case, change=lambda image: image):
    image = change(case.images["t1"].astype(float))
    return brain_volumes(image, case.images["t1"] > 0, np.abs(np.diag(case.affine)[:3]), orientation="LPS")


def test_they_follow_the_truth(cases):
    """Not chosen on these phantoms."""
    found = np.array([measured(case) for case in cases])
    truth = np.array([[case.covariates[f"{name}_volume_ml"] for name in ("ventricle", "brain")] for case in cases])
    r = [np.corrcoef(found[:, k], truth[:, k])[0, 1] for k in (0, 1)]
    assert r[0] > 0.9 and r[1] > 0.97
    assert found[:, 1].mean() == pytest.approx(truth[:, 1].mean(), rel=0.03)
    assert 0.7 < found[:, 0].mean() / truth[:, 0].mean() < 1


def test_an_uneven_coil_is_evened_out(cases):
    """A field that falls by a third from front to back: of what one scanner makes of one brain."""
    field = np.linspace(1.2, 0.8, 48)[None, :, None]
    for case in cases[:4]:
        once, uneven = measured(case), measured(case, lambda image: image * field)
        assert uneven.brain_ml == pytest.approx(once.brain_ml, rel=0.02)
        assert uneven.ventricle_ml == pytest.approx(once.ventricle_ml, rel=0.15)


def test_blur_leaves_their_order(cases):
    def blurred(image):
        inside = (image > 0).astype(float)
        weight = np.maximum(ndimage.gaussian_filter(inside, 0.7), 1e-6)
        return np.where(inside > 0, ndimage.gaussian_filter(image, 0.7) / weight, 0)

    sharp, soft = (np.array([measured(case, change) for case in cases]) for change in (lambda image: image, blurred))
    assert all(np.corrcoef(sharp[:, k], soft[:, k])[0, 1] > 0.95 for k in (0, 1))


def test_axes_may_run_anywhere(cases):
    case, once = cases[0], measured(cases[0])
    image, spacing = case.images["t1"].astype(float), np.abs(np.diag(case.affine)[:3])
    turned = image[::-1, ::-1]
    assert brain_volumes(turned, turned > 0, spacing) == pytest.approx(once)
    turned = image.transpose(2, 0, 1)[::-1]
    assert brain_volumes(turned, turned > 0, spacing[[2, 0, 1]], orientation="ILP") == pytest.approx(once)
    wrong = brain_volumes(image, image > 0, spacing).ventricle_ml  # front taken for back
    assert abs(wrong / once.ventricle_ml - 1) > 0.05


@pytest.mark.parametrize("signal", [0.0, 0.3])  # fluid as dark as the background is not in the mask
def test_fluid_in_the_middle_of_a_ball_is_counted(signal):
    """White matter of 60 mm radius with a ball of fluid of 12 mm in it: 7.2 ml of 905."""
    places = np.stack(np.meshgrid(*[np.arange(-33, 34) * 2.0] * 3, indexing="ij"))
    fluid = np.linalg.norm(places - np.array([0, 0, 8]).reshape(3, 1, 1, 1), axis=0) < 12
    ball = np.linalg.norm(places, axis=0) < 60
    image = np.where(fluid, signal, 1.0) * ball
    found = brain_volumes(image, image > 0, (2, 2, 2))
    assert found.ventricle_ml == pytest.approx(fluid.sum() * 0.008, rel=0.1)
    assert found.brain_ml == pytest.approx((ball & ~fluid).sum() * 0.008, rel=0.01)


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
