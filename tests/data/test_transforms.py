"""Preparing a case and the way back: exact where nothing is resampled, small errors where something is."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_diff.data.brain import background_of, find_brain, find_head
from medseg_diff.data.geometry import Volume, axes_of, reoriented
from medseg_diff.data.reading import CaseImages, read_case, read_labels
from medseg_diff.data.tables.manifest import Case, read_manifest
from medseg_diff.data.transforms import (
    Preparation,
    filled,
    missing_channels,
    prepare_case,
    present_channels,
    restore,
)
from medseg_diff.errors import ConfigError, ImageError
from medseg_diff.settings import parse_settings
from tests.scans import SCANS, needs_scans

real = needs_scans()
FOUR = ("t1", "t1ce", "t2", "flair")
AXES = ["".join(axes) for letters in itertools.permutations(("LR", "PA", "IS")) for axes in itertools.product(*letters)]


def ball(shape, radius, centre=None):
    """[X, Y, Z] (bool)."""
    centre = np.array([(n - 1) / 2 for n in shape]) if centre is None else np.array(centre)
    return sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), centre, strict=True)) <= radius**2


def head(shape=(20, 24, 22), affine=None, *, radius=7.0, channels=2, seed=0):
    """A ball of noisy tissue in a constant background, a lesion in it and two raters."""
    rng = np.random.default_rng(seed)
    brain = ball(shape, radius)
    image = np.where(brain, rng.normal(100, 20, (channels, *shape)), 0).astype(np.float32)
    lesion = ball(shape, radius / 3).astype(np.int16) * 2
    return CaseImages(
        name="p1",
        channels=("t1", "flair")[:channels],
        image=image,
        affine=np.diag([1.0, 1, 1, 1]) if affine is None else affine,
        reference=lesion,
        raters=np.stack([lesion, lesion // 2]),
        warnings=("t1: said while reading",),
    )


def turned(images: CaseImages, axes: str) -> CaseImages:
    """The same case stored in another order of its axes."""

    def turn(voxels):
        return reoriented(Volume(voxels, images.affine), axes)

    return CaseImages(
        images.name,
        images.channels,
        np.stack([turn(channel).voxels for channel in images.image]),
        turn(images.reference).affine,
        turn(images.reference).voxels,
        np.stack([turn(rater).voxels for rater in images.raters]),
        images.warnings,
    )


def test_shapes_types_and_places():
    prepared = prepare_case(head(), Preparation(margin_mm=2.0))
    assert prepared.image.shape == (2, 18, 18, 18) and prepared.image.dtype == torch.float32
    assert prepared.brain.shape == (1, 18, 18, 18) and prepared.brain.dtype == torch.bool
    assert prepared.reference.shape == (1, 18, 18, 18) and prepared.reference.dtype == torch.int16
    assert prepared.raters.shape == (2, 18, 18, 18)
    assert type(prepared.image) is torch.Tensor and prepared.image.is_contiguous()
    assert prepared.voxel_ml == pytest.approx(0.001) and prepared.spacing_mm == (1, 1, 1)
    assert prepared.warnings == ("t1: said while reading",)
    np.testing.assert_allclose(prepared.affine[:3, 3], [1, 3, 2])


def test_a_case_without_masks():
    images = head()
    bare = CaseImages(images.name, images.channels, images.image, images.affine, None, None, ())
    prepared = prepare_case(bare, Preparation())
    assert prepared.reference is None and prepared.raters is None


def test_every_orientation_is_prepared_alike_and_restored_bit_for_bit():
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    native = head(affine=affine)
    expected = prepare_case(native, Preparation())
    for axes in AXES:
        images = turned(native, axes)
        assert axes_of(images.affine) == axes
        prepared = prepare_case(images, Preparation())
        assert torch.equal(prepared.image, expected.image)
        assert torch.equal(prepared.raters, expected.raters)
        np.testing.assert_allclose(prepared.affine, expected.affine, atol=1e-6)
        back = restore(prepared, prepared.reference.float())
        assert back.dtype == np.float32 and back.flags.c_contiguous
        np.testing.assert_array_equal(back[0], images.reference)
    assert len(AXES) == 48


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 14), st.integers(1, 14), st.integers(1, 14)),
    axes=st.sampled_from(AXES),
    orientation=st.sampled_from(AXES),
    margin=st.floats(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_cut_and_restore_is_the_identity_on_any_shape(shape, axes, orientation, margin, seed):
    rng = np.random.default_rng(seed)
    voxels = np.zeros(shape, np.float32)
    voxels.flat[rng.integers(voxels.size)] = 1.0 + rng.random()
    image = reoriented(Volume(voxels, np.diag([0.9, 1.1, 2.0, 1.0])), axes)
    images = CaseImages("p", ("t1",), image.voxels[None], image.affine, None, None, ())
    if background_of(image.voxels) != 0:  # so small that the one voxel is the background
        return
    prepared = prepare_case(images, Preparation(orientation=orientation, margin_mm=margin))
    maps = torch.from_numpy(rng.random((2, *prepared.image.shape[1:]), dtype=np.float32)) + 1
    back = restore(prepared, maps)
    assert back.shape == (2, *image.voxels.shape)
    assert sorted(back[back != 0].tolist()) == sorted(maps.flatten().tolist())
    assert back[0][image.voxels != 0] == maps[0][prepared.brain[0]].numpy()


def test_the_fill_stands_outside_the_box():
    prepared = prepare_case(head(), Preparation(margin_mm=0.0))
    back = restore(prepared, torch.full((1, *prepared.image.shape[1:]), 0.25), fill=-1.0)
    assert back[0, 0, 0, 0] == -1.0 and back[0, 10, 12, 11] == 0.25
    assert (back == 0.25).sum() == prepared.image[0].numel()


def test_a_window_lies_in_the_middle_of_the_volume_and_leads_back():
    images = head()
    whole = prepare_case(images, Preparation(margin_mm=400.0))
    prepared = prepare_case(images, Preparation(margin_mm=400.0, window=(10, 100, None)))
    assert prepared.image.shape == (2, 10, 24, 22)
    assert torch.equal(prepared.image, whole.image[:, 5:15])
    back = restore(prepared, prepared.brain.float())
    assert np.array_equal(back[0, 5:15], whole.brain[0, 5:15].numpy()) and not back[0, :5].any()


def test_a_brain_outside_the_window_is_said():
    images = head(shape=(60, 24, 22))
    moved = np.roll(images.image, 22, axis=1)
    aside = CaseImages(images.name, images.channels, moved, images.affine, None, None, ())
    with pytest.raises(ImageError, match=r"outside preparation.window. Fix: widen the window"):
        prepare_case(aside, Preparation(window=(20, None, None)))


OBLIQUE = np.array([[0.96, -0.2, 0.1, -20], [0.2, 0.97, -0.05, 11], [-0.09, 0.07, 1.49, 5], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("affine", [np.diag([1.0, 1, 1, 1]), np.diag([-1.0, -1, 1.5, 1]), OBLIQUE])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, None), (2.0, 2.0, 2.0), (1.3, 0.8, 3.0)])
def test_resampling_keeps_every_voxel_at_its_place(affine, spacing):
    """Each channel holds one coordinate in mm: linear interpolation must return it exactly, at the new places."""
    shape = (40, 44, 36)
    places = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    brain = ball(shape, 14)
    ramps = places.T.reshape(3, *shape).astype(np.float32) + 1000
    images = CaseImages("p", ("x", "y", "z"), ramps, affine, brain.astype(np.int16), None, ())
    bare = CaseImages("p", ("x", "y", "z"), np.where(brain, ramps, 0), affine, None, None, ())
    preparation = Preparation(spacing_mm=spacing)
    prepared = prepare_case(bare, preparation)
    grid = prepared.image.shape[1:]
    at = np.indices(grid).reshape(3, -1).T @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]
    expected = torch.from_numpy((at.T.reshape(3, *grid) + 1000).astype(np.float32))
    back = restore(prepared, expected)
    inside = ball(shape, 12)
    np.testing.assert_allclose(back[:, inside], images.image[:, inside], atol=2e-3)
    wanted = [mm or native for mm, native in zip(spacing, prepared.spacing_mm, strict=True)]
    np.testing.assert_allclose(prepared.spacing_mm, wanted, rtol=1e-5)
    # And forward: away from the edge, the scaled image rises along its own coordinate, by the same law everywhere.
    native = (np.linalg.inv(affine) @ np.vstack([at.T, np.ones(len(at))]))[:3].T.reshape(*grid, 3)
    deep = np.linalg.norm(native - (np.array(shape) - 1) / 2, axis=-1) < 10
    deep &= (np.abs(prepared.image.numpy()) < 0.99).all(axis=0)
    assert deep.sum() > 500
    for ramp, place in zip(prepared.image.numpy(), expected.numpy(), strict=True):
        fit = np.polyfit(place[deep] - 1000, ramp[deep], 1)
        np.testing.assert_allclose(ramp[deep], np.polyval(fit, place[deep] - 1000), atol=1e-3)


def test_a_smooth_map_and_a_ball_survive_two_millimetres():
    images = head((60, 64, 56), radius=24, channels=1)
    prepared = prepare_case(images, Preparation(spacing_mm=(2.0, 2.0, 2.0)))
    mask = ball((60, 64, 56), 16, (28, 33, 30))
    with_mask = CaseImages("p1", ("t1",), images.image, images.affine, mask.astype(np.int16), None, ())
    small = prepare_case(with_mask, Preparation(spacing_mm=(2.0, 2.0, 2.0))).reference.float()
    back = restore(prepared, small)[0] > 0.5
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) >= 0.95
    at = np.indices(prepared.image.shape[1:]) * 2.0 + prepared.affine[:3, 3, None, None, None]
    smooth = torch.from_numpy(np.sin(at / 9).prod(axis=0, dtype=np.float64)[None].astype(np.float32))
    expected = np.sin(np.indices((60, 64, 56)) / 9).prod(axis=0)
    inside = ball((60, 64, 56), 22)
    assert np.abs(restore(prepared, smooth)[0] - expected)[inside].max() < 0.02


def test_a_spacing_that_is_there_already_resamples_nothing():
    prepared = prepare_case(head(affine=np.diag([1.0003, 1, 1, 1])), Preparation(spacing_mm=(1.0, 1.0, 1.0)))
    assert torch.equal(prepared.image, prepare_case(head(), Preparation()).image)


def test_percentiles_of_the_brain_become_one_scale():
    images = head((40, 40, 40), radius=15)
    shifted = CaseImages("p", images.channels, images.image * np.float32(37) + 5, images.affine, None, None, ())
    prepared, other = (prepare_case(case, Preparation()) for case in (images, shifted))
    torch.testing.assert_close(prepared.image, other.image, atol=1e-4, rtol=0)
    inside = prepared.image[:, prepared.brain[0]]
    assert inside.min() == -1 and inside.max() == 1
    assert 0.005 < (inside == 1).float().mean() < 0.015
    assert (prepared.image[:, ~prepared.brain[0]] == -1).all()


def test_robust_scale_is_moved_neither_by_an_outlier_nor_by_a_large_lesion():
    images, diseased = head((40, 40, 40), radius=15), head((40, 40, 40), radius=15)
    lesion = ball((40, 40, 40), 6)
    diseased.image[0][lesion] = 4 * images.image[0].max()
    diseased.image[0][20, 20, 20] = 1e6
    robust, percentile = (
        [prepare_case(case, Preparation(intensity=kind, background=-6.0)) for case in (images, diseased)]
        for kind in ("robust", "percentile")
    )
    inside = robust[0].image[1][robust[0].brain[0]]
    assert abs(inside.median()) < 0.01 and abs(inside.std() - 1) < 0.05
    assert (robust[0].image[:, ~robust[0].brain[0]] == -6).all()

    def moved(pair):
        brain = pair[0].brain[0] & (pair[1].image[0] != pair[1].image[0].max())
        return (pair[0].image[0] - pair[1].image[0])[brain].abs().mean()

    assert moved(robust) < 0.2  # of a deviation
    assert moved(percentile) > 0.3  # of a range of 2
    cut = robust[1].image[0][robust[1].brain[0]]
    assert cut.max() == 10 and cut.min() >= -5


def test_per_slice_scales_each_axial_slice():
    images = head((30, 30, 30), radius=12)
    gain = np.linspace(1, 4, 30, dtype=np.float32)
    brighter = CaseImages("p", images.channels, images.image * gain, images.affine, None, None, ())
    one, two = (prepare_case(case, Preparation(per_slice=True)) for case in (images, brighter))
    torch.testing.assert_close(one.image, two.image, atol=1e-4, rtol=0)
    sideways = prepare_case(
        turned(head((30, 30, 30), radius=12), "SRA"), Preparation(orientation="SRA", per_slice=True)
    )
    assert torch.equal(sideways.image.permute(0, 2, 3, 1), one.image)


def test_the_brain_is_what_differs_from_the_background():
    shape = (24, 24, 24)
    brain = ball(shape, 8)
    hollow = brain & ~ball(shape, 3)
    image = np.where(hollow, np.random.default_rng(0).normal(0, 50, shape), -7.0).astype(np.float32)
    image[2, 2, 2] = 5.0  # a speck
    assert background_of(image) == -7.0
    np.testing.assert_array_equal(find_brain(image[None]), brain)
    both = np.stack([np.where(np.indices(shape)[0] < 12, image, -7), np.where(np.indices(shape)[0] >= 12, image, -7)])
    np.testing.assert_array_equal(find_brain(both), brain)


def noisy_head():
    """A raw scan: noise around the head, so no value is the background."""
    rng = np.random.default_rng(0)
    inside = ball((32, 32, 32), 11)
    image = np.abs(np.where(inside, 100, 0) + rng.normal(0, 5, inside.shape)).astype(np.float32)
    return inside, CaseImages("p", ("t1",), image[None], np.eye(4), None, None, ())


def test_a_noisy_background_falls_back_to_the_head_and_says_so():
    inside, images = noisy_head()
    assert find_brain(images.image) is None
    found = find_head(images.image)
    assert 2 * (found & inside).sum() / (found.sum() + inside.sum()) > 0.9
    prepared = prepare_case(images, Preparation())
    assert prepared.warnings == ("no constant background; the head was found by its brightness",)
    assert prepare_case(images, Preparation(brain="head")).warnings == ()
    with pytest.raises(ImageError, match=r"\[p\] has no constant background"):
        prepare_case(images, Preparation(brain="foreground"))


def test_a_head_with_its_skull_is_said():
    images = head((40, 40, 40), np.diag([6.0, 6, 6, 1]), radius=15)
    assert "the skull seems not to be stripped" in prepare_case(images, Preparation()).warnings[-1]


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"orientation": "RAR"}, "orientation"),
        ({"spacing_mm": [1, 1]}, "spacing_mm.2"),
        ({"spacing_mm": [0, 1, 1]}, "spacing_mm.0"),
        ({"brain": "skull"}, "brain"),
        ({"margin_mm": -1}, "margin_mm"),
        ({"intensity": "robust"}, "background must be -5 or lower"),
    ],
)
def test_settings_that_make_no_sense(data, path):
    with pytest.raises(ConfigError, match=path):
        parse_settings(Preparation, data, source="recipe.yaml")
    settings = parse_settings(Preparation, {"spacing_mm": [2, 2, None], "orientation": "LPS"}, source="x")
    assert settings.spacing_mm == (2.0, 2.0, None)


class TestReal:
    pytestmark = real

    def test_a_brats_mask_goes_to_two_millimetres_and_back(self):
        images = read_case(read_manifest(SCANS / "brats/cases.csv").cases[0])
        prepared = prepare_case(images, Preparation(spacing_mm=(2.0, 2.0, None)))
        assert prepared.warnings == () and 0.3 < prepared.brain.float().mean() < 0.7
        back = restore(prepared, (prepared.reference > 0).float())[0] > 0.5
        truth = images.reference > 0
        assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) > 0.95
        exact = prepare_case(images, Preparation())
        np.testing.assert_array_equal(restore(exact, exact.reference.float())[0], images.reference)

    def test_negative_voxels_belong_to_the_brain(self):
        folder = SCANS / "ms/patient19"
        case = Case("p19", "p19", images={c: folder / f"{c}.nii.gz" for c in ("t1", "t1ce", "t2", "flair")})
        images = read_case(case)
        prepared = prepare_case(images, Preparation())
        brain = restore(prepared, prepared.brain.float())[0] > 0.5
        assert brain[(images.image < 0).any(axis=0)].mean() > 0.99
        assert 1000 < brain.sum() * images.voxel_ml < 1700 and prepared.warnings == ()

    def test_the_brain_of_a_stripped_t1_is_its_mask(self):
        case = read_manifest(SCANS / "healthy_t1/cases.csv").cases[0]
        truth = read_labels(case.images["brainmask"]).voxels > 0
        found = find_brain(read_case(case, ["t1"]).image)
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.999

    def test_raw_scans_are_prepared_as_heads_and_said(self):
        folder = SCANS / "ms/patient03_study2_raw"
        case = Case("p03", "p03", images={channel: folder / f"{channel}.nii.gz" for channel in ("t1", "t2", "flair")})
        prepared = prepare_case(read_case(case, resample_to="t1"), Preparation())
        assert "the skull seems not to be stripped" in prepared.warnings[-1]
        assert restore(prepared, prepared.brain.float()).shape == (1, 256, 256, 48)


def prepared_of(channels, background=-1.0):
    image = np.zeros((len(channels), 10, 9, 8), np.float32)
    image[:, 2:-2, 2:-2, 2:-2] = 50 + np.random.default_rng(0).random((len(channels), 6, 5, 4))
    images = CaseImages("a", tuple(channels), image, np.eye(4), None, None, ())
    return prepare_case(images, Preparation(background=background))


def test_which_channels_a_case_has_and_lacks():
    case = Case("a", "a", images={"flair": Path("f"), "t1": Path("t"), "pet": Path("p")})
    assert present_channels(case, FOUR) == ("t1", "flair") and missing_channels(case, FOUR) == ("t1ce", "t2")
    stack = Case("b", "b", stack=Path("s"), stack_channels=("t2", "t1"))
    assert present_channels(stack, FOUR) == ("t1", "t2")


def test_the_background_stands_in_the_place_of_a_missing_channel():
    some = prepared_of(("t1ce", "flair"), background=-2.0)
    whole = filled(some, FOUR)
    assert whole.channels == FOUR and whole.image.shape == (4, *some.image.shape[1:])
    assert torch.equal(whole.image[[1, 3]], some.image) and (whole.image[[0, 2]] == -2).all()
    assert torch.equal(whole.brain, some.brain) and whole.box == some.box


def test_a_whole_case_is_left_alone():
    some = prepared_of(("t1", "flair"))
    assert filled(some, ("t1", "flair")) is some
    assert torch.equal(filled(some, ("flair", "t1")).image, some.image[[1, 0]])
