"""A changed brain is still a brain: one background, whole labels that moved with it, and the seed decides all."""

import pytest
import torch

from medseg_diff.data.datasets.augmentation import Augmentation

BACKGROUND = -1.0
INTENSITIES = ["contrast", "brightness", "gamma", "histogram", "bias", "blur", "noise"]
NOTHING = dict.fromkeys(["rotation_degrees", "scaling", "translation", *INTENSITIES], 0.0)
STILL = Augmentation(**NOTHING, flips=())


def head(size=(40, 36)):
    """image [2, X, Y] whose first channel is bright exactly where label 1 is; labels [1, X, Y]; brain [1, X, Y]."""
    x, y = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    brain = (x - 19) ** 2 + (y - 17) ** 2 < 14**2
    lesion = (x - 24).abs().le(4) & (y - 20).abs().le(3)
    first = torch.where(lesion, 0.8, -0.4)
    second = 0.02 * x - 0.3
    image = torch.where(brain, torch.stack([first, second]), BACKGROUND)
    return {"image": image, "labels": lesion.float()[None], "brain": brain[None]}


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
        assert set(changed["labels"].unique().tolist()) == {0.0, 1.0}
        assert not torch.equal(changed["labels"], head()["labels"])
        bright, lesion = changed["image"][0] > 0.2, changed["labels"][0] == 1
        overlap = 2 * (bright & lesion).sum() / (bright.sum() + lesion.sum())
        assert overlap > 0.9  # the image is interpolated linearly, the labels to the nearest


def test_a_flip_is_a_mirror_of_everything():
    mirror = Augmentation(**NOTHING, flips=(0,), probability=1.0)
    assert same(change(mirror, 3), {name: part.flip(1) for name, part in head().items()})


@pytest.mark.parametrize("kind", INTENSITIES)
def test_each_change_of_intensity_leaves_the_geometry_alone(kind):
    only = Augmentation(**NOTHING | {kind: 0.3}, flips=(), probability=1.0)
    changed = change(only, 1)
    assert torch.equal(changed["brain"], head()["brain"]) and torch.equal(changed["labels"], head()["labels"])
    assert not torch.equal(changed["image"], head()["image"])


def test_gamma_bends_the_curve_of_the_brain_and_keeps_its_mean_and_deviation():
    parts = ball()
    brain = parts["brain"][0]
    parts["image"][:, brain] += 0.1 * torch.randn(2, int(brain.sum()), generator=torch.Generator().manual_seed(0))
    only = Augmentation(**NOTHING | {"gamma": 0.5}, flips=(), probability=1.0)
    changed = change(only, 1, parts)["image"]
    for before, after in zip(parts["image"], changed, strict=True):
        assert (after[~brain] == BACKGROUND).all() and not torch.equal(after, before)
        torch.testing.assert_close(after[brain].mean(), before[brain].mean())
        torch.testing.assert_close(after[brain].std(), before[brain].std())
        assert torch.equal(after[brain].argsort(), before[brain].argsort())
    nobody = parts | {"brain": torch.zeros_like(parts["brain"])}
    assert (change(only, 1, nobody)["image"] == BACKGROUND).all()


def test_each_channel_gets_a_scanner_of_its_own():
    parts = head()
    parts["image"][0] = parts["image"][1]  # of two values alone, gamma could not bend anything
    for kind in INTENSITIES:
        changed = change(Augmentation(**NOTHING | {kind: 0.9}, flips=(), probability=1.0), 2, parts)["image"]
        assert not torch.equal(changed[0], changed[1]), kind


def test_a_histogram_is_bent_within_its_range_and_never_turned():
    parts = head()
    brain = parts["brain"][0]
    bent = change(Augmentation(**NOTHING | {"histogram": 1.0}, flips=(), probability=1.0), 1, parts)["image"][1][brain]
    before = parts["image"][1][brain]
    order = before.argsort()
    assert (bent[order].diff() >= -1e-6).all() and (bent - before).abs().max() > 0.01
    torch.testing.assert_close(torch.stack(bent.aminmax()), torch.stack(before.aminmax()))


def test_a_bias_field_multiplies_what_is_counted_from_the_background():
    parts = head()
    brain = parts["brain"][0]
    changed = change(Augmentation(**NOTHING | {"bias": 0.3}, flips=(), probability=1.0), 1, parts)["image"]
    field = ((changed[0] - BACKGROUND) / (parts["image"][0] - BACKGROUND)).log()
    steps = torch.where(brain[1:] & brain[:-1], field.diff(dim=0), 0.0)
    assert field[brain].std() > 0.02 and steps.abs().max() < 0.1  # uneven, and smooth across the lesion's edge


