"""Patches depend on (seed, epoch, index) alone, hold what the volume holds there, and as often a lesion as was asked."""

import numpy as np
import pytest
import torch

from medseg_diff.data.datasets.augmentation import Augmentation
from medseg_diff.data.datasets.batch import Key, SeededDraws, batches
from medseg_diff.data.datasets.cache import PreparedCase
from medseg_diff.data.datasets.patches import PatchDataset
from medseg_diff.data.datasets.slices import SliceDataset
from medseg_diff.data.views import AxialSlices, Patches

REGIONS = {"whole": (1, 2), "core": (2,)}
OFF = Augmentation(probability=0.0)
SHAPE = (14, 12, 10)  # x, y, z
LESION = (11, 2, 7)


def coded(shape=SHAPE, *, lesion=(LESION,), raters=0, name="a"):
    """A case of three channels that hold x, y and z of each voxel, brain everywhere; a lesion of single voxels."""
    places = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))  # [3, X, Y, Z]
    labels = np.zeros((1 + raters, *shape), np.int16)
    for x, y, z in lesion:
        labels[:, x, y, z] = 2
    for rater in range(raters):  # each rater has a voxel of the lesion for himself
        labels[1 + rater] = 0
        labels[1 + rater, rater, 0, 0] = 1
    brain = np.ones((1, *shape), np.uint8)
    arrays = [np.ascontiguousarray(part.transpose(3, 0, 1, 2)) for part in (places.astype(np.float16), labels, brain)]
    return PreparedCase(name, name, *arrays)


def dataset(cases=None, *, augmentation=OFF, seed=0, **view):
    view = Patches(**{"size": (4, 5, 6), "per_case": 6, "lesion_share": 0.5} | view)
    return PatchDataset(cases or [coded()], view, augmentation, REGIONS, background=-1.0, seed=seed)


def corner_of(item):
    return tuple(item["image"][:, 0, 0, 0].int().tolist())


def test_a_patch_is_what_the_volume_holds_there():
    data = dataset()
    for epoch in range(4):
        for index in range(len(data)):
            item = data[Key(epoch, index)]
            corner = corner_of(item)
            assert item["image"].shape == (3, 4, 5, 6) and item["mask"].shape == (2, 4, 5, 6)
            for axis, (start, edge) in enumerate(zip(corner, (4, 5, 6), strict=True)):
                assert 0 <= start <= SHAPE[axis] - edge
                values = item["image"][axis].movedim(axis, 0).flatten(1)
                assert torch.equal(values, (start + torch.arange(edge))[:, None].expand_as(values).float())
            inside = all(s <= v < s + e for s, v, e in zip(corner, LESION, (4, 5, 6), strict=True))
            assert (item["mask"] == 1).sum() == 2 * inside and set(item["mask"].unique().tolist()) <= {-1.0, 1.0}


def test_an_item_is_a_pure_function_of_seed_epoch_and_index():
    full = Augmentation(probability=1.0, flips=(0, 1, 2))
    one, other = dataset(augmentation=full, margin=2), dataset(augmentation=full, margin=2)
    assert torch.equal(one[Key(1, 3)]["image"], other[Key(1, 3)]["image"])
    for key in (Key(2, 3), Key(1, 4)):
        assert not torch.equal(one[Key(1, 3)]["image"], one[key]["image"])
    assert not torch.equal(one[Key(1, 3)]["image"], dataset(augmentation=full, margin=2, seed=1)[Key(1, 3)]["image"])


def test_batches_do_not_depend_on_workers_or_on_where_one_starts():
    data = dataset([coded(), coded(name="b")], augmentation=Augmentation())
    assert len(data) == 12 and [data.case_of(index).name for index in (0, 5, 6)] == ["a", "a", "b"]

    def drawn(workers, start=0):
        return list(batches(data, SeededDraws(len(data), 4, 5, seed=0, start=start), workers=workers))

    alone = drawn(0)
    for one, other in [*zip(alone, drawn(1), strict=True), *zip(alone[3:], drawn(0, 3), strict=True)]:
        assert torch.equal(one.image, other.image) and torch.equal(one.mask, other.mask)
    assert alone[0].image.shape == (4, 3, 4, 5, 6)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_stated_share_of_patches_holds_a_lesion_voxel(share):
    data = dataset(lesion_share=share, per_case=150)
    found = np.mean([(data[Key(0, index)]["mask"] == 1).any().item() for index in range(150)])
    anywhere = np.mean([(data.plain(index)["mask"]).any().item() for index in range(150)])
    assert 0 < anywhere < 0.3
    assert found == pytest.approx(share + (1 - share) * anywhere, abs=0.12)
    assert found == 1 or share < 1


