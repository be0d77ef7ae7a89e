"""Phantoms are reproducible, plausible, and neither trivial nor impossible."""

import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from medseg_diff.data.reading import read_case, read_volume
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import MedsegError, UsageError
from medseg_diff.files import sha256_of
from medseg_diff.phantoms.anatomy import Person, build_anatomy
from medseg_diff.phantoms.geometry import Grid, Points, ellipsoid, tube
from medseg_diff.phantoms.lesion import hyperintensities
from medseg_diff.phantoms.make import PhantomCase, PhantomSettings, is_healthy, make_case, write_phantoms
from medseg_diff.phantoms.scanner import usual_scanner
from medseg_diff.phantoms.signal import CHANNELS, TISSUES
from medseg_diff.tasks.phantom import phantom

SMALL = (32, 32, 32)


@cache
def diseased() -> tuple[PhantomCase, ...]:
    settings = PhantomSettings(cases=16, raters=3, healthy=0.0, seed=7)
    return tuple(make_case(settings, index) for index in range(settings.cases))


@cache
def healthy() -> tuple[PhantomCase, ...]:
    settings = PhantomSettings(cases=16, raters=1, healthy=1.0, seed=7)
    return tuple(make_case(settings, index) for index in range(settings.cases))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def same(a: PhantomCase, b: PhantomCase) -> bool:
    arrays = zip((*a.images.values(), a.seg), (*b.images.values(), b.seg), strict=True)
    return a.covariates == b.covariates and all(np.array_equal(x, y) for x, y in arrays)


def folder_digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


# --- what a case is


@pytest.mark.parametrize("shape", [(64, 64, 48), (33, 40, 32), (40, 96, 50)])
def test_a_case_has_checked_types_grid_and_background(shape: tuple[int, int, int]) -> None:
    case = make_case(PhantomSettings(cases=1, shape=shape, raters=2), 0)
    brain = case.images["t1"] > 0
    assert tuple(case.images) == CHANNELS and case.label == "diseased"
    for image in case.images.values():
        assert image.shape == shape and image.dtype == np.int16
        assert np.array_equal(image > 0, brain) and image.min() == 0
    for labels in (case.seg, *case.raters):
        assert labels.shape == shape and labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {0, 1, 2, 4} and not labels[~brain].any()
    assert len(case.raters) == 2
    assert all(np.diag(case.affine)[:3] * [-1, -1, 1] > 0)
    middle = case.affine[:3, :3] @ ((np.array(shape) - 1) / 2) + case.affine[:3, 3]
    assert np.allclose(middle, 0)


def test_the_brain_fits_the_field_of_view() -> None:
    for case in (*diseased(), *healthy()):
        brain = case.images["t1"] > 0
        extent = [np.ptp(np.flatnonzero(brain.any(axis=axes))) + 1 for axes in ((1, 2), (0, 2), (0, 1))]
        assert 110 < 3 * extent[0] < 165 and 145 < 3 * extent[1] <= 192 and 105 < 3 * extent[2] <= 144
        assert not brain[[0, -1]].any() and not brain[:, :, [0, -1]].any()


def test_the_same_brain_at_another_resolution() -> None:
    coarse, fine = (
        make_case(PhantomSettings(cases=1, shape=shape, noise=0.0), 0) for shape in ((64, 64, 48), (96, 96, 72))
    )
    for name in ("ventricle_volume_ml", "brain_volume_ml"):
        assert coarse.covariates[name] == pytest.approx(fine.covariates[name], rel=0.06)
    volume = [(case.seg > 0).sum() * abs(np.linalg.det(case.affine)) for case in (coarse, fine)]
    assert volume[0] == pytest.approx(volume[1], rel=0.15)


def test_healthy_cases_have_no_lesion_and_come_in_the_wanted_share() -> None:
    assert all(case.label == "healthy" and not case.seg.any() and not case.raters[0].any() for case in healthy())
    for share in (0.0, 0.25, 0.3, 1.0):
        settings = PhantomSettings(cases=40, healthy=share)
        assert sum(is_healthy(settings, index) for index in range(40)) == round(40 * share)


def test_a_twin_is_the_same_scan_without_the_lesion() -> None:
    for scanners in (0, 3):
        settings = PhantomSettings(cases=2, healthy=0.5, seed=7, scanners=scanners, twins=True)
        alone = make_case(settings.model_copy(update={"twins": False}), 0)
        case, well = make_case(settings, 0), make_case(settings, 1)
        assert same(case, alone) and alone.twin == {} and well.label == "healthy" and well.twin == {}
        brain, far = case.images["t1"] > 0, ndimage.binary_dilation(case.seg > 0, iterations=9)
        for channel, image in case.images.items():
            assert np.array_equal(case.twin[channel][~far], image[~far])
        flair, twin = case.images["flair"], case.twin["flair"]
        usual = twin[brain & (case.seg == 0)]
        assert flair[case.seg == 2].mean() > 1.2 * twin[case.seg == 2].mean()
        assert abs(twin[case.seg > 0].mean() - usual.mean()) < usual.std()


