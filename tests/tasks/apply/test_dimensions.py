"""Three dimensions, neighbours, shared noise and missing channels, from the table to the maps, on tiny phantoms."""

import json
import logging
import shutil

import numpy as np
import pytest

from medseg_diff.errors import ImageError, ManifestError, MedsegError, UsageError
from medseg_diff.run import Run
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.train.segmentation import train_seg

VERY_TINY = (
    "network.width=8",
    "network.multipliers=[1,2]",
    "network.attention=[]",
    "network.groups=4",
    "training.steps=2",
    "training.batch=2",
    "training.precision=fp32",
    "training.validate_every=2",
    "validation.slices=2",
    "validation.members=1",
    "validation.calibration_slices=2",
    "sampling.members=3",
    "sampling.steps=2",
    "sampling.network_batch=4",
)
PATCHES = ("view={kind: patches, size: [16, 20, 16], per_case: 2}", "preparation.spacing_mm=[null,null,null]")


def trained_on(trained, out, *overrides, config="quick/phantom", data=None):
    """Two steps on the shared phantoms, whose cache is used."""
    return train_seg(
        data or trained.table,
        config=config,
        out=out,
        overrides=(*VERY_TINY, *overrides),
        data_root=trained.table.parent,
        device="cpu",
        runs=trained.runs,
        mlflow=False,
    )


def shaken(run, size=0.15):
    """The run with large random weights, whose answer changes a lot with a little rounding."""
    import torch

    from medseg_diff.recipes.segmentation import SegmentationRecipe
    from medseg_diff.settings import parse_settings, read_yaml
    from medseg_diff.training.weights import save_weights

    recipe = parse_settings(SegmentationRecipe, read_yaml(run.recipe_file), source="recipe.yaml")
    network, generator = recipe.build_denoiser().network, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    save_weights(network, run.weights("best"))
    run.seal()
    return run


@pytest.fixture(scope="module")
def deep(trained, tmp_path_factory):
    """A 3D run."""
    folder = tmp_path_factory.mktemp("deep") / "deep"
    return shaken(trained_on(trained, folder, *PATCHES, config="quick/mask_logits_3d"))


@pytest.fixture(scope="module")
def bearing(trained, tmp_path_factory):
    """A run of slices with neighbours, trained to do without some channels."""
    folder = tmp_path_factory.mktemp("bearing") / "bearing"
    return shaken(
        trained_on(trained, folder, "view.context=1", "augmentation.channel_dropout=0.3", "view.size=[32,32]")
    )


def voxels(path):
    import nibabel

    return np.asarray(nibabel.load(path).dataobj)


def images_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.nii.gz")}


def case_folder(trained, number=0):
    return trained.table.parent / f"phantom_{number:04d}"


def report_of(folder):
    return json.loads((folder / "case.json").read_text())


@pytest.fixture(scope="module")
def deep_result(trained, deep, tmp_path_factory):
    out = tmp_path_factory.mktemp("deep_result")
    (folder,) = segment([str(case_folder(trained))], out=out, model=deep.folder, device="cpu")
    return folder


