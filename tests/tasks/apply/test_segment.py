"""Segmenting phantoms: what is written, on which grid, and that nothing but the seed decides its bytes."""

import csv
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg_diff.data.brain import find_brain
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import Volume, axes_of, reoriented
from medseg_diff.data.reading import read_map
from medseg_diff.errors import CheckpointError, ImageError, UsageError
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.run import Run
from medseg_diff.settings import write_yaml
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.training.weights import save_weights
from tests.conftest import shake

MAPS = ("probability", "variance_between", "variance_within", "uncertainty")
CHANNELS = ("t1", "t1ce", "t2", "flair")


def read(path) -> Volume:
    return read_map(Path(path))


def images_in(folder):
    """{relative name: bytes} of every image below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.nii.gz")}


def rows_of(table):
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(table, rows):
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


@pytest.fixture(scope="module")
def study(steep, tmp_path_factory):
    """The two test phantoms, segmented with three members, all at once."""

    class Study:
        model, table, data = steep.folder, steep.table, steep.table.parent
        out = tmp_path_factory.mktemp("segmented") / "out"
        cases = tuple(row["case"] for row in rows_of(steep.table) if row["split"] == "test")

        def again(self, out, **options):
            source = {"volumes": [str(self.data / self.cases[0])]} if options.pop("one", False) else {}
            if not source and not {"data", "volumes"} & set(options):
                source = {"data": self.table, "split": "test"}
            return segment(out=out, device="cpu", **{"model": self.model} | source | options)

    found = Study()
    assert len(found.cases) == 2
    written = found.again(found.out)
    assert written == [found.out / case for case in found.cases]
    return found


def report_of(folder):
    return json.loads((folder / "case.json").read_text())


def test_every_file_of_the_interface_is_there_and_nothing_else(study):
    for case in study.cases:
        names = {path.name for path in (study.out / case).iterdir()}
        masks = {"mask.nii.gz", "mask_labels.ctbl", "mask_labels.txt"}
        assert names == {*masks, *(f"{kind}.nii.gz" for kind in MAPS), "case.json"}


def test_outputs_lie_on_the_grid_of_the_input(study):
    for case in study.cases:
        image = read(study.data / case / "t1.nii.gz")
        for path in (study.out / case).glob("*.nii.gz"):
            found = read(path)
            assert found.shape == image.shape
            np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)


def test_the_maps_are_what_they_are_called(study):
    import nibabel

    for case in study.cases:
        folder = study.out / case
        maps = {kind: read(folder / f"{kind}.nii.gz").voxels for kind in MAPS}
        mask = nibabel.load(folder / "mask.nii.gz")
        assert mask.get_data_dtype() == np.uint8
        assert nibabel.load(folder / "probability.nii.gz").get_data_dtype() == np.float32
        mean = maps["probability"]
        assert mean.min() >= 0 and mean.max() <= 1 and mean.std() > 0.05
        np.testing.assert_allclose(maps["uncertainty"], mean * (1 - mean), atol=1e-6)
        np.testing.assert_allclose(maps["variance_between"] + maps["variance_within"], maps["uncertainty"], atol=1e-6)
        assert (
            maps["variance_between"].min() >= 0
            and maps["variance_within"].min() >= 0
            and maps["variance_between"].max() > 0.01
        )
        voxels = np.asarray(mask.dataobj)
        assert set(np.unique(voxels)) <= {0, 1} and voxels.any()
        assert (mean[voxels == 1] > 0.5).all()


def test_slices_without_brain_are_exactly_zero(study):
    for case in study.cases:
        images = np.stack([read(study.data / case / f"{channel}.nii.gz").voxels for channel in CHANNELS])
        empty = ~find_brain(images).any((0, 1))
        assert empty.any() and not empty.all()
        for path in (study.out / case).glob("*.nii.gz"):
            assert not read(path).voxels[:, :, empty].any()


def test_a_network_of_the_papers_target_is_clipped_at_every_step(study, tmp_path, monkeypatch):
    """Noise that is not there, divided by an alpha of nearly 0, else makes a mask in the thousands and all after it."""
    from medseg_diff.diffusion import Denoiser

    shutil.copytree(study.model, tmp_path / "model")
    run = Run(tmp_path / "model")
    recipe = load_recipe(str(run.recipe_file), task="segment")
    recipe = recipe.but(network=recipe.network.prior.model_dump(mode="json"), denoiser={"target": "noise"})
    run.recipe_file.write_text(write_yaml(recipe))
    network = recipe.build_denoiser().network
    shake(network, torch.Generator().manual_seed(0))
    save_weights(network, run.weights("best"))
    run.seal()
    output, largest = Denoiser.output, []

    def listening(self, x_t, t, condition):
        largest.append(float(x_t.abs().max()))
        return output(self, x_t, t, condition)

    monkeypatch.setattr(Denoiser, "output", listening)
    study.again(tmp_path / "out", one=True, members=1, model=run.folder)
    assert len(largest) % 3 == 0 and 3 < max(largest) < 8  # a million normal numbers, and a mask in [-1, 1]


def test_case_json_tells_what_was_done(study):
    report = report_of(study.out / study.cases[0])
    assert report["case"] == study.cases[0] and report["channels"] == list(CHANNELS)
    assert (report["seed"], report["steps"], report["members"], report["network_batch"]) == (0, 3, 3, 8)
    assert report["precision"] == "fp32" and report["device"] == "cpu" and report["threads"] >= 1
    assert report["regions"] == {"whole_tumour": [1, 2, 4]} and report["recipe"] == "quick-phantom"
    assert len(report["sha256"]) == len(report["recipe_sha256"]) == 64
    assert report["sha256"] in (study.model / "SHA256SUMS").read_text()
    assert set(report["seconds"]) == {"read", "sample", "all"} and report["warnings"] == []
    assert {"medseg_diff", "torch"} <= set(report["versions"])
    volume = report["volume_ml"]["whole_tumour"]
    assert volume["members"]["low"] <= volume["members"]["mean"] <= volume["members"]["high"]
    assert (volume["low"], volume["high"], volume["level"], volume["calibrated_on"]) == (None, None, None, 0)
    voxels = read(study.out / study.cases[0] / "mask.nii.gz").voxels
    spacing = np.abs(np.linalg.det(read(study.out / study.cases[0] / "mask.nii.gz").affine[:3, :3])) / 1000
    assert volume["mask"] == pytest.approx(voxels.sum() * spacing, abs=1e-3)
    assert set(report["removed"]["whole_tumour"]) == {"components", "volume_ml"}
    for found in report["slices_to_review"]["whole_tumour"]:
        assert set(found) == {"axis", "slice", "expected_error_ml"}
    text = (study.out / study.cases[0] / "case.json").read_text()
    assert str(study.out) not in text and str(study.model.parent) not in text


def test_a_scan_unlike_those_trained_on_is_said_so_in_words(study, tmp_path):
    """Its channels are mistaken for one another; the cases of the training's kind are not warned of."""
    usual = [report_of(study.out / case)["typicality"] for case in study.cases]
    assert all(0 < said["score"] < said["threshold"] for said in usual)
    scan = study.data / study.cases[0]
    mistaken = {"t1": "t2", "t1ce": "flair", "t2": "t1", "flair": "t1ce"}
    volumes = [f"{channel}={scan / f'{other}.nii.gz'}" for channel, other in mistaken.items()]
    (folder,) = study.again(tmp_path, volumes=volumes)
    report = report_of(folder)
    assert report["typicality"]["score"] > report["typicality"]["threshold"]
    (warning,) = [each for each in report["warnings"] if "unlike" in each]
    assert "looks unlike the scans that the model was trained on" in warning and "in training" in warning
    assert len(report["typicality"]["striking"]) == 3 and not report["promises_apply"]


