"""`segment --start-from`: whose mask a case starts from, what its labels mean, and when a result is complete."""

import csv
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import reoriented
from medseg_diff.data.reading import read_labels, read_map
from medseg_diff.diffusion import Denoiser
from medseg_diff.diffusion.denoiser import Prediction
from medseg_diff.errors import ImageError, Problems, UsageError
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.evaluate import evaluate

FEW = {"members": 2, "steps": 2, "device": "cpu"}


def images_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.nii.gz")}


def report_of(folder):
    return json.loads((folder / "case.json").read_text())


@pytest.fixture(scope="module")
def study(steep, tmp_path_factory):
    """The two test phantoms, their references as the masks of another program, and what is made of these."""

    class Study:
        model, table, data = steep.folder, steep.table, steep.table.parent
        masks = tmp_path_factory.mktemp("given") / "nnunet"
        out = tmp_path_factory.mktemp("refined") / "out"
        with table.open(newline="") as file:
            cases = tuple(row["case"] for row in csv.DictReader(file) if row["split"] == "test")

        def reference(self, case):
            return read_labels(self.data / case / "seg.nii.gz")

        def give(self, folder, change=lambda voxels: voxels, name="{}.nii.gz", cases=cases):
            for case in cases:
                seg = self.reference(case)
                write_volume(folder / name.format(case), change(seg.voxels).astype(np.uint8), seg.affine)
            return folder

        def again(self, out, **options):
            given = {"data": self.table, "split": "test", "model": self.model, "start_from": self.masks} | FEW
            return segment(out=out, **given | options)

    found = Study()
    found.give(found.masks)
    assert found.again(found.out) == [found.out / case for case in found.cases]
    return found


def test_case_json_tells_what_it_started_from_and_no_path(study):
    for case in study.cases:
        report, text = report_of(study.out / case), (study.out / case / "case.json").read_text()
        assert (report["start_from"], report["strength"], report["steps"]) == ("nnunet", 0.5, 2)
        assert report["start_labels"] == {"whole_tumour": [1, 2, 4]}
        assert report["start_sha256"] == hashlib.sha256((study.masks / f"{case}.nii.gz").read_bytes()).hexdigest()
        assert str(study.masks.parent) not in text
        volume = report["volume_ml"]["whole_tumour"]
        assert volume["level"] is None and volume["members"]["high"] >= volume["members"]["low"]


def test_without_it_nothing_is_said_and_bytes_differ(study, tmp_path):
    (folder, _) = study.again(tmp_path, start_from=None)
    assert report_of(folder)["strength"] is None and "start_sha256" not in report_of(folder)
    assert images_in(folder) != images_in(study.out / study.cases[0])


@pytest.fixture
def believing(monkeypatch):
    """A network that takes what it sees for the clean mask."""
    monkeypatch.setattr(Denoiser, "forward", lambda self, x_t, t, condition: Prediction(x_t, torch.zeros_like(x_t)))


def test_hardly_noised_it_comes_back_on_the_scans_own_grid(study, tmp_path, believing):
    """The whole way: read, prepared, cut, noised to t = 1, joined, brought back, also where the mask's axes are others."""
    for case in study.cases:
        turned = reoriented(study.reference(case), "SLA")
        write_volume(tmp_path / "turned" / case / "mask.nii.gz", turned.voxels, turned.affine)
    expected = study.again(tmp_path / "a", strength=0.001, steps=1)
    found = study.again(tmp_path / "b", strength=0.001, steps=1, start_from=tmp_path / "turned")
    for case, one, other in zip(study.cases, expected, found, strict=True):
        probability = read_map(one / "probability.nii.gz").voxels  # of the mask small components are removed
        np.testing.assert_array_equal(probability > 0.5, study.reference(case).voxels > 0)
        assert images_in(one) == images_in(other)
        assert any("start: reoriented from SLA" in warning for warning in report_of(other)["warnings"])
    metrics = evaluate(tmp_path / "a", study.table, split="test", figure=False, mlflow=False)["metrics"]
    assert metrics["dice_raw"]["value"] == 1


def test_bytes_do_not_depend_on_order_shards_or_members_at_once(study, tmp_path):
    expected = images_in(study.out)
    for number in (2, 1):
        study.again(tmp_path / "shards", shard=(number, 2), members_at_once=1)
    assert images_in(tmp_path / "shards") == expected


def test_a_complete_case_is_skipped_and_one_whose_mask_changed_is_done_again(study, tmp_path, caplog):
    out, masks = shutil.copytree(study.out, tmp_path / "out"), shutil.copytree(study.masks, tmp_path / "masks")
    first, second = (out / case / "case.json" for case in study.cases)
    for facts in (first, second):
        os.utime(facts, ns=(1, 1))
    study.again(out, start_from=masks)  # the folder's name is no matter
    assert {first.stat().st_mtime_ns, second.stat().st_mtime_ns} == {1}
    study.give(masks, np.flipud, cases=study.cases[:1])
    with caplog.at_level(logging.INFO):
        study.again(out, start_from=masks)
    assert f"[{study.cases[0]}] its start_sha256 changed: redoing the case" in caplog.text
    assert second.stat().st_mtime_ns == 1 != first.stat().st_mtime_ns
    assert images_in(first.parent) != images_in(study.out / study.cases[0])


@pytest.mark.parametrize(
    ("change", "said"),
    [({"strength": 0.25}, "strength 0.5, not 0.25"), ({"start_from": None}, "strength 0.5, not None")],
)
def test_results_of_two_strengths_do_not_mix(study, tmp_path, change, said):
    out = shutil.copytree(study.out, tmp_path / "out")
    with pytest.raises(UsageError, match=f"case.json: was made with {said}. Fix: use --overwrite"):
        study.again(out, **change)


