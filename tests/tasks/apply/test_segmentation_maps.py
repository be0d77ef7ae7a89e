"""What `segment` writes of several regions: the hierarchy in every file, masks where they do not nest, and fusion."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from medseg_diff.data.reading import CaseImages, read_map
from medseg_diff.data.transforms import Preparation, prepare_case, restore
from medseg_diff.data.views import AxialSlices
from medseg_diff.errors import CheckpointError, ImageError, UsageError
from medseg_diff.files import write_json
from medseg_diff.methods.plan import Sample
from medseg_diff.methods.sampled_segmentation import Ensemble, uncertainty_maps
from medseg_diff.metrics.tuning import tempered
from medseg_diff.recipes.calibration import RegionCalibration, SegmentationCalibration
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.run import create_run
from medseg_diff.settings import write_yaml
from medseg_diff.tasks.apply.sampled_slices import left_out, slices_to_sample
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.apply.segmentation_maps import slices_to_review, volumes_of_members
from medseg_diff.tasks.evaluate import evaluate
from medseg_diff.training.weights import save_weights

NESTED = {"whole_tumour": [1, 2, 3, 4], "tumour_core": [1, 3, 4], "enhancing": [3, 4]}
APART = {"enhancing": [4], "whole": [1, 2, 4], "oedema": [2]}
TINY = (
    "view.size=[32,32]",
    "network.width=16",
    "network.multipliers=[1,2]",
    "network.attention=[]",
    "preparation.spacing_mm=[4.0,4.0,null]",  # another grid than the scan's, so that maps are resampled
    "training.precision=fp32",
    "sampling.members=3",
    "sampling.steps=2",
    "sampling.network_batch=8",
)


def read(path):
    return read_map(path).voxels


def untrained(folder, regions, *, nested=True, calibration=None, overrides=()):
    """A finished run of a network with large random weights."""
    recipe = load_recipe("quick/phantom", task="segment", overrides=[*TINY, *overrides])
    recipe = recipe.but(regions=regions, nested=nested)
    run = create_run(folder, task="segment", recipe="tiny", settings=write_yaml(recipe))
    network, generator = recipe.build_denoiser().network, torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    save_weights(network, run.weights("best"))
    if calibration:
        write_json(run.calibration_file, calibration.model_dump(mode="json"))
    run.seal()
    run.note(finished=True)
    return run


def calibrated(regions, thresholds, temperatures, *, separate=True):
    needed = {name for name, field in RegionCalibration.model_fields.items() if field.is_required()}
    rest = dict.fromkeys(needed - {"threshold", "temperature"}, 0.1)
    found = {
        region: RegionCalibration(threshold=threshold, temperature=temperature, **rest)
        for region, threshold, temperature in zip(regions, thresholds, temperatures, strict=True)
    }
    return SegmentationCalibration(slices=9, patients=6, separate=separate, members=3, steps=2, regions=found)


@pytest.fixture(scope="module")
def work(phantoms, tmp_path_factory):
    """Runs over one phantom: `of(name, run, ...)` segments it once into a folder of that name."""

    class Work:
        folder, table = tmp_path_factory.mktemp("regions"), phantoms
        case = "phantom_0002"
        chosen = calibrated(NESTED, (0.5, 0.4, 0.3), (2.0, 1.0, 0.4))  # each would break the hierarchy by itself
        nested = untrained(folder / "nested", NESTED, calibration=chosen)
        apart = untrained(folder / "apart", APART, nested=False)

        def of(self, run, name, **options):
            volume = [str(self.table.parent / self.case)]
            (folder,) = segment(volume, out=self.folder / name, model=run.folder, device="cpu", **options)
            return folder

    return Work()


@pytest.fixture(scope="module")
def written(work):
    return {
        fusion: work.of(work.nested, fusion, fusion=fusion, calibrated=True, save_members=True)
        for fusion in ("mean", "vote", "staple")
    }


def nest(folder, kind, regions=tuple(NESTED)):
    maps = [read(folder / f"{kind}_{region}.nii.gz") for region in regions]
    return all((inner <= outer).all() for outer, inner in pairwise(maps))


@pytest.mark.parametrize("fusion", ["mean", "vote", "staple"])
def test_the_hierarchy_holds_in_every_file(written, fusion):
    folder = written[fusion]
    each = [f"{of}/{number:02d}" for of in ("members", "member_masks") for number in range(3)]
    kinds = ["probability", "calibrated", *each]
    checked = {f"{kind}_{region}.nii.gz" for kind in kinds for region in NESTED}
    for kind in kinds:
        assert nest(folder, kind), kind
    assert read(folder / "probability_enhancing.nii.gz").max() > 0.3  # there is something that could break it
    unordered = {
        f"{kind}_{region}.nii.gz"
        for kind in ("variance_between", "variance_within", "uncertainty")
        for region in NESTED
    }
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.nii.gz")}
    assert found == checked | unordered | {"mask.nii.gz"}
    labels, report = read(folder / "mask.nii.gz"), json.loads((folder / "case.json").read_text())
    assert set(np.unique(labels)) == {0, 1, 2, 3}  # necrosis, oedema, enhancing, as BraTS has them
    volumes = [report["volume_ml"][region]["mask"] for region in NESTED]
    assert volumes == sorted(volumes, reverse=True) and volumes[0] > 0
    voxel_ml = volumes[0] / np.count_nonzero(labels)
    marked = [np.isin(labels, own) for own in NESTED.values()]
    assert volumes == pytest.approx([np.count_nonzero(own) * voxel_ml for own in marked], abs=2e-3)
    for bound in ("mean", "low", "high"):
        of_members = [report["volume_ml"][region]["members"][bound] for region in NESTED]
        assert of_members == sorted(of_members, reverse=True)


def test_members_are_nested_before_their_mean_is_taken(written):
    folder = written["mean"]
    for region in NESTED:
        members = np.stack([read(folder / "members" / f"{number:02d}_{region}.nii.gz") for number in range(3)])
        np.testing.assert_allclose(members.mean(0), read(folder / f"probability_{region}.nii.gz"), atol=2e-6)


def test_fusion_changes_the_mask_alone_and_is_told(written):
    reports = {fusion: json.loads((folder / "case.json").read_text()) for fusion, folder in written.items()}
    assert {fusion: report["fusion"] for fusion, report in reports.items()} == {name: name for name in written}
    assert reports["mean"]["thresholds"] == {"whole_tumour": 0.5, "tumour_core": 0.4, "enhancing": 0.3}
    assert set(reports["vote"]["thresholds"].values()) == set(reports["staple"]["thresholds"].values()) == {0.5}
    maps = {fusion: (folder / "probability_enhancing.nii.gz").read_bytes() for fusion, folder in written.items()}
    assert len(set(maps.values())) == 1
    masks = {fusion: (folder / "mask.nii.gz").read_bytes() for fusion, folder in written.items()}
    assert len(set(masks.values())) == 3


def test_a_vote_marks_what_most_members_mark(work, phantoms, tmp_path):
    run = untrained(tmp_path / "run", {"whole": [1, 2, 4]}, overrides=["sampling.cut={kind: half}"])
    (folder,) = segment(
        [str(phantoms.parent / work.case)],
        out=tmp_path,
        model=run.folder,
        fusion="vote",
        save_members=True,
        device="cpu",
    )
    members = np.stack([read(path) for path in sorted((folder / "members").iterdir())])
    sure = ((members > 0.55).sum(0) >= 2) | ((members < 0.45).sum(0) >= 2)  # resampling blurs the edges of a vote
    most, mask = (members > 0.5).sum(0) >= 2, read(folder / "mask.nii.gz") > 0
    assert mask.any() and (mask & ~most & sure).sum() < 0.1 * mask.sum()


def test_temperatures_are_those_of_the_run_and_zero_stays_zero(written):
    folder = written["mean"]
    mean, out = (read(folder / f"{kind}_whole_tumour.nii.gz") for kind in ("probability", "calibrated"))
    np.testing.assert_allclose(out, tempered(mean, 2.0), atol=1e-6)
    assert (out[mean == 0] == 0).all() and (mean == 0).any()
    report = json.loads((folder / "case.json").read_text())
    assert report["temperatures"] == {"whole_tumour": 2.0, "tumour_core": 1.0, "enhancing": 0.4}


def test_without_being_told_nothing_is_calibrated_and_no_old_map_stays(work, written, tmp_path):
    import shutil

    shutil.copytree(written["mean"], work.folder / "again" / work.case)
    folder = work.of(work.nested, "again", overwrite=True)
    assert not list(folder.glob("calibrated*")) and not list(folder.glob("members/*"))
    assert json.loads((folder / "case.json").read_text())["temperatures"] == {}
    assert (folder / "probability_enhancing.nii.gz").read_bytes() == (
        written["mean"] / "probability_enhancing.nii.gz"
    ).read_bytes()
    with pytest.raises(UsageError, match="was made with fusion mean, not vote"):
        work.of(work.nested, "again", fusion="vote")


def test_a_threshold_from_training_patients_is_not_used_by_itself(work, phantoms, tmp_path):
    leaky = calibrated({"whole": [1]}, [0.3], [1.5], separate=False)
    run = untrained(tmp_path / "run", {"whole": [1, 2, 4]}, calibration=leaky)
    (folder,) = segment(
        [str(phantoms.parent / work.case)], out=tmp_path, model=run.folder, members=1, steps=1, device="cpu"
    )
    assert json.loads((folder / "case.json").read_text())["thresholds"] == {"whole": 0.5}


def test_regions_that_do_not_nest_share_a_mask_too_and_are_evaluated(work):
    folder = work.of(work.apart, "apart_out", save_members=True)
    for kind in ("probability", *(f"members/{number:02d}" for number in range(3))):
        whole, enhancing, oedema = (read(folder / f"{kind}_{name}.nii.gz") for name in ("whole", "enhancing", "oedema"))
        assert (enhancing <= whole).all() and (oedema <= whole).all()  # what holds them still bounds them
    labels, report = read(folder / "mask.nii.gz"), json.loads((folder / "case.json").read_text())
    assert {0, 2, 4} <= set(np.unique(labels)) <= {0, 1, 2, 4}
    assert ((enhancing > 0.5) & (oedema > 0.5)).any()  # a voxel of both has one label all the same
    assert report["mask_labels"] == [
        {"label": 1, "name": "whole without enhancing and oedema", "regions": ["whole"]},
        {"label": 2, "name": "oedema", "regions": ["whole", "oedema"]},
        {"label": 4, "name": "enhancing", "regions": ["enhancing", "whole"]},
    ]
    assert "4 enhancing " in (folder / "mask_labels.ctbl").read_text()
    assert '"oedema"' in (folder / "mask_labels.txt").read_text()
    rows = work.table.read_text().splitlines()
    alone = work.table.with_name("alone.csv")
    alone.write_text("\n".join([rows[0], *(row for row in rows if row.startswith(work.case))]) + "\n")
    metrics = evaluate(folder.parent, alone, out=work.folder / "scores", figure=False)["metrics"]
    assert all(metrics[f"{region}_{name}"]["cases"] == 1 for region in APART for name in ("dice", "ged2", "ece"))


def test_what_the_run_cannot_do_is_refused(work):
    with pytest.raises(UsageError, match=r"unknown fusion `median`.*mean, vote, staple"):
        work.of(work.nested, "none", fusion="median")
    with pytest.raises(UsageError, match=r"has no calibration for enhancing, whole, oedema.*calibration_slices"):
        work.of(work.apart, "none", calibrated=True)


def test_a_changed_calibration_is_refused(work, tmp_path):
    run = untrained(tmp_path / "run", NESTED, calibration=work.chosen)
    run.calibration_file.write_text(run.calibration_file.read_text().replace("0.4", "0.2"))
    with pytest.raises(CheckpointError, match=r"calibration.json"):
        work.of(run, "none")


def test_the_volumes_of_members_are_told_by_their_central_95_percent():
    found = volumes_of_members(list(range(101)), 0.01)
    assert found == {"mean": 0.5, "low": 0.025, "high": 0.975}
    assert volumes_of_members([700], 0.001) == {"mean": 0.7, "low": 0.7, "high": 0.7}


def uncertain(expected_ml, axis):
    """Uncertainty whose slices along `axis` sum to `expected_ml`, in voxels of 0.1 ml."""
    out = np.zeros((4, 4, len(expected_ml)), np.float32)
    out[1, 2] = np.asarray(expected_ml) / 0.1
    return np.moveaxis(out, 2, axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_worst_slices_come_first_along_the_patients_long_axis(axis):
    affine = np.zeros((4, 4))
    affine[2, axis], affine[0, (axis + 1) % 3], affine[1, (axis + 2) % 3], affine[3, 3] = -3, 1, 1, 1
    found = slices_to_review(uncertain([0.0, 0.2, 0.04, 0.9, 0.2, 0.06, 0.3, 0.1], axis), affine, 0.1)
    assert [item["slice"] for item in found] == [3, 6, 1, 4, 7]  # at most five; equals in their order
    assert {item["axis"] for item in found} == {axis}
    assert found[0]["expected_error_ml"] == pytest.approx(0.9)


def test_slices_with_little_to_say_need_no_look():
    assert slices_to_review(uncertain([0.0, 0.049, 0.02], 2), np.eye(4), 0.1) == []
    assert [item["slice"] for item in slices_to_review(uncertain([0.0, 0.051, 0.02], 2), np.eye(4), 0.1)] == [1]


def test_slices_are_axial_where_they_are_thick_and_tilted():
    tilt = np.deg2rad(25)  # a coronal scan of 0.5 × 0.5 × 3 mm: its thick axis rises more a voxel than the long one
    affine = np.eye(4)
    affine[:3, 1] = np.array([0, np.sin(-tilt), np.cos(tilt)]) * 0.5
    affine[:3, 2] = np.array([0, np.cos(tilt), np.sin(tilt)]) * 3
    assert abs(affine[2, 2]) > abs(affine[2, 1])
    assert slices_to_review(uncertain([0.0, 0.2], 1), affine, 0.1)[0] | {"expected_error_ml": 0} == {
        "axis": 1,
        "slice": 1,
        "expected_error_ml": 0,
    }


@pytest.mark.parametrize("spacing", [(None, None, None), (2.0, 2.0, 2.0)])
def test_members_that_agree_have_no_variance_on_any_grid(spacing):
    """Interpolation softens their edge, which is no disagreement."""
    scan = np.zeros((1, 24, 24, 20), np.float32)
    scan[0, 3:21, 3:21, 2:18] = 1 + np.random.default_rng(0).random((18, 18, 16))
    images = CaseImages("a", ("t1",), scan, np.eye(4), None, None, ())
    prepared, view = prepare_case(images, Preparation(spacing_mm=spacing)), AxialSlices()
    size = prepared.image.shape[1:]
    ball = ((np.indices(size) - np.array(size).reshape(3, 1, 1, 1) / 2) ** 2).sum(0) < (min(size) / 4) ** 2
    ensemble = Ensemble(size[2], 1, size[:2], 2, "cpu")
    for member, z in np.ndindex(2, size[2]):
        ensemble.add(Sample(z, member), torch.from_numpy(ball[None, :, :, z].astype(np.float32)))
    mean, between = (restore(prepared, view.join(part)) for part in (ensemble.mean, ensemble.variance_between))
    maps = uncertainty_maps(torch.from_numpy(mean), torch.from_numpy(between))
    assert ensemble.agreement() == [1.0] and maps["variance_between"].max() < 1e-6
    assert torch.equal(maps["variance_between"] + maps["variance_within"], maps["uncertainty"])


def test_slices_that_a_recipe_leaves_out_are_said_and_all_of_them_refused():
    prepared = prepare_case(
        CaseImages(
            "a", ("t1",), np.pad(np.ones((1, 6, 6, 6), np.float32), ((0, 0), *[(2, 2)] * 3)), np.eye(4), None, None, ()
        ),
        Preparation(margin_mm=0),
    )
    some, none = (AxialSlices(drop=(low, 1), sample_dropped=False) for low in (2, 5))
    assert slices_to_sample(AxialSlices(), prepared) == list(range(6)) and left_out(AxialSlices(), prepared) == []
    assert slices_to_sample(some, prepared) == [2, 3, 4]
    assert left_out(some, prepared)[0].startswith("3 of 6 slices with brain are left empty")
    with pytest.raises(ImageError, match="all 6 slices with brain lie where the recipe samples none"):
        slices_to_sample(none, prepared)
