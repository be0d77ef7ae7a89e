"""Channels that look like what they are called, or not: phantoms of many scanners and real scans, as they are and mixed."""

import itertools

import numpy as np
import pytest

from medseg_diff import phantom
from medseg_diff.data.geometry import spacing_of
from medseg_diff.data.plausibility import PAIRS, _brain, implausible, unlike_backgrounds
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.case import Case
from medseg_diff.data.tables.manifest import read_manifest
from tests.scans import SCANS, with_scans

SPACING = (2.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """(channels, image, spacing) of eight phantoms of eight scanners."""
    table = phantom(tmp_path_factory.mktemp("scanners"), cases=8, shape=(64, 64, 40), healthy=0.25, scanners=8, seed=5)
    read = [read_case(case, ["t1", "t1ce", "t2", "flair"], reference=False) for case in read_manifest(table).cases]
    return [(each.channels, each.image, spacing_of(each.affine)) for each in read]


def interchanged(channels, one, other):
    swap = {one: other, other: one}
    return [swap.get(channel, channel) for channel in channels]


def test_channels_under_their_own_names_are_left_in_peace(scans):
    assert [implausible(*scan) for scan in scans] == [[]] * len(scans)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(pair.channels))
def test_two_that_are_interchanged_are_doubted(scans, pair):
    """Contrast medium in a healthy brain shows too little to be sure."""
    said = [implausible(interchanged(channels, *pair.channels), image, mm) for channels, image, mm in scans]
    assert sum(map(bool, said)) >= (6 if "t1ce" not in pair.channels else 4)
    named = f"{' and '.join(pair.channels)} look interchanged: {pair.why}"
    assert sum(named in sentences for sentences in said) >= 3


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(pair.channels))
def test_a_score_changes_its_sign_with_the_names(scans, pair):
    for channels, image, mm in scans:
        names = interchanged(channels, *pair.channels)
        right, wrong = (pair.score(_brain(each, image, mm), *pair.channels) for each in (channels, names))
        assert right == pytest.approx(-wrong, abs=1e-9)


def test_what_cannot_be_told_is_not_said(scans):
    channels, image, mm = scans[0]
    wrong = interchanged(channels, "t2", "flair")
    assert implausible(wrong, image, mm)
    assert implausible(wrong[:1], image[:1], mm) == []  # nothing to compare with
    assert implausible(["pd", "swi", "dwi", "adc"], image, mm) == []
    head = image + np.random.default_rng(0).random(image.shape, np.float32)  # no background of one value: not stripped
    assert implausible(wrong, head, mm) == []
    assert implausible(wrong, np.zeros_like(image), mm) == []
    few = np.zeros_like(image)
    few[:, 30:40, 30:40, 18:22] = image[:, 30:40, 30:40, 18:22]
    assert implausible(wrong, few, mm) == []


def test_constant_channels_have_no_score():
    image = np.zeros((4, 24, 24, 24), np.float32)
    image[:, 4:20, 4:20, 4:20] = 7.0
    assert implausible(["t1", "t1ce", "t2", "flair"], image, SPACING) == []


def test_a_case_is_read_with_the_warning(phantoms):
    case = next(case for case in read_manifest(phantoms).cases if case.channels == ("t1", "t1ce", "t2", "flair"))
    assert not any("interchanged" in text for text in read_case(case).warnings)
    images = dict(case.images) | {"t2": case.images["flair"], "flair": case.images["t2"]}
    swapped = Case(case.name, case.patient, images=images)
    assert any(text.startswith("t2 and flair look interchanged") for text in read_case(swapped).warnings)


@with_scans("brats")
def test_real_scans_under_most_other_names_are_doubted():
    channels = ("t1", "t1ce", "t2", "flair")
    for folder in [*sorted((SCANS / "brats").glob("BraTS*")), SCANS / "ms" / "patient19"]:
        images = {channel: folder / f"{channel}.nii.gz" for channel in channels}
        read = read_case(Case(folder.name, folder.name, images=images), reference=False)
        mm = spacing_of(read.affine)
        assert implausible(channels, read.image, mm) == []
        orders = list(itertools.permutations(channels))[1:]
        assert sum(bool(implausible(order, read.image, mm)) for order in orders) >= 0.8 * len(orders)


def test_a_skull_in_one_channel_only_is_doubted(scans):
    channels, image, _ = scans[0]
    assert unlike_backgrounds(channels, image) == []
    noise = np.random.default_rng(0).random(image.shape, np.float32)
    assert unlike_backgrounds(channels, image + noise) == []
    mixed = image.copy()
    mixed[0] += noise[0]
    said = "t1: no constant background, as t1ce, t2, flair have: is its skull stripped?"
    assert unlike_backgrounds(channels, mixed) == [said]
    mixed[1:3] += noise[1:3]
    said = "t1, t1ce, t2: no constant background, as flair has: are their skulls stripped?"
    assert unlike_backgrounds(channels, mixed) == [said]