def test_covariates_are_plausible_and_older_brains_have_larger_ventricles() -> None:
    people = [case.covariates for case in (*healthy(), *diseased())]
    values = {name: np.array([person[name] for person in people]) for name in people[0] if name != "sex"}
    assert {person["sex"] for person in people} == {"F", "M"}
    assert values["age_years"].min() >= 20 and values["age_years"].max() <= 85
    assert values["ventricle_volume_ml"].min() > 5 and values["ventricle_volume_ml"].max() < 80
    assert values["brain_volume_ml"].min() > 750 and values["brain_volume_ml"].max() < 1700
    alone = [case.covariates for case in healthy()]
    rank = spearmanr([p["age_years"] for p in alone], [p["ventricle_volume_ml"] for p in alone])
    assert rank.statistic > 0.6


# --- the same seed, the same bytes


def test_a_case_depends_on_its_seed_and_index_only() -> None:
    few, many = (PhantomSettings(cases=cases, shape=SMALL) for cases in (3, 50))
    assert same(make_case(few, 2), make_case(many, 2))
    assert not same(make_case(few, 2), make_case(few, 1))
    assert not same(make_case(few, 2), make_case(few.but(seed=1), 2))


def test_more_raters_change_nothing_else() -> None:
    one, three = (make_case(PhantomSettings(cases=1, shape=SMALL, raters=raters), 0) for raters in (1, 3))
    assert same(one, three) and np.array_equal(one.raters[0], three.raters[0])
    assert not np.array_equal(three.raters[0], three.raters[1])


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        phantom(tmp_path / name, cases=3, shape=SMALL, raters=1, seed=3)
    phantom(tmp_path / "c", cases=3, shape=SMALL, raters=1, seed=4)
    digests = [folder_digests(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1]
    assert digests[0]["phantom_0001/t1.nii.gz"] != digests[2]["phantom_0001/t1.nii.gz"]


# --- hard enough to mean something


def test_raters_disagree_as_much_as_people_do() -> None:
    pairs = [dice(a > 0, b > 0) for case in diseased() for a, b in combinations(case.raters, 2)]
    assert 0.80 <= np.mean(pairs) <= 0.90


def test_part_of_every_diseased_brain_is_free_of_lesion() -> None:
    for case in diseased():
        brain, lesion = ((volume > 0).any(axis=(0, 1)) for volume in (case.images["t1"], case.seg))
        assert 0.20 <= 1 - lesion.sum() / brain.sum() <= 0.40
        assert {1, 2, 4} <= set(np.unique(case.seg))


def test_flair_alone_does_not_tell_lesion_from_brain() -> None:
    areas, slices = [], []
    for case in diseased():
        flair, lesion, brain = case.images["flair"].astype(float), case.seg > 0, case.images["flair"] > 0
        areas.append(roc_auc_score(lesion[brain], flair[brain]))
        flair /= np.median(flair[brain])
        for z in np.flatnonzero(lesion.any(axis=(0, 1))):
            slices.append((flair[..., z][brain[..., z]], lesion[..., z][brain[..., z]]))
    thresholds = np.quantile(np.concatenate([values for values, _ in slices]), np.linspace(0.5, 0.99, 50))
    scores = np.array([[dice(values > threshold, lesion) for threshold in thresholds] for values, lesion in slices])
    assert 0.70 <= np.mean(areas) <= 0.85  # a lesion is visible, but not the only bright thing
    assert scores.mean(axis=0).max() <= 0.55  # one threshold for all slices
    assert scores.max(axis=1).mean() <= 0.55  # even the best for each slice


def test_the_contrasts_look_as_they_should() -> None:
    signals = usual_scanner(np.random.default_rng(0), noise=0.045).signals
    t1, t1ce, t2, flair = (signals[channel] for channel in CHANNELS)
    assert t1["white"] > t1["deep_grey"] > t1["grey"] > t1["oedema"] > t1["necrosis"] > t1["csf"]
    assert t2["csf"] > t2["necrosis"] > t2["oedema"] > t2["grey"] > t2["white"]
    assert flair["oedema"] > flair["grey"] > flair["white"] > flair["necrosis"] > flair["csf"]
    assert flair["hyperintensity"] > flair["grey"]
    assert t1ce["enhancing"] > 1.3 * t1ce["white"] and t1["enhancing"] < t1["grey"]
    assert set(t1) == {*TISSUES, "dura"}


def test_hyperintensities_come_with_age_and_lie_in_white_matter() -> None:
    rng = np.random.default_rng(0)
    anatomy = build_anatomy(Grid.over_head((64, 64, 48)), Person.draw(rng), None, rng)
    volumes = {}
    for age in (25, 80):
        shares = [hyperintensities(anatomy, age, np.random.default_rng(seed)) for seed in range(12)]
        assert all(share.min() >= 0 and share.max() <= 1 and not share[anatomy.white < 0.05].any() for share in shares)
        volumes[age] = np.array([share.sum() * anatomy.grid.voxel_ml for share in shares])
    assert np.median(volumes[80]) > 4 and volumes[80].max() < 80
    assert volumes[25].max() > 0.2 and np.median(volumes[25]) < 0.3 * np.median(volumes[80])


# --- files and the verb


def test_the_table_is_a_valid_manifest_and_reads_back(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    settings = PhantomSettings(cases=12, shape=SMALL, raters=2)
    table = write_phantoms(settings, tmp_path / "set", progress=lambda done, total: told.append((done, total)))
    manifest = read_manifest(table)
    assert manifest.channels == CHANNELS and len(manifest.cases) == 12
    assert {split: len(manifest.of(split)) for split in ("train", "val", "test")} == {"train": 9, "val": 1, "test": 2}
    assert {case.label for case in manifest.cases} == {"healthy", "diseased"}
    made = make_case(settings, 0)
    case = manifest.cases[0]
    assert case.covariates == made.covariates and len(case.raters) == 2
    read = read_case(case, CHANNELS)
    assert read.reference is not None and np.array_equal(read.reference, made.seg)
    volume = read_volume(case.images["flair"])
    assert np.array_equal(volume.voxels, made.images["flair"]) and np.allclose(volume.affine, made.affine)
    assert told == [(done, 12) for done in range(1, 13)]


def test_splits_hold_both_labels_where_there_are_enough_cases(tmp_path: Path) -> None:
    manifest = read_manifest(phantom(tmp_path / "set", cases=40, shape=SMALL))
    for split in ("train", "val", "test"):
        assert {case.label for case in manifest.of(split)} == {"healthy", "diseased"}


def test_a_smaller_set_leaves_nothing_of_a_larger_one(tmp_path: Path) -> None:
    phantom(tmp_path / "set", cases=3, shape=SMALL, raters=2)
    phantom(tmp_path / "set", cases=2, shape=SMALL, raters=1)
    phantom(tmp_path / "fresh", cases=2, shape=SMALL, raters=1)
    assert folder_digests(tmp_path / "set") == folder_digests(tmp_path / "fresh")


def test_a_folder_in_use_is_refused_and_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter one")
    with pytest.raises(UsageError, match="not phantoms"):
        phantom(tmp_path, cases=1, shape=SMALL)
    with pytest.raises(UsageError, match="not a folder"):
        phantom(tmp_path / "thesis.txt", cases=1, shape=SMALL)
    phantom(tmp_path, cases=1, shape=SMALL, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "chapter one"


@pytest.mark.parametrize(
    "wrong",
    [{"cases": 0}, {"shape": (16, 64, 64)}, {"healthy": 1.5}, {"raters": -1}, {"seed": -1}, {"shape": (64, 64)}],
)
def test_values_out_of_range_are_named(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(MedsegError, match=next(iter(wrong))) as caught:
        phantom(tmp_path / "set", **({"cases": 1} | wrong))
    assert caught.value.exit_code == 2 and not (tmp_path / "set").exists()


def test_making_phantoms_needs_no_torch() -> None:
    code = "import sys, medseg_diff.tasks.phantom; sys.exit(bool({'torch', 'monai', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- shapes and noise


def test_distances_are_those_of_a_ball() -> None:
    at = Points(*np.random.default_rng(0).uniform(-30, 30, (3, 1000)).astype(np.float32))
    radius = np.sqrt(sum(axis**2 for axis in at))
    assert np.allclose(ellipsoid(at, (0, 0, 0), (20, 20, 20)), 20 - radius, atol=0.05)
    assert np.allclose(tube(at, ((0, 0, 0, 5), (0, 0, 1e-3, 5))), 5 - radius, atol=0.01)


def test_partial_volume_adds_up() -> None:
    grid = Grid((48, 48, 48), 3.0)
    ball = grid.share_inside(ellipsoid(Points(*np.broadcast_arrays(*grid.points())), (1, 2, 3), (30, 30, 30)))
    assert ball.sum() * grid.voxel_ml == pytest.approx(4 / 3 * np.pi * 27, rel=0.01)
    slab = grid.share_of_slab(np.abs(grid.points().x + 0.7), 0.4).sum()
    assert slab * 3.0 == pytest.approx(0.8, abs=1e-4)


def test_noise_has_unit_variance_and_no_grid() -> None:
    coarse, fine = Grid((32, 32, 32), 6.0), Grid((63, 63, 63), 3.0)
    a, b = (grid.noise(np.random.default_rng(5), 12.0) for grid in (coarse, fine))
    assert abs(a.mean()) < 0.1 and a.std() == pytest.approx(1, abs=0.1)
    assert np.allclose(coarse.points().x.ravel(), fine.points().x.ravel()[::2])
    assert np.allclose(a, b[::2, ::2, ::2], atol=1e-5)