def test_a_dimmed_channel_fades_towards_its_mean():
    parts = head()
    brain = parts["brain"][0]
    faded = [change(Augmentation(**NOTHING | {"dimming": 0.5}, flips=()), seed, parts)["image"] for seed in range(40)]
    before, shares = parts["image"][:, brain], []
    for image in faded:
        after = image[:, brain]
        torch.testing.assert_close(after.mean(1), before.mean(1), atol=1e-4, rtol=0)
        shares += (after.std(1) / before.std(1)).tolist()
    whole = [share > 0.999 for share in shares]
    assert 0.3 < sum(whole) / len(whole) < 0.7
    assert all(share < 0.501 for share in shares if share < 0.999) and min(shares) < 0.1


def test_a_lesion_gets_fainter_or_stronger_and_the_rest_of_the_brain_stays():
    parts = head()
    only = Augmentation(**NOTHING | {"lesion_contrast": 0.7}, flips=())
    far = parts["brain"][0] & (torch.nn.functional.max_pool2d(parts["labels"], 13, 1, 6)[0] == 0)
    middle, rest = parts["image"][0, 24, 20], parts["image"][0, parts["brain"][0] & (parts["labels"][0] == 0)].mean()
    gains = []
    for seed in range(60):
        image = change(only, seed, parts)["image"]
        torch.testing.assert_close(image[:, far], parts["image"][:, far], atol=1e-4, rtol=0)
        gains.append(float((image[0, 24, 20] - rest) / (middle - rest)))
    assert 0.25 < sum(abs(gain - 1) < 1e-6 for gain in gains) / 60 < 0.75
    assert 0.29 < min(gains) < 0.5 and 1.4 < max(gains) < 1.71
    nobody = parts | {"labels": torch.zeros_like(parts["labels"])}
    assert same(change(only, 1, nobody), nobody)
    everything = parts | {"labels": torch.ones_like(parts["labels"])}
    assert same(change(only, 1, everything), everything)


def donor(value=0.9, rest=-0.6):
    """Another head, darker, without fine structure, with a large bright lesion in its middle."""
    parts = head()
    x, y = torch.meshgrid(*(torch.arange(n) for n in (40, 36)), indexing="ij")
    lesion = ((x - 19) ** 2 + (y - 17) ** 2 < 7**2)[None]
    image = torch.where(parts["brain"], torch.where(lesion, value, rest), BACKGROUND).repeat(2, 1, 1)
    return {"image": image, "labels": lesion.float(), "brain": parts["brain"]}


def test_a_pasted_lesion_lies_in_the_brain_and_is_as_far_above_it_as_it_was_above_its_own():
    healthy, sizes = head(), []
    healthy["image"][:, healthy["brain"][0]] = 0.0
    healthy["labels"] *= 0
    for seed in range(30):
        changed = STILL(**healthy, seed=seed, background=BACKGROUND, donor=donor())
        lesion, brain = changed["labels"][0] == 1, changed["brain"][0]
        assert torch.equal(brain, healthy["brain"][0]) and not (lesion & ~brain).any()
        assert (changed["image"][:, ~brain] == BACKGROUND).all()
        bright = changed["image"][0] > 0.75  # half of 0.9 - -0.6
        assert 2 * (bright & lesion).sum() / (bright.sum() + lesion.sum()) > 0.85
        assert 0.6 < changed["image"][0].max() <= 1.51 and changed["image"][:, brain].min() > -0.2
        sizes.append(float(lesion.sum() / donor()["labels"].sum()))
    assert min(sizes) < 0.35 and max(sizes) > 0.9


def test_a_pasted_lesion_replaces_what_was_there_and_leaves_the_rest():
    for seed in range(10):
        changed = STILL(**head(), seed=seed, background=BACKGROUND, donor=donor())
        far = torch.nn.functional.max_pool2d(changed["labels"], 13, 1, 6)[0] == 0
        assert torch.equal(changed["image"][:, far], head()["image"][:, far])
        assert (changed["labels"] >= head()["labels"] * (changed["image"][:1] > 0.79)).all()
    without = donor() | {"labels": torch.zeros(1, 40, 36)}
    assert same(STILL(**head(), seed=1, background=BACKGROUND, donor=without), head())


