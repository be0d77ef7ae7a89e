"""A changed brain is still a brain: one background, whole labels that moved with it, and the seed decides all."""

import pytest
import torch

from medseg_diff.data.augmentation import Augmentation

BACKGROUND = -1.0
NOTHING = dict.fromkeys(["rotation_degrees", "scaling", "translation", "contrast", "brightness", "gamma", "noise"], 0.0)
STILL = Augmentation(**NOTHING, flips=())


def head(size=(40, 36)):
    """image [2, X, Y] whose first channel is bright exactly where label 2 is; labels [1, X, Y]; brain [1, X, Y]."""
    x, y = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    brain = (x - 19) ** 2 + (y - 17) ** 2 < 14**2
    lesion = (x - 24).abs().le(4) & (y - 20).abs().le(3)
    first = torch.where(lesion, 0.8, -0.4)
    second = 0.02 * x - 0.3
    image = torch.where(brain, torch.stack([first, second]), BACKGROUND)
    return {"image": image, "labels": (2.0 * lesion)[None], "brain": brain[None]}


def change(augmentation, seed, parts=None):
    return augmentation(**(parts or head()), seed=seed, background=BACKGROUND)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    full = Augmentation()
    first = [change(full, seed) for seed in range(6)]
    again = [change(Augmentation(), seed) for seed in reversed(range(6))][::-1]
    assert all(same(one, other) for one, other in zip(first, again, strict=True))
    assert not any(same(first[0], other) for other in first[1:])
    assert same(change(full, 2**63 - 5), change(full, 2**63 - 5))  # seeds of seed_of have 63 bits


def test_the_input_is_not_changed_in_place():
    before, parts = head(), head()
    for seed in range(4):
        change(Augmentation(probability=1.0), seed, parts)
    assert same(before, parts)


def test_outside_the_moved_brain_stands_the_background_exactly():
    for seed in range(12):
        changed = change(Augmentation(probability=1.0), seed)
        outside = ~changed["brain"].expand_as(changed["image"])
        assert changed["brain"].dtype == torch.bool and 0.4 < changed["brain"].sum() / head()["brain"].sum() < 1.7
        assert (changed["image"][outside] == BACKGROUND).all()
        assert changed["image"].isfinite().all() and changed["image"].shape == head()["image"].shape


def test_labels_stay_whole_and_move_with_the_image():
    moving = Augmentation(**NOTHING | {"rotation_degrees": 15, "scaling": 0.15, "translation": 4.0}, probability=1.0)
    for seed in range(12):
        changed = change(moving, seed)
        assert set(changed["labels"].unique().tolist()) == {0.0, 2.0}
        assert not torch.equal(changed["labels"], head()["labels"])
        bright, lesion = changed["image"][0] > 0.2, changed["labels"][0] == 2
        overlap = 2 * (bright & lesion).sum() / (bright.sum() + lesion.sum())
        assert overlap > 0.9  # the image is interpolated linearly, the labels to the nearest


def test_a_flip_is_a_mirror_of_everything():
    mirror = Augmentation(**NOTHING, flips=(0,), probability=1.0)
    assert same(change(mirror, 3), {name: part.flip(1) for name, part in head().items()})


@pytest.mark.parametrize("kind", ["contrast", "brightness", "gamma", "noise"])
def test_each_change_of_intensity_leaves_the_geometry_alone(kind):
    only = Augmentation(**NOTHING | {kind: 0.3}, flips=(), probability=1.0)
    changed = change(only, 1)
    assert torch.equal(changed["brain"], head()["brain"]) and torch.equal(changed["labels"], head()["labels"])
    assert not torch.equal(changed["image"], head()["image"])


def test_switched_off_it_is_the_identity():
    assert same(change(STILL, 5), head())
    assert same(change(Augmentation(probability=0.0), 5), head())


def test_it_leaves_monai_and_the_global_generators_as_they_were():
    from monai.data import get_track_meta

    before = torch.random.get_rng_state()
    change(Augmentation(probability=1.0), 0)
    assert get_track_meta() and torch.equal(torch.random.get_rng_state(), before)
    assert type(change(Augmentation(), 0)["labels"]) is torch.Tensor
