"""Training a tiny second stage, and using it: on scans and on what a first stage draws; its grid, and whose bytes."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from medseg_diff import enhance, report, synthesise, train_enhance, train_synth
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import finer
from medseg_diff.data.tables.manifest import read_manifest, write_manifest
from medseg_diff.errors import CheckpointError, ImageError, ManifestError, Problems, UsageError
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.tasks.apply.enhancement_system import second_stage
from medseg_diff.tasks.options import Compute
from medseg_diff.training.runner import Course
from tests.stories.test_synthesis import digests

TINY = (
    "preparation.spacing_mm=[6.0,6.0,6.0]",
    "view.size=[16,16,16]",
    "view.per_case=2",
    "network.width=8",
    "network.multipliers=[1,2]",
    "network.groups=4",
    "training.steps=4",
    "training.batch=2",
    "training.precision=fp32",
    "training.decay=constant",
    "training.validate_every=4",
    "training.save_every=2",
    "validation.images=2",
    "validation.drawn=1",
    "sampling.steps=2",
    "sampling.network_batch=2",
)
FIRST = (
    "space={kind: image}",
    "covariates=[]",
    "preparation.spacing_mm=[12.0,12.0,12.0]",
    "view.size=[12,14,12]",
    "network.width=8",
    "network.multipliers=[1,1]",
    "network.attention=[]",
    "network.groups=4",
    "training.steps=2",
    "training.batch=2",
    "training.precision=fp32",
    "training.validate_every=2",
    "validation.images=2",
    "validation.drawn=0",
    "sampling={steps: 2, network_batch: 2, guidance: 1.0}",
)


def train(phantoms, out, *overrides, **options):
    known = {"runs": out.parent / "runs", "device": "cpu", "mlflow": False}
    return train_enhance(
        phantoms, config="quick/cascade_x2", overrides=[*TINY, *overrides], out=out, **known, **options
    )


def draw(run, out, **options):
    return enhance(model=run.folder, out=out, device="cpu", **options)


@pytest.fixture(scope="module")
def second(phantoms, tmp_path_factory):
    return train(phantoms, tmp_path_factory.mktemp("cascade") / "tiny")


@pytest.fixture(scope="module")
def two(phantoms, tmp_path_factory):
    """Two cases in voxels twice as large, the means of the phantoms', as a table, and the same in the other order."""
    folder, rows = tmp_path_factory.mktemp("coarse"), []
    for case in read_manifest(phantoms).cases[:2]:
        fine = nibabel.load(case.images["t1"])
        blocks = fine.get_fdata().reshape(*(part for n in fine.shape for part in (n // 2, 2)))
        affine = fine.affine @ np.linalg.inv(finer(np.eye(4), 2))
        write_volume(folder / case.name / "t1.nii.gz", blocks.mean(axis=(1, 3, 5)).astype(np.float32), affine)
        rows.append({"case": case.name, "patient": case.name, "t1": f"{case.name}/t1.nii.gz"})
    tables = {name: folder / f"{name}.csv" for name in ("two", "turned")}
    write_manifest(tables["two"], rows)
    write_manifest(tables["turned"], rows[::-1])
    return tables


def test_the_run_says_how_it_does_beside_a_mere_enlargement(second):
    names = {point.name for point in second.numbers()}
    assert {"denoiser_val_loss", "denoiser_val_psnr", "denoiser_val_psnr_linear"} <= names
    assert {path.stem for path in (second.folder / "weights").glob("*")} == {"denoiser"}
    assert {picture.series for picture in second.trajectories} == {"trajectories/denoiser"}


def test_a_scan_lies_on_a_grid_twice_as_fine(second, two, tmp_path):
    folders = draw(second, tmp_path, data=two["two"])
    for folder, case in zip(folders, read_manifest(two["two"]).cases, strict=True):
        own, fine = nibabel.load(case.images["t1"]), nibabel.load(folder / "t1.nii.gz")
        assert fine.shape == tuple(2 * n for n in own.shape) and nibabel.aff2axcodes(
            fine.affine
        ) == nibabel.aff2axcodes(own.affine)
        np.testing.assert_allclose(fine.affine, finer(own.affine, 2), atol=1e-5)
        voxels, before = fine.get_fdata(), own.get_fdata()
        blocks = voxels.reshape(*(part for n in own.shape for part in (n, 2))).mean(axis=(1, 3, 5))
        assert (blocks[before == 0] == 0).mean() > 0.99  # outside of the brain voxels are repeated
        facts = json.loads((folder / "case.json").read_text())
        assert facts["task"] == "enhance" and facts["condition_noise"] == 50 and facts["steps"] == 2
        assert facts["inputs"].keys() == {"t1"} and facts["outputs"].keys() == {"t1.nii.gz"}
        assert any("learned to refine 12×12×12 mm" in warning for warning in facts["warnings"])
    lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert len(lines) == 1 + len(folders) and lines[0].startswith("case,task,model,factor,draws,steps,seed,")
    text = report(tmp_path, mlflow=False).read_text(encoding="utf-8")
    assert "2 enhanced scans" in text and "drawn, not measured" in text
    own = (folders[0] / "report.html").read_text(encoding="utf-8")
    assert "voxels 2 times as fine" in own and "learned to refine 12×12×12 mm" in own and "t1 (read)" in own


def test_a_scan_is_the_same_in_any_order_company_and_share(second, two, phantoms, tmp_path):
    whole = tmp_path / "whole"
    folders = draw(second, whole, data=two["two"])
    draw(second, tmp_path / "turned", data=two["turned"])
    assert digests(tmp_path / "turned") == digests(whole)
    for share in ((1, 2), (2, 2)):
        draw(second, tmp_path / "shares", data=two["two"], shard=share)
    assert digests(tmp_path / "shares") == digests(whole)
    case = read_manifest(two["two"]).cases[0]
    (alone,) = draw(second, tmp_path / "alone", volumes=[str(case.images["t1"].parent)])
    assert (alone / "t1.nii.gz").read_bytes() == (folders[0] / "t1.nii.gz").read_bytes()
    kept = (folders[1] / "case.json").stat().st_mtime_ns
    shutil.rmtree(folders[0])
    draw(second, whole, data=two["two"])
    assert digests(whole) == digests(tmp_path / "turned")
    assert (folders[1] / "case.json").stat().st_mtime_ns == kept  # complete: not done again
    for options in ({"seed": 1}, {"draws": 2}, {"steps": 1}, {"condition_noise": 0}):
        with pytest.raises(UsageError, match="was made with"):
            draw(second, whole, data=two["two"], **options)


def test_it_goes_on_where_it_stopped_to_the_same_bytes(phantoms, second, tmp_path, monkeypatch):
    whole = Course._go

    def broken(course, stop):
        settings = course.phase.settings
        course.phase = course.phase.__class__(**{**vars(course.phase), "settings": settings.but(steps=2)})
        whole(course, stop)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Course, "_go", broken)
        with pytest.raises(KeyboardInterrupt):
            train(phantoms, tmp_path / "tiny")
    resumed = train(phantoms, tmp_path / "tiny", resume="must")
    assert resumed.weights("denoiser").read_bytes() == second.weights("denoiser").read_bytes()


@pytest.fixture(scope="module")
def first(phantoms, tmp_path_factory):
    out = tmp_path_factory.mktemp("first") / "tiny"
    known = {"runs": out.parent / "runs", "device": "cpu", "mlflow": False}
    return train_synth(phantoms, config="quick/brain_ldm_3d", overrides=FIRST, out=out, **known)


def test_what_is_drawn_goes_through_the_second_stage(first, second, tmp_path):
    how = {"model": first.folder, "enhance": second.folder, "device": "cpu"}
    folders = synthesise(out=tmp_path / "three", number=3, **how)
    image = nibabel.load(folders[0] / "t1.nii.gz")
    assert image.shape == (24, 28, 24) and image.header.get_zooms() == (6, 6, 6) and image.get_data_dtype() == np.int16
    middle = image.affine @ [11.5, 13.5, 11.5, 1]
    assert np.allclose(middle[:3], 0)  # as without: the middle of the box
    facts = json.loads((folders[0] / "case.json").read_text())
    assert facts["enhanced_by"]["condition_noise"] == 50 and facts["enhanced_by"]["factor"] == 2
    synthesise(out=tmp_path / "one", number=1, **how)
    assert digests(tmp_path / "one").items() <= digests(tmp_path / "three").items()
    assert len(set(digests(tmp_path / "three").values())) == 3
    with pytest.raises(UsageError, match="was made with enhanced_by"):
        synthesise(out=tmp_path / "one", number=1, model=first.folder, device="cpu")
    plain = synthesise(out=tmp_path / "plain", number=1, model=first.folder, device="cpu")
    assert "enhanced_by" not in json.loads((plain[0] / "case.json").read_text())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("preparation.spacing_mm=[8.0,8.0,8.0]", "refines voxels of 12 × 12 × 12 mm, but the model draws 8 × 8 × 8"),
        ("channels=[t1, flair]", "refines t1, but the model draws t1, flair"),
        ("view={kind: axial_slices, size: [12, 14]}", "but the model draws slices"),
    ],
)
def test_a_first_stage_that_does_not_fit_is_refused(second, override, said):
    recipe = load_recipe("quick/brain_ldm_3d", task="synthesise", overrides=[*FIRST, override])
    with pytest.raises(UsageError, match=said):
        second_stage(second.folder, recipe, Compute(device="cpu"), seed=0, runs=second.folder.parent)


def test_what_cannot_be_enhanced_is_refused_in_one_line(first, second, two, phantoms, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="one of --volume and --data"):
        draw(second, out)
    with pytest.raises(CheckpointError, match=r"synthesise|train-enhance"):
        draw(first, out, data=two["two"])
    with pytest.raises(CheckpointError):
        synthesise(out=out, model=second.folder, number=1, device="cpu")
    with pytest.raises(UsageError, match="--enhance makes a finer one"):
        synthesise(out=out, model=first.folder, masks=two["two"], enhance=second.folder, device="cpu")
    with pytest.raises((Problems, UsageError, ManifestError)) as error:
        draw(second, out, volumes=[f"flair={read_manifest(phantoms).cases[0].images['flair']}"])
    assert "t1" in str(error.value)
    broken = tmp_path / "t1.nii.gz"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageError):
        draw(second, out, volumes=[str(broken)])