def test_a_lesion_is_pasted_among_neighbours_and_into_volumes():
    changed = STILL(**among_neighbours(), seed=1, background=BACKGROUND, donor=among_neighbours())
    image = changed["image"].unflatten(0, (2, 3))
    assert torch.equal(image[:, 0], image[:, 2]) and changed["labels"].sum() > head()["labels"].sum()
    lesion = torch.zeros_like(ball()["labels"])
    lesion[:, 9:13, 8:12, 7:11] = 1
    parts = ball() | {"labels": torch.zeros_like(lesion)}
    pasted = STILL(**parts, seed=2, background=BACKGROUND, donor=ball() | {"labels": lesion})
    assert pasted["image"].shape == parts["image"].shape and 0 < pasted["labels"].sum() < 2 * lesion.sum()


def test_switched_off_it_is_the_identity():
    assert same(change(STILL, 5), head())
    assert same(change(Augmentation(probability=0.0), 5), head())


def test_it_leaves_monai_and_the_global_generators_as_they_were():
    from monai.data import get_track_meta

    before = torch.random.get_rng_state()
    change(Augmentation(probability=1.0), 0)
    assert get_track_meta() and torch.equal(torch.random.get_rng_state(), before)
    assert type(change(Augmentation(), 0)["labels"]) is torch.Tensor


def ball(size=(22, 20, 18)):
    """A volume whose first channel is bright exactly where label 1 is."""
    x, y, z = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    brain = (x - 10) ** 2 + (y - 9) ** 2 + (z - 8) ** 2 < 8**2
    lesion = (x - 13).abs().le(2) & (y - 11).abs().le(2) & (z - 7).abs().le(3)
    image = torch.where(brain, torch.stack([torch.where(lesion, 0.8, -0.4), 0.02 * x - 0.3]), BACKGROUND)
    return {"image": image, "labels": lesion.float()[None], "brain": brain[None]}


def test_a_slice_is_shifted_and_scaled_along_both_axes():
    shifted = Augmentation(**NOTHING | {"translation": 4.0}, flips=(), probability=1.0)
    scaled = Augmentation(**NOTHING | {"scaling": 0.3}, flips=(), probability=1.0)
    middles, sides = (
        torch.stack([measure(change(moving, seed)["brain"][0].nonzero().float()) for seed in range(8)])
        for moving, measure in ((shifted, lambda place: place.mean(0)), (scaled, lambda place: place.std(0)))
    )
    assert (middles.std(0) > 0.5).all() and (sides.std(0) > 0.3).all()


def test_a_volume_turns_about_all_its_axes_with_its_labels():
    moving = Augmentation(**NOTHING | {"rotation_degrees": 20, "translation": 2.0}, flips=(), probability=1.0)
    spread = []
    for seed in range(6):
        changed = change(moving, seed, ball())
        bright, lesion = changed["image"][0] > 0.2, changed["labels"][0] == 1
        assert 2 * (bright & lesion).sum() / (bright.sum() + lesion.sum()) > 0.8
        assert (changed["image"][:, ~changed["brain"][0]] == BACKGROUND).all()
        spread.append(lesion.nonzero().float().mean(0))
    assert (torch.stack(spread).std(0) > 0.2).all()  # along every axis
    grown = Augmentation(**NOTHING | {"scaling": 0.3}, flips=(), probability=1.0)
    sides = torch.stack([change(grown, seed, ball())["brain"][0].nonzero().float().std(0) for seed in range(6)])
    assert (sides.std(0) > 0.1).all()
    assert same(change(moving, 3, ball()), change(moving, 3, ball()))


def test_a_volume_may_be_mirrored_along_its_third_axis():
    mirror = Augmentation(**NOTHING, flips=(2,), probability=1.0)
    assert same(change(mirror, 3, ball()), {name: part.flip(3) for name, part in ball().items()})
    assert same(change(STILL, 3, ball()), ball())


def among_neighbours(count=3):
    """The slice as each of its own neighbours: image [2 N, X, Y], those of a channel beside each other; brain [N, X, Y]."""
    parts = head()
    image = parts["image"].repeat_interleave(count, dim=0)
    return {"image": image, "labels": parts["labels"], "brain": parts["brain"].repeat(count, 1, 1)}


