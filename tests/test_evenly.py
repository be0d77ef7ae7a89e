"""A few of many, evenly spaced."""

from itertools import pairwise

import pytest

from medseg_diff.evenly import evenly_spaced


def test_both_ends_are_chosen_and_the_steps_between_differ_by_one_at_most() -> None:
    chosen = evenly_spaced(range(100), 8)
    steps = [after - before for before, after in pairwise(chosen)]
    assert chosen[0] == 0 and chosen[-1] == 99 and len(chosen) == 8
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize(
    ("items", "count", "chosen"), [("abc", 5, "abc"), ("abc", 1, "a"), ("abc", 0, ""), ("", 3, "")]
)
def test_no_item_is_chosen_twice(items: str, count: int, chosen: str) -> None:
    assert evenly_spaced(items, count) == list(chosen)