def test_a_model_that_learned_from_phantoms_says_so_on_a_persons_scan(study, tmp_path):
    for case in study.cases:
        report = report_of(study.out / case)
        assert report["promises_apply"] and not any("made-up" in warning for warning in report["warnings"])
    shutil.copytree(study.data / study.cases[0], tmp_path / "person")
    (folder,) = study.again(tmp_path / "out", volumes=[tmp_path / "person"])
    assert not report_of(folder)["promises_apply"]
    assert any("trained on phantoms, simulated brains" in warning for warning in report_of(folder)["warnings"])


def test_the_network_passes_are_counted(study, tmp_path):
    report = report_of(study.out / study.cases[0])
    image = np.stack([read(study.data / study.cases[0] / f"{channel}.nii.gz").voxels for channel in CHANNELS])
    slices = int(find_brain(image).any((0, 1)).sum())
    assert report["network_passes"] == -(-slices // 8) + -(-slices * 3 // 8) * 3  # the prior's once, then every step


def test_bytes_do_not_depend_on_order_or_shards_or_members_at_once(study, tmp_path):
    expected = images_in(study.out)
    rows = [row for row in rows_of(study.table) if row["split"] == "test"][::-1]
    reversed_table = write_rows(tmp_path / "reversed.csv", rows)
    study.again(tmp_path / "reversed", data=reversed_table, data_root=study.data, members_at_once=1)
    assert images_in(tmp_path / "reversed") == expected
    for number in (2, 1):
        written = study.again(tmp_path / "shards", shard=(number, 2), members_at_once=2)
        assert written == [tmp_path / "shards" / study.cases[number - 1]]
    assert images_in(tmp_path / "shards") == expected


def test_so_it_is_with_two_threads(study, tmp_path, two_threads):
    for channel in CHANNELS:  # a few slices: two threads on a busy machine wait for each other
        volume = read(study.data / study.cases[0] / f"{channel}.nii.gz")
        write_volume(tmp_path / "in" / f"{channel}.nii.gz", volume.voxels[:, :, 16:20], volume.affine)
    for at_once in (1, 2):
        segment(
            [str(tmp_path / "in")],
            out=tmp_path / str(at_once),
            model=study.model,
            members=2,
            members_at_once=at_once,
            device="cpu",
        )
    assert report_of(tmp_path / "1" / "in")["threads"] == 2
    assert images_in(tmp_path / "1") == images_in(tmp_path / "2")


def test_another_seed_gives_another_sample(study, tmp_path):
    study.again(tmp_path, one=True, seed=1)
    case = study.cases[0]
    assert (
        images_in(tmp_path / case)["variance_between.nii.gz"] != images_in(study.out / case)["variance_between.nii.gz"]
    )


def test_every_case_owns_its_noise(study, tmp_path):
    shutil.copytree(study.data / study.cases[0], tmp_path / "in" / "twin")
    segment([str(tmp_path / "in" / "twin")], out=tmp_path / "out", model=study.model, device="cpu")
    assert (
        images_in(tmp_path / "out" / "twin")["variance_between.nii.gz"]
        != images_in(study.out / study.cases[0])["variance_between.nii.gz"]
    )


def test_a_turned_scan_gives_the_same_voxels_on_its_own_grid(study, tmp_path):
    case = study.cases[0]
    for channel in CHANNELS:
        turned = reoriented(read(study.data / case / f"{channel}.nii.gz"), "SLA")
        write_volume(tmp_path / "in" / case / f"{channel}.nii.gz", turned.voxels, turned.affine, code=4)
    (written,) = segment([str(tmp_path / "in" / case)], out=tmp_path / "out", model=study.model, device="cpu")
    for name in (*MAPS, "mask"):
        found, image = read(written / f"{name}.nii.gz"), read(tmp_path / "in" / case / "t1.nii.gz")
        assert axes_of(found.affine) == "SLA" and found.shape == image.shape
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
        native = read(study.out / case / f"{name}.nii.gz")
        np.testing.assert_array_equal(reoriented(found, axes_of(native.affine)).voxels, native.voxels)
        assert (found.code, native.code) == (4, 1)  # a viewer must know that these are millimetres of MNI 152
    here, there = report_of(study.out / case)["volume_ml"], report_of(written)["volume_ml"]
    assert here == there


def test_one_4d_file_in_another_order_gives_the_same_bytes(study, tmp_path):
    import nibabel

    case, order = study.cases[0], ("flair", "t1", "t1ce", "t2")  # the Medical Segmentation Decathlon's
    volumes = [nibabel.load(study.data / case / f"{channel}.nii.gz") for channel in order]
    path = tmp_path / f"{case}.nii.gz"
    stack = np.stack([np.asarray(volume.dataobj) for volume in volumes], -1)
    nibabel.Nifti1Image(stack, None, volumes[0].header).to_filename(path)  # its code of the space too
    settings = {"out": tmp_path / "out", "model": study.model, "device": "cpu"}
    with pytest.raises(ImageError, match="only numbered"):
        segment([str(path)], **settings)
    (folder,) = segment([str(path)], channels=order, **settings)
    assert images_in(folder) == images_in(study.out / case)
    assert report_of(folder)["named_channels"] == list(order)
    with pytest.raises(UsageError, match="was made with named_channels"):  # what was called wrong is not complete
        segment([str(path)], channels=order[::-1], **settings)
    with pytest.raises(UsageError, match="the columns of a table name its channels"):
        segment(data=study.table, channels=order, **settings)


def test_complete_cases_are_skipped_and_overwrite_redoes_them(study, tmp_path, caplog):
    shutil.copytree(study.out, tmp_path / "out")
    first = tmp_path / "out" / study.cases[0] / "case.json"
    shutil.rmtree(tmp_path / "out" / study.cases[1])  # a case that is not there is done
    os.utime(first, ns=(1, 1))
    study.again(tmp_path / "out")
    assert first.stat().st_mtime_ns == 1 and (tmp_path / "out" / study.cases[1] / "case.json").is_file()
    assert images_in(tmp_path / "out") == images_in(study.out)
    study.again(tmp_path / "out", one=True, overwrite=True)
    assert first.stat().st_mtime_ns != 1


@pytest.mark.parametrize(
    ("change", "said"),
    [({"seed": 5}, "seed 0, not 5"), ({"members": 2}, "members 3, not 2"), ({"steps": 2}, "steps 3, not 2")],
)
def test_results_of_two_settings_do_not_mix(study, tmp_path, change, said):
    case = study.cases[0]
    shutil.copytree(study.out / case, tmp_path / case)
    with pytest.raises(UsageError, match=rf"\[{case}\] case.json: was made with {said}. Fix: use --overwrite"):
        study.again(tmp_path, one=True, **change)
    assert images_in(tmp_path / case) == images_in(study.out / case)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"case": '])
def test_a_broken_case_json_counts_as_unfinished(study, tmp_path, content):
    case = study.cases[0]
    (tmp_path / case).mkdir()
    (tmp_path / case / "case.json").write_text(content)
    study.again(tmp_path, one=True, members=1, steps=1)
    assert report_of(tmp_path / case)["case"] == case


def test_members_are_saved_and_average_to_the_probability(study, tmp_path):
    case = study.cases[0]
    study.again(tmp_path, one=True, save_members=True)
    paths = sorted((tmp_path / case / "members").iterdir())
    assert [path.name for path in paths] == ["00.nii.gz", "01.nii.gz", "02.nii.gz"]
    members = np.stack([read(path).voxels for path in paths])
    np.testing.assert_allclose(members.mean(0), read(tmp_path / case / "probability.nii.gz").voxels, atol=1e-6)
    np.testing.assert_allclose(members.var(0), read(tmp_path / case / "variance_between.nii.gz").voxels, atol=1e-5)
    decided = [tmp_path / case / "member_masks" / path.name for path in paths]
    masks = np.stack([read(path).voxels for path in decided])  # cut at surfaces of their own, not at one half
    assert set(np.unique(masks)) == {0, 1} and (masks != (members > 0.5)).any()
    likely = (mean := members.mean(0)) > np.median(mean[mean > 0])  # the likelier, the oftener inside
    assert masks[:, likely].mean() > masks[:, ~likely & (mean > 0)].mean() + 0.1 and not masks[:, mean == 0].any()
    votes = masks.sum(0)  # each pair shares c (c - 1) / 2 voxels, and holds 2 c in all
    agreement = report_of(study.out / case)["agreement"]["whole_tumour"]
    assert agreement == pytest.approx((votes * (votes - 1)).sum() / (2 * votes.sum()), abs=1e-4)
    whole = {name: content for name, content in images_in(tmp_path / case).items() if "/" not in name}
    assert whole == images_in(study.out / case)  # saving them changes no byte
    study.again(tmp_path, one=True, overwrite=True, members=2, steps=1, save_members=True)
    assert len(list((tmp_path / case / "members").iterdir())) == 2  # those of the last time are gone
    study.again(tmp_path, one=True, overwrite=True, members=1, steps=1)
    assert not list(tmp_path.glob("*/members/*")) and not list(tmp_path.glob("*/member_masks/*"))


def test_a_bad_case_stops_the_others_unless_asked_to_keep_going(study, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    bad, good = study.cases
    for case in study.cases:
        shutil.copytree(study.data / case, tmp_path / "in" / case)
    flair = tmp_path / "in" / bad / "flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:-100])
    table = write_rows(tmp_path / "in" / "cases.csv", [r for r in rows_of(study.table) if r["split"] == "test"])
    quick = {"data": table, "members": 1, "steps": 1}
    with pytest.raises(ImageError, match=rf"\[{bad}/flair\] flair.nii.gz"):
        study.again(tmp_path / "stops", **quick)
    assert not (tmp_path / "stops" / good).exists()
    with caplog.at_level(logging.WARNING, "medseg_diff"), pytest.raises(ImageError, match=bad):
        study.again(tmp_path / "goes", keep_going=True, **quick)
    assert (tmp_path / "goes" / good / "case.json").is_file()
    assert not (tmp_path / "goes" / bad / "case.json").exists()
    assert f"[{bad}/flair]" in caplog.text


def test_a_missing_channel_is_refused(study, tmp_path):
    shutil.copytree(study.data / study.cases[0], tmp_path / "patient")
    (tmp_path / "patient" / "flair.nii.gz").unlink()
    with pytest.raises(ImageError, match=r"\[patient\] flair not found .*Fix: .*choose a model for other channels"):
        segment([str(tmp_path / "patient")], out=tmp_path / "out", model=study.model, device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "which", ["weights/best.safetensors", "recipe.yaml", "calibration.json", "SHA256SUMS", "run.json"]
)
def test_a_damaged_model_is_refused(study, tmp_path, which):
    shutil.copytree(study.model, tmp_path / "model")
    path = tmp_path / "model" / which
    content = bytearray(path.read_bytes())
    content[content.find(b"weights/best") if which == "SHA256SUMS" else len(content) // 2] ^= 1
    path.write_bytes(content if which != "run.json" else b"{")
    with pytest.raises(CheckpointError, match="model") as caught:
        segment([str(study.data / study.cases[0])], out=tmp_path / "out", model=tmp_path / "model", device="cpu")
    assert caught.value.exit_code == 4 and str(tmp_path) not in caught.value.line
    assert not (tmp_path / "out").exists()


def test_weights_of_another_recipe_are_refused_even_with_their_checksum(study, tmp_path):
    shutil.copytree(study.model, tmp_path / "model")
    run = Run(tmp_path / "model")
    run.recipe_file.write_text(run.recipe_file.read_text().replace("width: 16", "width: 32"))
    run.seal()
    with pytest.raises(CheckpointError, match="does not fit the recipe's network"):
        segment([str(study.data / study.cases[0])], out=tmp_path / "out", model=run.folder, device="cpu")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "one of --volume and --data is needed"),
        ({"volumes": ["a"], "data": Path("b.csv")}, "one of --volume and --data is needed"),
        ({"volumes": ["a"], "split": "test"}, "--split is for the rows of a table"),
        ({"volumes": ["a"], "data_root": Path("b")}, "--data-root is for the rows of a table"),
        ({"data": Path("b.csv"), "channels": ["flair"]}, "--channels is for --volume"),
    ],
)
def test_what_to_segment_must_be_said_once(tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        segment(out=tmp_path / "out", **options)


def test_a_shard_or_split_that_is_not_there(study, tmp_path):
    with pytest.raises(UsageError, match="shard 3 of 2 does not exist"):
        study.again(tmp_path, shard=(3, 2))
    with pytest.raises(UsageError, match="no case has split `holdout`"):
        study.again(tmp_path, data=study.table, split="holdout")


def test_without_a_model_the_newest_run_is_used_and_named(study, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    with caplog.at_level(logging.INFO, "medseg_diff"):
        segment(
            [str(study.data / study.cases[0])],
            out=tmp_path,
            runs=study.model.parent,
            members=1,
            steps=1,
            device="cpu",
        )
    assert "model tiny (quick-phantom): 1 step × 1 member" in caplog.text
    assert "took t1.nii.gz, t1ce.nii.gz, t2.nii.gz, flair.nii.gz from folder" in caplog.text


def test_several_regions_nest_in_one_label_map(study, tmp_path):
    """Two regions: maps carry the region's name, the mask holds the labels that the regions are made of."""
    import torch

    from medseg_diff.recipes.segmentation import SegmentationRecipe
    from medseg_diff.settings import parse_settings, read_yaml, write_yaml
    from medseg_diff.training.weights import save_weights

    shutil.copytree(study.model, tmp_path / "model")
    run = Run(tmp_path / "model")
    recipe = parse_settings(SegmentationRecipe, read_yaml(run.recipe_file), source="recipe.yaml")
    recipe = recipe.but(regions={"whole": [1, 2, 4], "core": [1, 4]})
    run.recipe_file.write_text(write_yaml(recipe))
    network = recipe.build_denoiser().network
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    save_weights(network, run.weights("best"))
    run.seal()
    (folder,) = segment(
        [str(study.data / study.cases[0])],
        out=tmp_path / "out",
        model=run.folder,
        members=2,
        steps=1,
        save_members=True,
        device="cpu",
    )
    mask = read(folder / "mask.nii.gz").voxels
    whole, core = (read(folder / f"probability_{region}.nii.gz").voxels for region in ("whole", "core"))
    assert set(np.unique(mask)) == {0, 1, 2}  # 2 is oedema, outside the core; 1 and 4 in it are not told apart
    assert (whole[mask >= 1] > 0.5).all() and (core[mask == 1] > 0.5).all()
    assert {path.name for path in (folder / "members").iterdir()} == {
        f"{member:02d}_{region}.nii.gz" for member in range(2) for region in ("whole", "core")
    }
    assert set(report_of(folder)["volume_ml"]) == {"whole", "core"}
