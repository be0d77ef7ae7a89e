"""Scanners that differ: protocols, field, contrast medium, blur, skull stripping; and what stays the same among them."""

from dataclasses import replace

import numpy as np
import pytest

from medseg_diff.data.tables.sources.brats import OEDEMA
from medseg_diff.phantoms.anatomy import Person, build_anatomy
from medseg_diff.phantoms.geometry import Grid
from medseg_diff.phantoms.make import PhantomSettings, make_case
from medseg_diff.phantoms.scanner import acquire, any_scanner, seen_by, usual_scanner
from medseg_diff.phantoms.signal import CHANNELS, TISSUES, spin_echo

SMALL = (40, 40, 32)


@pytest.fixture(scope="module")
def anatomy():
    rng = np.random.default_rng(0)
    return build_anatomy(Grid.over_head(SMALL), Person.draw(rng), None, rng)


@pytest.fixture
def plain():
    """A scanner without noise, blur or uneven field."""
    scanner = usual_scanner(np.random.default_rng(0), noise=0.0)
    return replace(scanner, bias=dict.fromkeys(CHANNELS, 0.0), coil=0.0)


def scanned(anatomy, scanner):
    shares = {name: getattr(anatomy, name) for name in ("csf", "grey", "deep_grey", "white")}
    return acquire(shares, anatomy, scanner, np.random.default_rng(1))


def test_cases_come_from_the_scanners_in_turn() -> None:
    settings = PhantomSettings(cases=6, shape=SMALL, healthy=0, scanners=3, seed=5)
    contrast = []
    for index in range(6):
        case = make_case(settings, index)
        white, fluid = (np.percentile(case.images["t2"][case.images["t2"] > 0], at) for at in (25, 97))
        contrast.append(fluid / white)
    own = [abs(contrast[k] - contrast[k + 3]) for k in range(3)]
    others = [abs(contrast[i] - contrast[j]) for i in range(3) for j in range(3) if i != j]
    assert np.mean(own) < 0.5 * np.mean(others)


def test_another_scanner_leaves_the_person_and_the_lesion_as_they_were() -> None:
    usual = make_case(PhantomSettings(cases=2, shape=SMALL, healthy=0, seed=5), 0)
    other = make_case(PhantomSettings(cases=2, shape=SMALL, healthy=0, scanners=2, seed=5), 0)
    assert other.covariates == usual.covariates and not np.array_equal(other.images["t1"], usual.images["t1"])
    assert ((other.seg > 0) <= (usual.seg > 0)).all()  # tight stripping may take some of it
    assert (other.seg > 0).sum() > 0.7 * (usual.seg > 0).sum()
    assert (other.images["t1"][other.seg > 0] > 0).all()


def test_patients_of_one_scanner_have_oedemas_of_their_own() -> None:
    settings = PhantomSettings(cases=8, shape=SMALL, healthy=0, scanners=1, seed=5, noise=0.0)
    brightness = []
    for index in range(8):
        case = make_case(settings, index)
        flair, oedema = case.images["flair"].astype(float), case.seg == OEDEMA
        brightness.append(np.median(flair[oedema]) / np.median(flair[(flair > 0) & (case.seg == 0)]))
    assert max(brightness) > 1.25 * min(brightness) and min(brightness) > 1


def test_half_a_dose_enhances_half_as_much_and_a_stronger_field_lengthens_t1_but_not_that_of_fluid() -> None:
    tumour = TISSUES["enhancing"]
    rates = [1 / tumour.with_agent(dose).t1_ms for dose in (0.0, 0.5, 1.0)]
    assert rates[1] == pytest.approx((rates[0] + rates[2]) / 2) and tumour.with_agent().t1_ms == tumour.enhanced_t1_ms
    assert TISSUES["white"].with_agent(2.0) == TISSUES["white"]
    assert TISSUES["white"].at_field(3.0).t1_ms == pytest.approx(840 * 1.5 ** (1 / 3))
    assert TISSUES["csf"].at_field(3.0) == TISSUES["csf"]


def test_a_short_spin_echo_weighs_t1_and_a_long_one_t2() -> None:
    white, grey = TISSUES["white"], TISSUES["grey"]
    assert spin_echo(white, repetition_ms=500, echo_ms=12) > spin_echo(grey, repetition_ms=500, echo_ms=12)
    assert spin_echo(white, repetition_ms=5000, echo_ms=95) < spin_echo(grey, repetition_ms=5000, echo_ms=95)


def test_in_every_protocol_fluid_is_dark_in_flair_and_oedema_bright() -> None:
    for seed in range(40):
        signals = any_scanner(np.random.default_rng(seed), noise=0.0).signals
        assert signals["flair"]["oedema"] > 1 > 0.5 > signals["flair"]["csf"]
        assert signals["t2"]["csf"] > signals["t2"]["oedema"] > signals["t2"]["white"] == 1
        assert signals["t1ce"]["enhancing"] > 0.95 and signals["t1"]["white"] > signals["t1"]["csf"]


def test_thick_slices_blur_across_and_keep_the_mean(anatomy, plain) -> None:
    sharp, thick = scanned(anatomy, plain)["t2"], scanned(anatomy, replace(plain, slice_mm={"t2": 12.0}))["t2"]
    brain = sharp > 0
    assert ((thick > 0) == brain).all()
    assert thick[brain].mean() == pytest.approx(sharp[brain].mean(), rel=0.02)
    rough = [
        np.abs(np.diff(image.astype(float), axis=2))[brain[..., 1:] & brain[..., :-1]].mean()
        for image in (sharp, thick)
    ]
    assert rough[1] < 0.5 * rough[0]
    finer = replace(plain, slice_mm={"t2": 1.0})
    assert np.array_equal(scanned(anatomy, finer)["t2"], sharp)  # the grid's own voxel is coarser


def test_tight_stripping_takes_the_rim_and_loose_stripping_leaves_a_shell(anatomy, plain) -> None:
    brain = anatomy.mask
    tight, loose = (scanned(anatomy, replace(plain, stripped_mm=mm)) for mm in (4.0, -4.0))
    for channel in CHANNELS:
        assert ((tight[channel] > 0) == seen_by(replace(plain, stripped_mm=4.0), anatomy)).all()
        assert ((loose[channel] > 0) >= brain).all()
    assert 0.6 < (tight["t1"] > 0).sum() / brain.sum() < 0.95 < 1.05 < (loose["t1"] > 0).sum() / brain.sum() < 1.5
