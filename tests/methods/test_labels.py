"""Regions painted in the labels of their dataset, and read back the same; what lies in no label's regions is settled."""

import itertools

import numpy as np
import pytest

from medseg_diff.methods.labels import MaskLabel, labels_of_masks, painted, settled

BRATS = {"whole_tumour": (1, 2, 3, 4), "tumour_core": (1, 3, 4), "enhancing": (3, 4)}
NAMES = {1: "necrotic core", 2: "oedema", 3: "enhancing tumour", 4: "enhancing tumour"}
APART = {"rim": (4,), "oedema": (2,)}
LAYOUTS = {
    "nested": BRATS,
    "disjoint": APART,
    "overlapping": {"a": (1, 2), "b": (2, 3)},
    "inside and apart": {"whole": (1, 2, 4), "rim": (4,), "oedema": (2,)},
    "parts that make the whole": {"whole": (2, 4), "rim": (4,), "oedema": (2,)},
    "large labels": {"hippocampus": (17, 53), "cortex": (1002, 2002), "left": (17, 1002)},
}


@pytest.mark.parametrize("regions", LAYOUTS.values(), ids=LAYOUTS)
def test_any_masks_come_back_from_the_labels_that_they_are_painted_in(regions):
    drawn = np.random.default_rng(0)
    values = drawn.random((len(regions), 9, 8, 7), dtype=np.float32)
    masks = settled({region: own > 0.5 for region, own in zip(regions, values, strict=True)}, values, regions)
    labels = labels_of_masks(regions, {}, {})
    found = painted(masks, labels)
    known = {label for of_region in regions.values() for label in of_region}
    assert set(np.unique(found)) <= {0} | known  # the dataset's own
    for region, mask in masks.items():
        assert np.array_equal(np.isin(found, regions[region]), mask)  # as a reference is read
        assert np.array_equal(np.isin(found, [label.label for label in labels if region in label.regions]), mask)


@pytest.mark.parametrize("regions", LAYOUTS.values(), ids=LAYOUTS)
def test_a_voxel_in_regions_of_no_label_goes_to_the_likeliest_label(regions):
    sets = {tuple(name for name in regions if label in regions[name]) for own in regions.values() for label in own}
    given = np.float32([0.9, 0.6, 0.2][: len(regions)])
    values = np.broadcast_to(given[:, None, None, None], (len(regions), 1, 1, 1))
    for inside in itertools.product([False, True], repeat=len(regions)):
        masks = {region: np.full((1, 1, 1), own) for region, own in zip(regions, inside, strict=True)}
        found = tuple(region for region, mask in settled(masks, values, regions).items() if mask.item())
        asked = tuple(region for region, own in zip(regions, inside, strict=True) if own)
        if not asked or asked in sets:
            assert found == asked
            continue
        likelihood = {
            each: np.prod([p if name in each else 1 - p for name, p in zip(regions, given, strict=True)])
            for each in sets
        }
        assert found == max(likelihood, key=likelihood.get)


def test_labels_of_one_name_are_one_thing_and_the_dataset_says_which():
    def enhancing(cases, names=NAMES):
        return labels_of_masks(BRATS, names, cases)[-1]

    assert labels_of_masks(BRATS, NAMES, {1: 3, 2: 3, 4: 3}) == (
        MaskLabel(1, "necrotic core", ("whole_tumour", "tumour_core")),
        MaskLabel(2, "oedema", ("whole_tumour",)),
        MaskLabel(4, "enhancing tumour", tuple(BRATS)),
    )
    assert enhancing({3: 5, 4: 2}).label == 3 and enhancing({3: 2, 4: 2}).label == 3 and enhancing({}).label == 3
    assert enhancing({3: 2, 4: 9}, names={3: "rim", 4: "nodule"}) == MaskLabel(3, "enhancing", tuple(BRATS))


def test_labels_without_names_are_called_by_their_regions():
    assert [label.name for label in labels_of_masks(BRATS, {}, {})] == [
        "tumour_core without enhancing",
        "whole_tumour without tumour_core",
        "enhancing",
    ]
    assert [label.name for label in labels_of_masks(LAYOUTS["overlapping"], {}, {})] == [
        "a without b",
        "a and b",
        "b without a",
    ]
    assert labels_of_masks({"lesion": (2,)}, {}, {}) == (MaskLabel(2, "lesion", ("lesion",)),)
    assert labels_of_masks({"whole": (1, 2, 4)}, {1: "a", 2: "b"}, {2: 9}) == (MaskLabel(1, "whole", ("whole",)),)


def test_bytes_are_enough_for_small_labels():
    nothing = {"a": np.zeros((2, 2, 2), bool)}
    assert painted(nothing, labels_of_masks({"a": (255,)}, {}, {})).dtype == np.uint8
    assert painted(nothing, labels_of_masks({"a": (256,)}, {}, {})).dtype == np.int16