@pytest.mark.parametrize("kind", ["rotation_degrees", "scaling", "contrast", "brightness", "gamma"])
def test_neighbours_change_as_one_and_channels_apart(kind):
    only = Augmentation(**NOTHING | {kind: 0.4 if kind != "rotation_degrees" else 15}, flips=(0,), probability=1.0)
    changed = change(only, 1, among_neighbours())
    image = changed["image"].unflatten(0, (2, 3))
    assert torch.equal(image[:, 0], image[:, 1]) and torch.equal(image[:, 0], image[:, 2])
    near = 1e-3 if kind == "gamma" else 0  # the deviation it keeps is that of all neighbours
    torch.testing.assert_close(image[:, 0], change(only, 1)["image"], atol=near, rtol=0)  # as the slice alone
    assert changed["brain"].shape == (3, 40, 36)


def test_noise_is_each_neighbours_own():
    only = Augmentation(**NOTHING | {"noise": 0.2}, flips=(), probability=1.0)
    image = change(only, 1, among_neighbours())["image"].unflatten(0, (2, 3))
    assert not torch.equal(image[:, 0], image[:, 1])


def test_every_neighbour_has_the_background_outside_its_own_brain():
    parts = among_neighbours()
    parts["brain"][2, :20] = False
    changed = change(Augmentation(probability=1.0), 2, parts)
    image = changed["image"].unflatten(0, (2, 3))
    assert not torch.equal(changed["brain"][0], changed["brain"][2])
    for place in range(3):
        assert (image[:, place, ~changed["brain"][place]] == BACKGROUND).all()


def test_channel_dropout_takes_whole_channels_at_its_rate_and_never_all():
    parts = head()
    parts["image"] = torch.cat([parts["image"], parts["image"]])
    dropping = Augmentation(**NOTHING, flips=(), channel_dropout=0.4)
    gone = []
    for seed in range(150):
        changed = change(dropping, seed, parts)
        lost = (changed["image"] == BACKGROUND).flatten(1).all(1)
        assert torch.equal(changed["image"][~lost], parts["image"][~lost]) and not lost.all()
        gone.append(lost)
    rates = torch.stack(gone).float().mean(0)
    assert (rates - 0.4).abs().max() < 0.13
    assert same(change(dropping, 5, parts), change(dropping, 5, parts))
    often = Augmentation(**NOTHING, flips=(), channel_dropout=0.99)
    kept = [(change(often, seed, parts)["image"] != BACKGROUND).flatten(1).any(1) for seed in range(60)]
    assert {int(one.sum()) for one in kept} >= {1} and (torch.stack(kept).sum(0) > 3).all()


def test_channel_dropout_leaves_the_other_changes_as_they_are():
    full, dropping = Augmentation(), Augmentation(channel_dropout=0.5)
    for seed in range(8):
        with_all, changed = change(full, seed), change(dropping, seed)
        lost = (changed["image"] == BACKGROUND).flatten(1).all(1)
        assert torch.equal(changed["image"][~lost], with_all["image"][~lost])
        assert torch.equal(changed["labels"], with_all["labels"])


def test_a_channel_is_dropped_with_its_neighbours():
    dropping = Augmentation(**NOTHING, flips=(), channel_dropout=0.5)
    seen = set()
    for seed in range(30):
        image = change(dropping, seed, among_neighbours())["image"].unflatten(0, (2, 3))
        lost = (image == BACKGROUND).flatten(2).all(2)
        assert torch.equal(lost[:, 0], lost[:, 1]) and torch.equal(lost[:, 0], lost[:, 2])
        seen.add(tuple(lost[:, 0].tolist()))
    assert seen == {(False, False), (True, False), (False, True)}


def test_what_a_case_lacks_stays_background_and_its_only_channel_is_never_taken():
    brain = torch.zeros(1, 32, 32, dtype=torch.uint8)
    brain[:, 4:28, 4:28] = 1
    image, labels = torch.full((3, 32, 32), -1.0), torch.zeros(1, 32, 32)
    image[1] = torch.where(brain[0] > 0, torch.rand(32, 32, generator=torch.Generator().manual_seed(0)), -1.0)
    labels[:, 10:16, 10:16] = 1
    donor = {"image": image.roll(1, 0), "labels": labels, "brain": brain}  # of another channel
    augmentation = Augmentation(channel_dropout=0.5, lesion_paste=1, lesion_contrast=0.5, noise=0.3)
    for seed in range(40):
        changed = augmentation(image, labels, brain, seed=seed, background=-1.0, donor=donor)["image"]
        assert (changed[[0, 2]] == -1).all() and (changed[1] != -1).any()
