"""What is hidden of an image: patches of the asked size and share, from noise alone, and nothing left of what they cover."""

import pytest
import torch
from scipy import ndimage

from medseg_diff.diffusion.hiding import Box, blurred, blurred_inside, brain_of, grown, patches, shown, without_holes


def noise_of(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(9, 14), (7, 9, 8)])
@pytest.mark.parametrize("width", [0.7, 2.0])
def test_a_blur_is_a_gaussian_along_every_axis(size, width):
    values = noise_of(2, 1, *size)
    theirs = [
        ndimage.gaussian_filter(each.numpy(), width, mode="constant", radius=max(1, -int(-3 * width // 1)))
        for each in values[:, 0]
    ]
    torch.testing.assert_close(blurred(values, width)[:, 0], torch.stack([torch.from_numpy(each) for each in theirs]))


def test_a_blur_keeps_its_precision_inside_of_an_autocast():
    values = noise_of(1, 1, 9, 9).float()
    with torch.autocast("cpu", torch.bfloat16):
        within = blurred(values, 1.5)
    assert torch.equal(within, blurred(values, 1.5))


def test_inside_a_mask_a_constant_stays_what_it_is():
    inside = noise_of(2, 1, 12, 9) > 0.3
    torch.testing.assert_close(blurred_inside(torch.full((2, 1, 12, 9), 2.5), inside, 1.5), 2.5 * inside.float())


@pytest.mark.parametrize("share", [0.5, 0.0, 1.0, torch.tensor([0.1, 0.7])], ids=str)
def test_patches_take_their_share_of_each_sample_and_nothing_outside(share):
    among = noise_of(2, 1, 20, 22) > -0.5
    taken = patches(noise_of(2, 1, 20, 22, seed=1), among, width=2.0, share=share)
    assert not (taken & ~among).any()
    sizes = among.flatten(1).sum(1)
    assert taken.flatten(1).sum(1).tolist() == (sizes * share).round().long().tolist()


def test_patches_belong_to_their_sample_and_are_as_wide_as_asked():
    among, noise = torch.ones(2, 1, 48, 48, dtype=torch.bool), noise_of(2, 1, 48, 48)
    changes = []
    for width in (2.0, 6.0):
        taken = patches(noise, among, width=width)
        torch.testing.assert_close(patches(noise[1:], among[1:], width=width), taken[1:])
        changes.append(float((taken[..., 1:] != taken[..., :-1]).double().mean()))
    assert changes[1] < changes[0] / 2 < 0.15


def test_of_no_voxels_nothing_is_taken():
    assert not patches(noise_of(1, 1, 5, 5), torch.zeros(1, 1, 5, 5, dtype=torch.bool), width=2.0).any()


def test_what_is_hidden_is_not_shown_and_the_rest_is():
    image, hidden = noise_of(2, 3, 6, 5), noise_of(2, 1, 6, 5, seed=1) > 0
    seen = shown(image, hidden).image
    assert torch.equal(seen[:, 3:].bool(), hidden) and not seen[:, :3][hidden.expand_as(image)].any()
    assert torch.equal(torch.where(hidden, 0, image), seen[:, :3])
    torch.testing.assert_close(shown(torch.where(hidden, 9, image), hidden).image, seen)  # whatever lies there


def test_a_brain_is_what_any_channel_shows():
    image = torch.full((1, 2, 2, 2), -1.0)
    image[0, 1, 0, 1], image[0, 0, 1, 1] = 0.5, -0.99
    assert brain_of(image, -1.0)[0, 0].tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("size", [(5, 5), (5, 5, 5)])
def test_a_voxel_grows_to_its_neighbours(size):
    mask = torch.zeros(1, 1, *size, dtype=torch.bool)
    mask[(0, 0, *(2,) * len(size))] = True
    assert int(grown(mask).sum()) == 3 ** len(size)


@pytest.mark.parametrize("size", [(10, 14), (9, 13), (72, 88), (6, 7, 8)])
@pytest.mark.parametrize("share", [0.5, 0.3, 0.2, 1.0])
def test_boxes_side_by_side_cover_the_brain_and_nothing_else(size, share):
    brain = noise_of(2, 1, *size) > -0.5
    boxes = list(Box(share).all(brain))
    assert len(boxes) == int(-(-1 // share)) ** len(size)
    assert torch.equal(torch.stack(boxes).any(dim=0), brain)
    most = torch.tensor(Box(share).sides(size)).prod()
    assert all((each.flatten(1).sum(1) <= most).all() for each in boxes)


def test_a_box_is_drawn_around_any_voxel_of_each_brain():
    brain = torch.zeros(400, 1, 16, 12, dtype=torch.bool)
    brain[:, :, 3:13, 2:10] = True
    drawn = Box(0.25).drawn(noise_of(400, 1, 16, 12), brain, torch.rand(2, 400))
    assert not (drawn & ~brain).any() and set(drawn.flatten(1).sum(1).tolist()) <= {2, 3, 4, 6, 8, 9, 12}
    often = drawn.double().mean(0)[0]
    assert often[3:13, 2:10].min() > 0.03  # every voxel of the brain is hidden now and then
    assert not Box(0.25).drawn(noise_of(1, 1, 5, 5), torch.zeros(1, 1, 5, 5, dtype=torch.bool), torch.rand(2, 1)).any()


@pytest.mark.parametrize("size", [(25, 30), (9, 10, 11)])
def test_what_a_mask_encloses_is_filled(size):
    mask = blurred(noise_of(3, 1, *size), 1.5) > 0.02
    neighbours = ndimage.generate_binary_structure(len(size), len(size))  # corners too
    theirs = [ndimage.binary_fill_holes(each, neighbours) for each in mask[:, 0].numpy()]
    found = without_holes(mask)
    assert torch.equal(found[:, 0], torch.stack([torch.from_numpy(each) for each in theirs]))
    ring = torch.zeros(1, 1, 12, 12, dtype=torch.bool)
    ring[:, :, 2:9, 3:10] = True
    hollow = ring.clone()
    hollow[:, :, 4:7, 5:8] = False
    assert torch.equal(without_holes(hollow), ring) and not without_holes(ring & ~ring).any()
    assert without_holes(torch.ones(1, 1, 4, 4, dtype=torch.bool)).all()
