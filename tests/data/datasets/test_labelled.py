"""What a slice's label is, where it is not known, and that healthy and diseased come in turn."""

import numpy as np
import pytest
import torch

from medseg_diff.data.datasets.augmentation import Augmentation
from medseg_diff.data.datasets.batch import Key, SeededDraws
from medseg_diff.data.datasets.cache import PreparedCase, prepare_training_case
from medseg_diff.data.datasets.labelled import (
    UNKNOWN,
    HalfAndHalf,
    LabelledSlices,
    Some,
    balanced,
    is_labelled,
    present_labels,
)
from medseg_diff.data.datasets.slices import SliceDataset
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Preparation
from medseg_diff.data.views import AxialSlices
from medseg_diff.errors import ImageError, UsageError

STILL = Augmentation(
    flips=(), rotation_degrees=0, scaling=0, translation=0, contrast=0, brightness=0, gamma=0, noise=0.0
)


def case_of(name, slices, marked=(), label=2):
    """A block of brain with a lesion voxel in the slices `marked`; each slice holds its own number."""
    image = np.zeros((slices, 1, 8, 8), np.float16) + np.arange(slices, dtype=np.float16)[:, None, None, None] / 100
    labels = np.zeros((slices, 1, 8, 8), np.int16)
    labels[list(marked), 0, 4, 4] = label
    return PreparedCase(name, name, image, labels, np.ones((slices, 1, 8, 8), np.uint8))


def slices_of(cases, labelled, labels=(2,), augmentation=STILL, fewest=1):
    view = AxialSlices(size=(8, 8), smallest_brain=0.0)
    base = SliceDataset(cases, view, augmentation, {"diseased": labels}, background=-1.0, seed=3)
    return LabelledSlices(base, labelled, fewest=fewest)


def test_a_case_has_labels_by_its_reference_its_raters_or_its_word(tmp_path):
    assert is_labelled(Case("a", "a", seg=tmp_path / "s.nii"))
    assert is_labelled(Case("a", "a", raters=(tmp_path / "s.nii",)))
    assert is_labelled(Case("a", "a", label="healthy"))
    assert not is_labelled(Case("a", "a", label="diseased")) and not is_labelled(Case("a", "a"))


def test_a_slice_is_diseased_where_one_voxel_is_and_unknown_where_nothing_is_known():
    slices = slices_of([case_of("a", 4, marked=[1]), case_of("b", 2)], [True, False])
    assert slices.classes.tolist() == [0, 1, 0, 0, UNKNOWN, UNKNOWN]
    assert [slices[Key(0, number)]["label"].item() for number in range(6)] == [0, 1, 0, 0, UNKNOWN, UNKNOWN]
    assert slices_of([case_of("a", 4, marked=[1])], [True], labels=(1,)).classes.tolist() == [0, 0, 0, 0]


def test_a_slice_with_a_few_diseased_voxels_only_may_count_as_unknown():
    case = case_of("a", 3, marked=[0, 1])
    case.labels[1, 0, 2, :5] = 2
    assert slices_of([case], [True], fewest=6).classes.tolist() == [UNKNOWN, 1, 0]
    assert slices_of([case], [True], fewest=7).classes.tolist() == [UNKNOWN, UNKNOWN, 0]


def test_the_reference_says_it_whatever_the_raters_see():
    case = case_of("a", 2, marked=[0])
    raters = np.stack([np.zeros_like(case.labels[:, 0]), np.full_like(case.labels[:, 0], 2)], axis=1)
    case = PreparedCase("a", "a", case.image, np.concatenate([case.labels, raters], axis=1), case.brain)
    slices = slices_of([case], [True])
    shown = [slices[Key(epoch, n)]["label"].item() for epoch in range(4) for n in (0, 1)]
    assert shown == [1, 0] * 4


def test_the_labels_that_there_are():
    assert present_labels([case_of("a", 3, [0], 4), case_of("b", 3, [1], 1), case_of("c", 3)]) == (1, 4)


def test_healthy_and_diseased_come_in_turn_and_all_of_both_in_a_pass():
    slices = slices_of([case_of("a", 7, marked=[1, 2]), case_of("b", 2)], [True, False])
    half = HalfAndHalf(slices)
    assert len(half) == 10
    assert [half[Key(0, n)]["label"].item() for n in range(10)] == [0, 1] * 5
    shown = [round(float(half[Key(0, n)]["image"].mean()) * 100) for n in range(10)]
    assert sorted(shown[::2]) == [0, 3, 4, 5, 6] and sorted(shown[1::2]) == [1, 1, 1, 2, 2]


def test_a_slice_that_comes_again_in_a_pass_is_changed_otherwise():
    slices = slices_of([case_of("a", 7, marked=[1])], [True], augmentation=STILL.but(probability=1.0, noise=0.5))
    half = HalfAndHalf(slices)
    again = [half[Key(epoch, n)]["image"] for epoch in (0, 1) for n in (1, 3, 5)]
    assert all(not torch.equal(a, b) for i, a in enumerate(again) for b in again[:i])
    assert torch.equal(half[Key(1, 3)]["image"], again[4])  # a pure function of the key


