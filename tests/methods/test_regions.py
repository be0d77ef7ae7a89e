"""The hierarchy of regions, read off their labels, and values kept inside it."""

import pytest
import torch

from medseg_diff.methods.regions import hierarchy_of, kept_inside

BRATS = {"whole_tumour": [1, 2, 3, 4], "tumour_core": [1, 3, 4], "enhancing": [3, 4]}


def test_the_hierarchy_is_that_of_the_labels_whatever_their_order():
    assert hierarchy_of(BRATS) == ((), (0,), (0, 1))
    assert hierarchy_of({"enhancing": [3, 4], "oedema": [2], "whole": [1, 2, 3, 4]}) == ((2,), (2,), ())
    assert hierarchy_of({"left": [1, 2], "right": [2, 3]}) == ((), ())
    assert hierarchy_of({"one": [1], "same": [1]}) == ((), (0,))


@pytest.mark.parametrize("dim", [0, 1])
def test_inner_values_never_exceed_any_outer_one(dim):
    values = torch.rand(3, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    kept = kept_inside(values, hierarchy_of(BRATS), dim=dim)
    whole, core, enhancing = kept.unbind(dim)
    assert (core <= whole).all() and (enhancing <= core).all()
    given = values.unbind(dim)
    assert torch.equal(whole, given[0]) and torch.equal(core, given[0].minimum(given[1]))
    assert torch.equal(kept_inside(kept, hierarchy_of(BRATS), dim=dim), kept)  # nothing more to do


def test_what_already_nests_or_need_not_is_left_alone():
    values = torch.rand(2, 4, 4)
    assert kept_inside(values, ((), ()), dim=0) is values
    nested = torch.stack([torch.ones(4, 4), values[0]])
    assert torch.equal(kept_inside(nested, ((), (0,)), dim=0), nested)


def test_masks_are_cut_to_the_outer_one():
    masks = torch.tensor([[True, True, False], [True, False, True]])
    assert kept_inside(masks, ((), (0,)), dim=0).tolist() == [[True, True, False], [True, False, False]]