def test_a_volume_in_tiles_is_segmented_on_its_own_grid(trained, deep_result):
    image = voxels(case_folder(trained) / "t1.nii.gz")
    mean = voxels(deep_result / "probability.nii.gz")
    assert mean.shape == image.shape and 0 <= mean.min() < mean.max() <= 1
    assert voxels(deep_result / "variance_between.nii.gz").max() > 1e-4  # the members differ
    assert np.ptp(mean[:, :, mean.shape[2] // 2]) > 0.05


def test_its_bytes_do_not_depend_on_members_at_once_or_on_saving_them(trained, deep, deep_result, tmp_path):
    for name, options in (("one", {"members_at_once": 1}), ("saved", {"save_members": True})):
        (folder,) = segment(
            [str(case_folder(trained))], out=tmp_path / name, model=deep.folder, device="cpu", **options
        )
        whole = {name: content for name, content in images_in(folder).items() if "/" not in name}
        assert whole == images_in(deep_result)
    members = [voxels(path) for path in sorted((tmp_path / "saved").glob("*/members/*.nii.gz"))]
    np.testing.assert_allclose(np.mean(members, 0), voxels(deep_result / "probability.nii.gz"), atol=1e-6)
    assert len(members) == 3


@pytest.mark.parametrize("network_batch", [1, 4, 64])
def test_network_passes_are_those_that_the_network_made(trained, deep, tmp_path, monkeypatch, network_batch):
    from medseg_diff.networks.unet import UNet

    seen = []
    forward = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x, t, c: seen.append(tuple(x.shape)) or forward(self, x, t, c))
    (folder,) = segment(
        [str(case_folder(trained))],
        out=tmp_path,
        model=deep.folder,
        device="cpu",
        members=2,
        network_batch=network_batch,
    )
    assert report_of(folder)["network_passes"] == len(seen)
    assert set(seen) == {(network_batch, 1, 16, 20, 16)}


def test_the_progress_bar_counts_tiles(trained, deep, tmp_path, monkeypatch):
    from contextlib import contextmanager

    from medseg_diff.tasks.apply import segmentation_volume as module

    told = {}

    @contextmanager
    def bar(title, total):
        told[title.strip()] = [total, 0]

        def advance(n=1, note=""):
            told[title.strip()][1] += n

        yield advance

    monkeypatch.setattr(module, "bar", bar)
    segment([str(case_folder(trained))], out=tmp_path, model=deep.folder, device="cpu", members=2)
    total, reached = told["phantom_0000"]
    assert total == reached and total % (2 * 2) == 0 and total > 2 * 2 * 4


def test_another_seed_gives_another_volume(trained, deep, deep_result, tmp_path):
    (folder,) = segment([str(case_folder(trained))], out=tmp_path, model=deep.folder, device="cpu", seed=1)
    assert images_in(folder)["variance_between.nii.gz"] != images_in(deep_result)["variance_between.nii.gz"]


def test_patches_have_one_noise_already(trained, deep, tmp_path):
    with pytest.raises(UsageError, match="already shares one noise"):
        segment([str(case_folder(trained))], out=tmp_path, model=deep.folder, device="cpu", noise="shared")


def test_with_few_patients_patches_are_validated_on_those_trained_on(trained, tmp_path, caplog, monkeypatch):
    import csv

    from medseg_diff.data.tables.manifest import read_manifest
    from medseg_diff.recipes.lookup import load_recipe
    from medseg_diff.tasks.train.study import prepare_study, with_splits

    with trained.table.open(newline="") as file:
        rows = [row | {"split": ""} for row in csv.DictReader(file)][:2]
    with (tmp_path / "two.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    manifest = with_splits(read_manifest(tmp_path / "two.csv", data_root=trained.table.parent))
    recipe = load_recipe("quick/mask_logits_3d", task="segment", overrides=PATCHES)
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    with caplog.at_level(logging.INFO, "medseg_diff"):
        study = prepare_study(manifest, recipe, cache=trained.runs / "cache")
    assert not study.separate and len(study.training) == len(study.held) == 4
    assert "validating on patches of the training patients" in caplog.text
    slices = study.validation(48)
    assert slices.image.shape == (4, 4, 16, 20, 16) and slices.brain.shape == (4, 1, 16, 20, 16)


def test_noise_may_be_shared_along_the_axis(trained, bearing, tmp_path):
    """With equal noise everywhere and weights that look at the noise, neighbouring slices are more alike."""
    apart = {}
    for noise in ("independent", "shared"):
        (folder,) = segment(
            [str(case_folder(trained))],
            out=tmp_path / noise,
            model=bearing.folder,
            device="cpu",
            members=1,
            steps=1,
            noise=noise,
        )
        assert report_of(folder)["noise"] == noise
        mean = voxels(folder / "probability.nii.gz")[8:-8, 8:-8, 10:-10]
        apart[noise] = np.abs(np.diff(mean, axis=2)).mean()
    assert apart["shared"] < 0.9 * apart["independent"]
    with pytest.raises(UsageError, match="was made with noise shared, not independent"):
        segment(
            [str(case_folder(trained))],
            out=tmp_path / "shared",
            model=bearing.folder,
            device="cpu",
            members=1,
            steps=1,
            noise="independent",
        )
    with pytest.raises(UsageError, match=r"unknown noise `pink`. Fix: use independent or shared"):
        segment([str(case_folder(trained))], out=tmp_path / "x", model=bearing.folder, device="cpu", noise="pink")


def test_a_model_that_bears_missing_channels_fills_them_and_says_so(trained, bearing, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    for channel in ("t1ce", "flair"):
        (tmp_path / "p").mkdir(exist_ok=True)
        shutil.copy(case_folder(trained) / f"{channel}.nii.gz", tmp_path / "p")
    options = {"model": bearing.folder, "device": "cpu", "members": 1, "steps": 1}
    with caplog.at_level(logging.INFO, "medseg_diff"):
        (folder,) = segment([str(tmp_path / "p")], out=tmp_path / "out", **options)
    report = report_of(folder)
    assert report["missing_channels"] == ["t1", "t2"] and report["channels"] == ["t1", "t1ce", "t2", "flair"]
    assert any("lacks t1, t2" in warning for warning in report["warnings"])
    assert "took t1ce.nii.gz, flair.nii.gz from folder p; lacks t1, t2" in caplog.text
    assert "[p] lacks t1, t2: background is used instead" in caplog.text
    (words,) = segment(
        [f"t1ce={tmp_path}/p/t1ce.nii.gz", f"flair={tmp_path}/p/flair.nii.gz"], out=tmp_path / "words", **options
    )
    assert report_of(words)["missing_channels"] == ["t1", "t2"]
    (whole,) = segment([str(case_folder(trained))], out=tmp_path / "whole", **options)
    assert report_of(whole)["missing_channels"] == [] and report_of(whole)["warnings"] == []


def without(trained, path, *columns, cases=None):
    """The table without some columns."""
    import csv

    with trained.table.open(newline="") as file:
        rows = [{key: value for key, value in row.items() if key not in columns} for row in csv.DictReader(file)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[:cases])
    return path


def test_a_table_that_lacks_a_column_is_refused_for_every_case_with_what_would_fit(trained, deep, tmp_path):
    table = without(trained, tmp_path / "cases.csv", "t1", "t2")
    options = {"data": table, "data_root": trained.table.parent, "device": "cpu", "out": tmp_path / "out"}
    with pytest.raises(MedsegError) as caught:
        segment(model=deep.folder, runs=trained.runs, **options)
    assert len(caught.value.lines) == 10 and caught.value.exit_code == 2
    line = caught.value.lines[0]
    assert "has no t1, t2; the model reads t1, t1ce, t2, flair" in line
    assert "no model here fits; train-seg takes channels=[t1ce,flair]" in line
    assert not (tmp_path / "out").exists()
    with pytest.raises(ManifestError, match="has no t1, t2"):
        segment(model=deep.folder, runs=trained.runs, keep_going=True, **options)


def test_a_refusal_names_the_models_that_fit(trained, deep, bearing, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(bearing.folder, runs / "bears_all")
    shutil.copytree(deep.folder, runs / "needs_all")
    (tmp_path / "p").mkdir()
    shutil.copy(case_folder(trained) / "t2.nii.gz", tmp_path / "p")
    with pytest.raises(ImageError) as caught:
        segment([str(tmp_path / "p")], out=tmp_path / "out", model=deep.folder, runs=runs, device="cpu")
    line = caught.value.line
    assert caught.value.exit_code == 3 and "t1, t1ce, flair not found (there: t2.nii.gz)" in line
    assert "choose a model for other channels; models that fit: bears_all (t1, t1ce, t2, flair)" in line
    assert "needs_all" not in line and "channels=[t2]" in line


def test_a_model_of_t1_alone_takes_a_lone_file(trained, tmp_path):
    table = without(trained, tmp_path / "t1.csv", "t1ce", "t2", "flair")
    with pytest.raises(MedsegError, match="has no t1ce, t2, flair") as caught:
        trained_on(trained, tmp_path / "refused", data=table)
    assert "set channels=[t1] to what there is" in caught.value.lines[0]
    run = trained_on(trained, tmp_path / "t1", "channels=[t1]", "view.size=[32,32]", data=table)
    shutil.copy(case_folder(trained) / "t1.nii.gz", tmp_path / "scan.nii.gz")
    (folder,) = segment([str(tmp_path / "scan.nii.gz")], out=tmp_path / "out", model=run.folder, device="cpu")
    assert report_of(folder)["channels"] == ["t1"]
    assert Run(run.folder).facts["finished"]


def test_cases_that_lack_a_channel_are_learned_from_with_channel_dropout(trained, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    table = without(trained, tmp_path / "some.csv", "flair")
    with caplog.at_level(logging.WARNING, "medseg_diff"):
        run = trained_on(trained, tmp_path / "run", "augmentation.channel_dropout=0.2", "view.size=[32,32]", data=table)
    assert "10 cases without a channel" in caplog.text and run.weights("best").is_file()
    other = without(trained, tmp_path / "none.csv", "t1", "t1ce", "t2", "flair")
    text = other.read_text().replace("case,", "pet,case,", 1).splitlines()
    rows = [text[0], *(f"phantom_{n:04d}/t1.nii.gz,{line}" for n, line in enumerate(text[1:]))]
    other.write_text("\n".join(rows) + "\n")
    with pytest.raises(MedsegError, match="has no t1, t1ce, t2, flair"):
        trained_on(trained, tmp_path / "no", "augmentation.channel_dropout=0.2", data=other)


@pytest.mark.parametrize("run", ["deep", "bearing"])
def test_a_mask_to_start_from_comes_back_where_it_lay(trained, run, request, tmp_path, monkeypatch):
    """With a network that takes what it sees for clean, in tiles and among neighbours as in single slices."""
    import torch

    from medseg_diff.diffusion import Denoiser
    from medseg_diff.diffusion.denoiser import Prediction

    monkeypatch.setattr(Denoiser, "forward", lambda self, x_t, t, condition: Prediction(x_t, torch.zeros_like(x_t)))
    scan = case_folder(trained)
    shutil.copytree(scan, tmp_path / "masks" / scan.name, ignore=lambda _, names: set(names) - {"seg.nii.gz"})
    options = {"start_from": tmp_path / "masks", "strength": 0.001, "steps": 1, "members": 2, "device": "cpu"}
    (folder,) = segment([str(scan)], out=tmp_path / "out", model=request.getfixturevalue(run).folder, **options)
    np.testing.assert_array_equal(voxels(folder / "probability.nii.gz") > 0.5, voxels(scan / "seg.nii.gz") > 0)