def test_batches_of_a_pass_hold_half_of_each():
    half = HalfAndHalf(slices_of([case_of("a", 20, marked=[3, 4, 5])], [True]))
    keys = [key for batch in SeededDraws(len(half), 2, len(half) // 2, seed=0) for key in batch]
    assert sum(half[key]["label"].item() for key in keys) == len(half) / 2


def heights_shown(half, passes):
    """The number of each slice that comes, healthy and diseased apart, over some passes of 20-slice cases."""
    found = [[], []]
    for epoch in range(passes):
        for n in range(len(half)):
            item = half[Key(epoch, n)]
            found[item["label"].item()].append(round(float(item["image"].mean()) * 100))
    return found


def test_at_the_same_height_where_a_slice_lies_does_not_tell_what_it_is():
    cases = [case_of("a", 20, marked=range(8, 12)), *(case_of(name, 20) for name in "bcd")]
    slices = slices_of(cases, [True] * 4)
    assert slices.heights[:20].tolist() == pytest.approx([n / 19 for n in range(20)])
    healthy, diseased = heights_shown(HalfAndHalf(slices, same_height=True), passes=2)
    assert set(diseased) == {8, 9, 10, 11} and len(healthy) == len(diseased)
    assert 0.8 < np.mean([7 <= n <= 12 for n in healthy]) < 1  # a few come from anywhere
    anywhere, _ = heights_shown(HalfAndHalf(slices), passes=2)
    assert np.mean([7 <= n <= 12 for n in anywhere]) < 0.4


def test_where_no_healthy_slice_lies_at_that_height_the_nearest_come():
    slices = slices_of([case_of("a", 40, marked=range(10, 40))], [True])
    healthy, _ = heights_shown(HalfAndHalf(slices, same_height=True), passes=2)
    assert set(healthy) <= set(range(10)) and np.mean([n >= 2 for n in healthy]) > 0.9  # the nearest eight
    assert len(set(healthy)) > 6


def test_a_draw_at_the_same_height_is_a_pure_function_of_its_key():
    slices = slices_of(
        [case_of("a", 20, marked=range(8, 12))], [True], augmentation=STILL.but(probability=1.0, noise=0.5)
    )
    half, again = HalfAndHalf(slices, same_height=True), HalfAndHalf(slices, same_height=True)
    keys = [Key(epoch, n) for epoch in (0, 3) for n in range(len(half))]
    assert all(torch.equal(half[key]["image"], again[key]["image"]) for key in reversed(keys))
    assert len({half[key]["image"].numpy().tobytes() for key in keys}) == len(keys)


def test_a_balanced_choice_lies_at_the_same_heights():
    """Healthy slices from all over, diseased ones from the middle: knowing heights must be no skill."""
    heights = np.tile(np.linspace(0, 1, 50), 4)
    classes = np.array([1 if case < 2 and 0.3 < height < 0.6 else 0 for case in range(4) for height in heights[:50]])
    chosen = balanced(classes, heights, 20)
    assert classes[chosen].tolist() == [0] * 10 + [1] * 10 and len(set(chosen)) == 20
    assert heights[chosen[:10]] == pytest.approx(heights[chosen[10:]], abs=0.05)
    only = balanced(np.zeros(50, dtype=int), heights[:50], 20)
    assert heights[only].tolist() == pytest.approx(np.linspace(0, 1, 10), abs=0.02)
    few = balanced(np.array([1, 0, 0, 1, -1]), np.array([0.1, 0.9, 0.4, 0.5, 0.5]), 20)
    assert few == [2, 1, 0, 3]


@pytest.mark.parametrize(("marked", "said"), [([], "no training slice is diseased"), ([0, 1], "slice is healthy")])
def test_one_kind_alone_teaches_nothing(marked, said):
    with pytest.raises(UsageError, match=said):
        HalfAndHalf(slices_of([case_of("a", 2, marked=marked)], [True]))


def test_a_case_without_reference_is_prepared_where_none_is_needed(phantoms, tmp_path):
    from medseg_diff.data.tables.manifest import read_manifest

    case = read_manifest(phantoms).cases[0]
    bare = Case("bare", "bare", images=case.images, label="healthy")
    prepared = prepare_training_case(bare, ("t1",), Preparation(), tmp_path, needs_reference=False)
    assert prepared.labels.shape[1] == 1 and not prepared.labels.any() and prepared.image.any()
    with pytest.raises(ImageError, match="has no reference"):
        prepare_training_case(bare, ("t1",), Preparation(), tmp_path)


def test_some_slices_are_those_of_a_label_or_those_whose_lesions_are_known():
    slices = slices_of([case_of("a", 4, marked=[1]), case_of("b", 2), case_of("c", 2)], [True, False, True])
    known = Some.of_known_lesions(slices)
    assert known.places.tolist() == [0, 1, 2, 3, 6, 7] and len(known) == 6
    assert torch.equal(known[Key(0, 4)]["image"], slices[Key(0, 6)]["image"])
    assert known[Key(0, 1)]["mask"].max() == 1 and known[Key(0, 0)]["mask"].max() == -1
    assert Some.of_label(slices, 1).places.tolist() == [1]
    with pytest.raises(UsageError, match="no training slice is diseased"):
        Some.of_label(slices_of([case_of("a", 3)], [True]), 1)
