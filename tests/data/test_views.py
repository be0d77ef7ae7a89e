"""Cutting and joining lose nothing; cropping and padding put everything where it belongs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg_diff.data.views import AxialSlices, Patches, fit_to


@given(st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_cut_then_join_is_the_identity(shape):
    volume = torch.arange(torch.Size(shape).numel()).view(shape)
    slices = AxialSlices().cut(volume)
    assert slices.shape == (shape[3], shape[0], shape[1], shape[2])
    assert torch.equal(slices[-1], volume[..., -1])
    assert torch.equal(AxialSlices().join(slices), volume)


def brain_of(areas, side=10):
    """A volume whose z-th slice holds areas[z] brain voxels."""
    brain = torch.zeros(1, side, side, len(areas), dtype=torch.bool)
    for z, area in enumerate(areas):
        flat = torch.zeros(side * side, dtype=torch.bool)
        flat[:area] = True
        brain[0, :, :, z] = flat.view(side, side)
    return brain


def test_training_leaves_out_slices_with_little_brain_and_the_dropped_ends():
    brain = brain_of([0, 4, 5, 60, 100, 80, 6, 0])
    assert AxialSlices(smallest_brain=0.05).for_training(brain) == [2, 3, 4, 5, 6]
    assert AxialSlices(smallest_brain=0.0).for_training(brain) == [1, 2, 3, 4, 5, 6]
    assert AxialSlices(smallest_brain=0.05, drop=(3, 2)).for_training(brain) == [3, 4, 5]
    assert AxialSlices(drop=(5, 5)).for_training(brain) == []


def test_sampling_takes_every_slice_with_any_brain():
    assert AxialSlices(drop=(3, 2)).for_sampling(brain_of([0, 1, 0, 60, 1, 0])) == [1, 3, 4]
    assert AxialSlices(drop=(2, 2), sample_dropped=False).for_sampling(brain_of([0, 1, 0, 60, 1, 0])) == [3]
    assert AxialSlices().for_sampling(brain_of([0, 0])) == []


@given(have=st.tuples(st.integers(1, 9), st.integers(1, 9)), wanted=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_fit_to_keeps_the_middle_and_fills_evenly(have, wanted):
    image = torch.arange(1.0, 1 + 2 * have[0] * have[1]).view(2, *have)
    fitted = fit_to(wanted, image, fill=-1.0)
    assert fitted.shape == (2, *wanted)
    common = torch.Size([min(a, b) for a, b in zip(have, wanted, strict=True)]).numel()
    assert (fitted != -1).sum() == 2 * common
    again = fit_to(have, fitted, fill=-1.0)
    kept = again != -1
    assert kept.sum() == 2 * common and torch.equal(again[kept], image[kept])


def test_fit_to_at_a_corner():
    image = torch.arange(20.0).view(1, 4, 5)
    assert torch.equal(fit_to((2, 3), image, fill=0, corner=(1, 2)), image[:, 1:3, 2:5])
    taller = fit_to((6, 3), image, fill=-1.0, corner=(0, 1))
    assert torch.equal(taller[:, 1:5], image[:, :, 1:4])
    assert (taller[:, [0, 5]] == -1).all()


@pytest.mark.parametrize("wrong", [{"smallest_brain": 1.0}, {"smallest_brain": -0.1}, {"size": [64]}, {"kind": "cube"}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AxialSlices().but(**wrong)


def test_without_context_the_network_is_shown_the_slices_themselves():
    volume = torch.randn(3, 4, 5, 6)
    view = AxialSlices()
    assert torch.equal(view.conditions(volume, background=-1.0), view.cut(volume)) and view.shown(3) == 3


@pytest.mark.parametrize("context", [1, 2])
def test_neighbours_stand_beside_a_slice_channel_by_channel(context):
    volume = torch.randn(2, 4, 5, 6)
    view, around = AxialSlices(context=context), 1 + 2 * context
    shown = view.conditions(volume, background=-7.0)
    assert shown.shape == (6, view.shown(2), 4, 5) and view.shown(2) == 2 * around
    for z in range(6):
        for channel in range(2):
            for place, there in enumerate(range(z - context, z + context + 1)):
                found = shown[z, channel * around + place]
                wanted = volume[channel, :, :, there] if 0 <= there < 6 else torch.full((4, 5), -7.0)
                assert torch.equal(found, wanted)


def test_a_volume_is_one_piece_of_a_patch_view():
    volume, view = torch.randn(2, 4, 5, 6), Patches(size=(4, 4, 4))
    assert torch.equal(view.cut(volume)[0], volume) and torch.equal(view.join(view.cut(volume)), volume)
    assert torch.equal(view.conditions(volume, background=-1.0), view.cut(volume)) and view.shown(2) == 2
    assert view.for_sampling(brain_of([0, 3])) == [0] and view.for_sampling(brain_of([0, 0])) == []


def test_noise_belongs_to_a_slice_or_to_a_volume():
    assert AxialSlices().owner(3) == (3,) and Patches().owner(0) == ("volume",)


@pytest.mark.parametrize(
    "wrong", [{"size": [0, 4, 4]}, {"size": [4, 4]}, {"lesion_share": 1.5}, {"overlap": 1.0}, {"per_case": 0}]
)
def test_patches_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Patches().but(**wrong)
