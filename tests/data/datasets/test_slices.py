"""Batches depend on (seed, epoch, index) alone."""

import numpy as np
import pytest
import torch

from medseg_diff.data.datasets.augmentation import Augmentation
from medseg_diff.data.datasets.batch import Key, SeededDraws, batches
from medseg_diff.data.datasets.cache import PreparedCase
from medseg_diff.data.datasets.slices import SliceDataset, region_masks
from medseg_diff.data.views import AxialSlices
from medseg_diff.errors import UsageError

REGIONS = {"whole": (1, 2, 4), "core": (1, 4)}
OFF = Augmentation(probability=0.0)


def made_up(raters=2, slices=6, side=12, name="a"):
    """A prepared case whose labels are 1 for the reference and 10 + r for rater r, in a corner of the brain."""
    rng = np.random.default_rng(slices)
    brain = np.zeros((slices, 1, side, side), np.uint8)
    brain[:, :, 2:-2, 2:-2] = 1
    image = np.where(brain, rng.random((slices, 2, side, side)), -1).astype(np.float16)
    labels = np.zeros((slices, 1 + raters, side, side), np.uint8)
    for opinion in range(1 + raters):
        labels[:, opinion, 3:6, 3:6] = 1 if opinion == 0 else 10 + opinion
    return PreparedCase(name, name, image, labels, brain)


def dataset(cases=None, *, augmentation=OFF, regions=REGIONS, seed=0, size=(12, 12), **options):
    view = AxialSlices(size=size)
    cases = cases or [made_up(), made_up(slices=5, name="b")]
    return SliceDataset(cases, view, augmentation, regions, background=-1.0, seed=seed, **options)


def drawn(data, *, workers=0, start=0, seed=0):
    draws = SeededDraws(len(data), 4, 6, seed=seed, start=start)
    return list(batches(data, draws, workers=workers))


def equal(one, other):
    return torch.equal(one.image, other.image) and torch.equal(one.mask, other.mask)


def test_batches_have_their_shapes_and_ranges():
    for batch in drawn(dataset(augmentation=Augmentation(), size=(10, 14))):
        assert batch.image.shape == (4, 2, 10, 14) and batch.mask.shape == (4, 2, 10, 14)
        assert set(batch.mask.unique().tolist()) <= {-1.0, 1.0}
        assert batch.image.dtype == batch.mask.dtype == torch.float32 and len(batch) == 4


def test_content_and_order_do_not_depend_on_workers_or_on_where_one_starts():
    data = dataset(augmentation=Augmentation())
    alone = drawn(data)
    assert all(equal(one, other) for one, other in zip(alone, drawn(data, workers=2), strict=True))
    assert all(equal(one, other) for one, other in zip(alone[4:], drawn(data, start=4), strict=True))
    assert not equal(alone[0], drawn(data, seed=1)[0])
    assert not equal(alone[0], drawn(dataset(augmentation=Augmentation(), seed=1))[0])


def test_an_item_is_a_pure_function_of_its_key():
    data = dataset(augmentation=Augmentation(probability=1.0))
    first, other, again = data[Key(0, 3)], data[Key(1, 3)], data[Key(0, 3)]
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])  # another epoch, another change


def test_a_rater_is_drawn_for_every_key_and_all_of_them_come_up():
    data = dataset([made_up(raters=3)], regions={"one": (11,), "two": (12,), "three": (13,)})
    counts = torch.stack([(data[Key(epoch, 2)]["mask"] > 0).flatten(1).any(1) for epoch in range(90)])
    assert (counts.sum(1) == 1).all()  # one at a time, never the reference
    assert counts.sum(0).min() > 15