def test_a_case_without_a_mask_is_refused_before_any_is_begun(study, tmp_path):
    masks = study.give(tmp_path / "masks", cases=study.cases[:1])
    missing = study.cases[1]
    with pytest.raises(
        ImageError, match=rf"\[{missing}\] has no mask among those given. Fix: add {missing}.nii.gz to masks, or"
    ) as caught:
        study.again(tmp_path / "out", start_from=masks)
    assert caught.value.exit_code == 3 and not list((tmp_path / "out").glob("*"))
    with pytest.raises(ImageError, match="has no mask among those given"):
        study.again(tmp_path / "out", start_from=masks, keep_going=True)
    assert f"{missing},ImageError,3," in (tmp_path / "out" / "failures.csv").read_text()
    assert images_in(tmp_path / "out" / study.cases[0]) == images_in(study.out / study.cases[0])


def one_case(study, masks, out, **options):
    return study.again(out, start_from=masks, shard=(1, 2), **options)[0]


def test_labels_that_are_in_no_region_are_refused(study, tmp_path):
    case = study.cases[0]
    masks = study.give(tmp_path / "masks", lambda voxels: np.where(voxels, 7, 0), cases=(case,))
    said = rf"\[{case}/start\] holds the label 7, which is in no region: regions of recipe quick-phantom: whole_tumour"
    with pytest.raises(ImageError, match=said) as caught:
        one_case(study, masks, tmp_path / "out")
    assert caught.value.exit_code == 3 and "name its regions in a dataset.json" in caught.value.line


def test_a_dataset_json_says_what_they_mean(study, tmp_path):
    masks = study.give(tmp_path / "masks", lambda voxels: np.where(voxels, 7, 0))
    (masks / "dataset.json").write_text('{"labels": {"background": 0, "Whole Tumor": 7}}')
    folder = one_case(study, masks, tmp_path / "out")
    assert images_in(folder) == images_in(study.out / study.cases[0])
    assert report_of(folder)["start_labels"] == {"whole_tumour": [7]}


def test_a_mask_on_another_grid_is_refused_or_resampled_as_a_reference_is(study, tmp_path):
    case = study.cases[0]
    seg = study.reference(case)
    affine = seg.affine.copy()
    affine[:3, :3] *= 2
    write_volume(tmp_path / "masks" / f"{case}.nii.gz", seg.voxels[::2, ::2, ::2].astype(np.uint8), affine)
    with pytest.raises(ImageError, match=rf"\[{case}/start\] not on the grid of t1: .* Fix: pass --resample-to t1"):
        one_case(study, tmp_path / "masks", tmp_path / "out")
    folder = one_case(study, tmp_path / "masks", tmp_path / "out", resample_to="t1")
    assert any("start: resampled onto the grid of" in warning for warning in report_of(folder)["warnings"])


def test_an_empty_mask_is_said_and_one_without_background_refused(study, tmp_path):
    empty = study.give(tmp_path / "empty", np.zeros_like)
    assert "start is empty: no voxel is marked" in report_of(one_case(study, empty, tmp_path / "out"))["warnings"]
    with pytest.raises(ImageError, match="every voxel has a label"):
        one_case(study, study.give(tmp_path / "full", np.ones_like), tmp_path / "full_out")
    damaged = shutil.copytree(study.masks, tmp_path / "damaged")
    (damaged / f"{study.cases[0]}.nii.gz").write_bytes(b"no image")
    with pytest.raises(ImageError, match=rf"\[{study.cases[0]}/start\]"):
        one_case(study, damaged, tmp_path / "damaged_out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strength": 0.5, "start_from": None}, "--strength says how far the masks of --start-from are noised"),
        ({"strength": 0.0}, "strength 0 is out of range"),
        ({"strength": 1.5}, "strength 1.5 is out of range"),
        ({"strength": 0.001, "steps": 2}, "2 steps do not fit the 1 times below strength 0.001"),
        ({"start_from": Path("nowhere")}, "--start-from nowhere is not a folder of masks"),
        ({"guarantee": 0.1}, "no measurements exist for samples that start from given masks|measured on 0 patients"),
    ],
)
def test_words_that_make_no_sense_are_exit_2(study, tmp_path, options, said):
    with pytest.raises(UsageError, match=said) as caught:
        study.again(tmp_path / "out", **options)
    assert caught.value.exit_code == 2 and not list((tmp_path / "out").glob("*/*"))


def test_every_case_is_named_that_two_files_may_be_the_mask_of(study, tmp_path):
    masks = study.give(study.give(tmp_path / "masks"), name="{}_seg.nii.gz")
    with pytest.raises(Problems) as caught:
        study.again(tmp_path / "out", start_from=masks)
    assert [each.case for each in caught.value.problems] == list(study.cases)


def test_pseudonyms_hide_whose_mask_it_was(study, tmp_path):
    case = study.cases[0]
    masks = study.give(tmp_path / f"of_{case}", np.zeros_like, name="{}_seg.nii.gz", cases=(case,))
    options = {"pseudonymise": True, "keep_going": True, "runs": tmp_path / "runs", "start_from": masks}
    with pytest.raises(ImageError, match="has no mask among those given"):
        study.again(tmp_path / "out", **options)
    written = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".json", ".csv")]
    assert len(written) == 3 and not [path for path in written if "phantom_" in path.read_text()]


def test_a_strength_is_a_share_of_the_schedule():
    recipe = load_recipe("quick/phantom", task="segment")
    assert recipe.plan(steps=3).times == recipe.plan(steps=3, strength=1.0).times == [1000, 667, 333, 0]
    assert recipe.plan(steps=2, strength=0.3).times == [300, 150, 0]