def test_every_voxel_of_a_lesion_is_drawn():
    lesion = [(0, 0, 0), (13, 11, 9), (7, 6, 0), (7, 6, 9)]  # corners too: the patch then lies against the border
    data = dataset([coded(lesion=lesion)], size=(1, 1, 1), lesion_share=1.0, per_case=120)
    corners = [corner_of(data[Key(0, index)]) for index in range(120)]
    assert set(corners) == set(lesion)
    assert min(map(corners.count, lesion)) > 12


def test_the_lesion_is_that_of_the_rater_who_was_drawn():
    data = dataset([coded(raters=3)], size=(1, 1, 1), lesion_share=1.0, per_case=60)
    assert {corner_of(data[Key(0, index)]) for index in range(60)} == {(0, 0, 0), (1, 0, 0), (2, 0, 0)}


def test_a_lesion_of_another_patch_is_pasted():
    healthy, lesion = coded(lesion=(), name="b"), [(x, y, z) for x in (5, 6, 7) for y in (5, 6, 7) for z in (4, 5, 6)]
    paste = Augmentation(probability=0.0, lesion_paste=1.0, translation=0.0)
    data = dataset([healthy, coded(lesion=lesion)], augmentation=paste, size=(10, 10, 10))
    found = [int((data[Key(epoch, 0)]["mask"][0] > 0).sum()) for epoch in range(8)]
    assert data.case_of(0).name == "b" and sum(count > 0 for count in found) >= 4
    alone = dataset([healthy], augmentation=paste)
    assert torch.equal(alone[Key(0, 0)]["image"], dataset([healthy])[Key(0, 0)]["image"])


def test_a_case_without_a_lesion_gives_patches_all_the_same():
    data = dataset([coded(lesion=())], lesion_share=1.0)
    assert all((data[Key(0, index)]["mask"] == -1).all() for index in range(len(data)))


def test_a_small_volume_stands_in_the_middle_of_its_patch():
    data = dataset([coded((3, 5, 4), lesion=())], size=(6, 5, 8), lesion_share=0.0)
    item = data[Key(0, 0)]
    inside = item["image"][:, 1:4, :, 2:6]
    assert torch.equal(inside[0, :, 0, 0], torch.arange(3.0)) and torch.equal(inside[2, 0, 0], torch.arange(4.0))
    outside = torch.ones(6, 5, 8, dtype=torch.bool)
    outside[1:4, :, 2:6] = False
    assert (item["image"][:, outside] == -1).all() and (item["mask"][:, outside] == -1).all()


def test_a_margin_changes_nothing_but_what_turns_in():
    near, far = dataset(), dataset(margin=3)
    for index in range(6):
        assert torch.equal(near[Key(0, index)]["image"], far[Key(0, index)]["image"])
    turning = {"flips": (), "contrast": 0, "brightness": 0, "gamma": 0, "noise": 0, "probability": 1.0, "scaling": 0}
    turn = Augmentation(**turning, translation=0, rotation_degrees=30)
    view = {"size": (8, 8, 8), "lesion_share": 0.0}
    holes = [
        sum(
            float((dataset(augmentation=turn, margin=m, **view)[Key(0, i)]["image"] == -1).float().mean())
            for i in range(6)
        )
        for m in (0, 4)
    ]
    assert holes[1] < holes[0]  # less background turned into the patch


def test_validation_sees_patches_that_nothing_changes():
    plain = dataset(augmentation=Augmentation(probability=1.0)).plain(2)
    again = dataset(augmentation=OFF, lesion_share=1.0).plain(2)
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert plain["mask"].dtype == plain["brain"].dtype == torch.bool and plain["brain"].shape == (1, 4, 5, 6)


def test_slices_and_patches_are_cut_from_the_same_arrays():
    case = coded()
    slices = SliceDataset([case], AxialSlices(size=SHAPE[:2]), OFF, REGIONS, background=-1.0, seed=0)
    whole = dataset([case], size=SHAPE)
    volume = whole[Key(0, 0)]
    for index, (_, z) in enumerate(slices.slices):
        for part in ("image", "mask"):
            assert torch.equal(slices[Key(0, index)][part], volume[part][..., z])
