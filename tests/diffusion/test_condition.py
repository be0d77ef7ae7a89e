"""Condition: parts travel together; null keeps the shape and says so."""

import torch

from medseg_diff.diffusion import Condition


def test_repeat_index_and_blank():
    condition = Condition(image=torch.arange(6.0).view(3, 1, 2), label=torch.tensor([0, 1, 2]))
    repeated = condition.repeat(2)
    assert repeated.label.tolist() == [0, 0, 1, 1, 2, 2] and repeated.image.shape == (6, 1, 2)
    assert repeated.take(torch.tensor([5])).label.tolist() == [2]
    assert condition.null().keep.tolist() == [False] * 3 and condition.batch == 3
    assert Condition().null() == Condition() and Condition().batch is None


def test_drop_and_beside():
    condition = Condition(label=torch.tensor([0, 1]))
    dropped = condition.drop(torch.tensor([True, False]))
    assert dropped.keep.tolist() == [False, True]
    both = condition.beside(condition.null())
    assert both.keep.tolist() == [True, True, False, False] and both.label.tolist() == [0, 1, 0, 1]
    assert Condition().beside(Condition()) == Condition()