def test_a_lesion_of_another_slice_is_pasted_and_nothing_where_there_is_none():
    healthy = made_up(raters=0, name="b")
    healthy.labels[:] = 0
    paste = Augmentation(probability=0.0, lesion_paste=1.0, translation=0.0)
    data = dataset([made_up(raters=0), healthy], augmentation=paste)
    keys = [Key(0, index) for index in range(6, 12)]
    assert all(data.case_of(key.index).name == "b" for key in keys)
    masks = [data[key]["mask"] > 0 for key in keys]
    assert sum(bool(mask.any()) for mask in masks) >= 4 and all(torch.equal(*mask) for mask in masks)
    assert all(torch.equal(mask, data[key]["mask"] > 0) for mask, key in zip(masks, keys, strict=True))
    nowhere = [dataset([healthy], augmentation=each) for each in (paste, OFF)]
    assert torch.equal(nowhere[0][Key(0, 1)]["image"], nowhere[1][Key(0, 1)]["image"])


def test_without_raters_the_reference_is_learned():
    data = dataset([made_up(raters=0)])
    wanted = torch.full((2, 12, 12), -1.0)
    wanted[:, 3:6, 3:6] = 1
    assert torch.equal(data[Key(0, 0)]["mask"], wanted)


def test_too_large_slices_are_cropped_at_random_places_alike_in_image_and_mask():
    case = made_up(raters=0)
    case.image[:, 0] = np.where(case.labels[:, 0] == 1, 5.0, case.image[:, 0])
    data = dataset([case], size=(8, 12))
    items = [data[Key(epoch, 1)] for epoch in range(12)]
    for item in items:
        assert torch.equal(item["image"][0] == 5, item["mask"][0] == 1)
    assert len({tuple(item["mask"].flatten().tolist()) for item in items}) > 2


def test_slices_can_be_held_out():
    kept, held = dataset(keep=lambda number: number % 3 > 0), dataset(keep=lambda number: number % 3 == 0)
    assert not set(kept.slices) & set(held.slices)
    assert set(kept.slices) | set(held.slices) == set(dataset().slices) and len(dataset()) == 11
    with pytest.raises(UsageError, match="no slice is left to train on"):
        dataset(keep=lambda number: False)


def test_regions_group_labels():
    labels = torch.tensor([[[0, 1, 2], [3, 4, 4]]], dtype=torch.uint8)
    assert region_masks(labels, REGIONS).int().tolist() == [[[0, 1, 1], [0, 1, 1]], [[0, 1, 0], [0, 1, 1]]]


def test_a_slice_is_shown_among_its_neighbours():
    case = made_up(raters=0)
    view = AxialSlices(size=(12, 12), context=1)
    near = SliceDataset([case], view, OFF, REGIONS, background=-1.0, seed=0)
    alone = dataset([case])
    for index, (_, z) in enumerate(near.slices):
        item = near[Key(0, index)]
        shown = item["image"].unflatten(0, (2, 3))
        assert torch.equal(item["mask"], alone[Key(0, index)]["mask"])
        assert torch.equal(shown[:, 1], alone[Key(0, index)]["image"])
        for place, there in ((0, z - 1), (2, z + 1)):
            wanted = torch.from_numpy(case.image[there].astype(np.float32)) if 0 <= there < 6 else torch.tensor(-1.0)
            assert torch.equal(shown[:, place], wanted.expand(2, 12, 12))
        plain = near.plain(index)
        assert torch.equal(plain["image"], item["image"]) and torch.equal(plain["mask"], item["mask"] > 0)
        assert torch.equal(plain["brain"][0], torch.from_numpy(case.brain[z, 0]).bool())


def test_training_and_sampling_show_a_slice_the_same_neighbours():
    case = made_up(raters=0)
    view = AxialSlices(size=(12, 12), context=2)
    volume = view.join(torch.from_numpy(case.image.astype(np.float32)))
    shown = view.conditions(volume, background=-1.0)
    data = SliceDataset([case], view, OFF, REGIONS, background=-1.0, seed=0)
    assert all(torch.equal(data[Key(0, index)]["image"], shown[z]) for index, (_, z) in enumerate(data.slices))


def test_numbers_of_slices_stay_what_they_are():
    item = dataset(augmentation=Augmentation(), size=(10, 14))[Key(1, 4)]
    assert float(item["image"].double().sum()) == pytest.approx(-88.440822, abs=1e-3)
    assert float(item["image"].double().abs().sum()) == pytest.approx(215.783857, abs=1e-3)
    assert float(item["mask"].sum()) == -280
