"""Every item once, in its order, and every batch of the same size."""

import pytest
import torch

from medseg_diff.methods.batches import index_of, padded_batches


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (5, 2, [("01", "01"), ("23", "23"), ("4", "44")]),
        (2, 4, [("01", "0111")]),
        (4, 4, [("0123", "0123")]),
        (0, 3, []),
    ],
)
def test_the_last_batch_is_padded_with_its_last_item(count, size, expected):
    found = list(padded_batches("0123456789"[:count], size))
    assert [("".join(batch.items), "".join(batch.padded)) for batch in found] == expected


def test_an_index_is_as_good_as_a_list():
    values = torch.arange(12).view(4, 3)
    assert torch.equal(values[index_of([3, 0, 3], values)], values[[3, 0, 3]])
    assert values[index_of([], values)].shape == (0, 3)
