"""Which items make a batch, in which order, and that each part stands under its own name."""

import time

import pytest
import torch

from medseg_diff.data.datasets import batch
from medseg_diff.data.datasets.batch import Batch, SeededDraws, batches


class Numbered(torch.utils.data.Dataset):
    """Images that hold their own number, and the same as their label."""

    def __len__(self):
        return 6

    def __getitem__(self, key):
        return {"image": torch.full((1, 2, 2), float(key.index)), "label": torch.tensor(key.index)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_the_parts_of_its_items_and_no_others(monkeypatch, workers):
    monkeypatch.setattr(batch, "cores", lambda: 2)
    (one,) = batches(Numbered(), SeededDraws(6, 4, 1, seed=0), workers=workers)
    assert len(one) == 4 and set(one.parts) == {"image", "label"} and one.mask is None
    assert torch.equal(one.label, one.image[:, 0, 0, 0].long())


def test_every_part_goes_to_the_device():
    parts = {name: torch.zeros(2, 1) for name in ("image", "mask", "label", "covariates", "context")}
    there = Batch(**parts).to(torch.device("meta"))
    assert {name: part.device.type for name, part in there.parts.items()} == dict.fromkeys(parts, "meta")


def test_every_epoch_shows_each_slice_once_in_an_order_of_its_own():
    keys = [key for batch in SeededDraws(11, 4, 11, seed=3) for key in batch]
    assert [key.epoch for key in keys] == sorted(key.epoch for key in keys)
    orders = [[key.index for key in keys if key.epoch == epoch] for epoch in range(4)]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_every_global_batch(ranks):
    alone = list(SeededDraws(11, 12, 5, seed=1))
    shared = [list(SeededDraws(11, 12, 5, seed=1, rank=rank, ranks=ranks)) for rank in range(ranks)]
    together = [[key for part in parts for key in part] for parts in zip(*shared, strict=True)]
    assert together == alone


def test_a_loader_worker_that_hangs_is_one_that_is_lost(monkeypatch):
    class Slow(torch.utils.data.Dataset):
        def __getitem__(self, key):
            time.sleep(30)

    monkeypatch.setattr(batch, "cores", lambda: 2)
    monkeypatch.setattr(batch, "LONGEST_WAIT_SECONDS", 0.2)
    with pytest.raises(RuntimeError) as caught:
        next(batch.batches(Slow(), SeededDraws(4, 2, 2, seed=0), workers=1))
    assert batch.LOST_WORKER.search(str(caught.value))
