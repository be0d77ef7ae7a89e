"""Masks of other programs: where they lie, which regions are measured, and what of it is refused."""

import json
import logging

import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.errors import ImageError, MedsegError, UsageError
from medseg_diff.tasks.evaluate import evaluate, evaluate_both
from tests.made import LPS, TUMOUR, Study, ball

CORE = ball((12, 11, 8), 1.5)
OURS = np.where(CORE, 1, 2) * TUMOUR  # 1 is the core, 2 what is around it
THEIRS = np.where(CORE, 2, 1) * TUMOUR  # the other way round, as nnU-Net's conversion of BraTS numbers them
NAMES = {"background": 0, "whole tumor": [1, 2], "Tumor Core": 2}


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path).add("a", seg=OURS).add("b", seg=OURS)


def write(study, name, mask, folder="theirs", affine=LPS):
    write_volume(study.folder / folder / name, mask.astype(np.uint8), affine)
    return study.folder / folder


def stated(folder, labels, name="dataset.json"):
    (folder / name).write_text(json.dumps({"labels": labels, "channel_names": {"0": "FLAIR"}}))


def measured(folder, study, **options):
    return evaluate(folder, study.table, figure=False, **options)


def dice_of(metrics):
    return {
        key.removesuffix("dice").rstrip("_"): each["value"] for key, each in metrics.items() if key.endswith("dice")
    }


PLACES = {
    "nnU-Net": "{}.nii.gz",
    "with a word": "{}_seg.nii.gz",
    "not zipped": "{}.nii",
    "a folder each": "{}/mask.nii.gz",
    "MONAI": "{}/{}_trans.nii.gz",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_masks_are_found_by_the_names_of_the_cases(study, place, caplog):
    for name in "ab":
        folder = write(study, place.replace("{}", name), OURS)
    (folder / "plans.json").write_text("{}")
    (folder / "._a.nii.gz").write_bytes(b"of macOS")
    with caplog.at_level(logging.INFO):
        summary = measured(folder, study)
    found = summary["metrics"]
    assert found["label_1_dice"]["value"] == found["label_2_dice"]["value"] == 1 and summary["cases"] == 2
    assert {found[f"label_1_{name}"]["value"] for name in ("ece", "aurc", "ged2", "dice_raw", "coverage90")} == {None}
    said = "took 2 label maps of theirs, each label of the references separately: label_1 (label 1), label_2 (label 2)"
    assert said in caplog.text
    assert summary["regions"]["label_2"] == {"labels": [2], "reference_labels": [2]}
    assert (folder / "metrics.json").is_file() and (folder / "per_case.csv").is_file()


def test_the_masks_of_a_folder_are_those_called_mask(study):
    for name in "ab":
        write(study, f"{name}/mask.nii.gz", OURS)
        write_volume(study.folder / "theirs" / name / "probability_label_1.nii.gz", np.float32(0.8 * CORE), LPS)
    found = measured(study.folder / "theirs", study)["metrics"]
    assert found["label_1_dice_raw"]["value"] == 1 and found["label_2_dice_raw"]["value"] is None
    write_volume(study.folder / "theirs" / "a" / "probability_label_1.nii.gz", np.float32(8 * CORE), LPS)
    with pytest.raises(ImageError, match=r"outside 0 to 1. Fix: make it again, or remove it"):
        measured(study.folder / "theirs", study)


def test_the_regions_of_a_dataset_json_are_taken(study, caplog):
    for name in "ab":
        folder = write(study, f"fold_0/validation/{name}.nii.gz", OURS)
    stated(folder, {"background": "0", "1": "necrosis", "2": "edema", "ignore": 3})
    with caplog.at_level(logging.INFO):
        assert dice_of(measured(folder / "fold_0" / "validation", study)["metrics"]) == {"necrosis": 1, "edema": 1}
    assert "regions of dataset.json of theirs: necrosis (label 1), edema (label 2)" in caplog.text
    stated(folder, {"background": 0, "edema": 1, "whole": [1, 2], "Whole ": [2]})
    with pytest.raises(UsageError, match="two of its labels are called whole"):
        measured(folder / "fold_0" / "validation", study)


def test_a_recipe_says_what_the_references_hold_and_dataset_json_what_the_masks_do(study, tmp_path, caplog):
    for name in "ab":
        folder = write(study, f"{name}.nii.gz", THEIRS)
    recipe = tmp_path / "two.yaml"
    recipe.write_text(RECIPE)
    with caplog.at_level(logging.WARNING):
        wrong = measured(folder, study, config=str(recipe))["metrics"]
    assert "the labels 1 and 2 look interchanged" in caplog.text
    caplog.clear()
    assert wrong["whole_tumour_dice"]["value"] == 1 and wrong["tumour_core_dice"]["value"] == 0
    stated(folder, NAMES)
    with caplog.at_level(logging.INFO):
        right = measured(folder, study, config=str(recipe))
    assert dice_of(right["metrics"]) == {"whole_tumour": 1, "tumour_core": 1}
    assert right["regions"]["tumour_core"] == {"labels": [2], "reference_labels": [1]}
    assert "tumour_core (label 2; in the references 1)" in caplog.text and "interchanged" not in caplog.text
    stated(folder, {"background": 0, "TC": 2})
    with pytest.raises(UsageError, match=r"names the labels of tumour_core, but not of whole_tumour"):
        measured(folder, study, config=str(recipe))


RECIPE = """
task: segment
paper: none
channels: [flair]
schedule: {kind: cosine, length: 1000}
regions: {whole_tumour: [1, 2], tumour_core: [1]}
"""


def test_ours_and_theirs_are_compared_by_our_regions(study, caplog):
    regions = {"whole_tumour": [1, 2], "tumour_core": [1]}
    for name, radius in (("a", 2.5), ("b", 2)):
        study.predict(name, OURS * ball((12, 11, 8), radius), regions=regions)
        folder = write(study, f"{name}.nii.gz", THEIRS)
    stated(folder, NAMES)
    with caplog.at_level(logging.INFO):
        for pair in ((study.predictions, folder), (folder, study.predictions)):
            _, found = evaluate_both(*pair, study.table, figure=False)
            assert found["regions"] == ["whole_tumour", "tumour_core"]
            better = found["metrics"]["whole_tumour_dice"]["better"]
            assert (found["first"], found["second"])[better == "second"] == "theirs"
            assert found["metrics"]["tumour_core_dice"]["difference"] == 0
    assert "regions of out, their labels in the masks by dataset.json of theirs" in caplog.text
    with pytest.raises(UsageError, match="already state their regions"):
        measured(study.predictions, study, config="regions")
    with pytest.raises(UsageError, match="already state their regions"):
        evaluate_both(study.predictions, study.predictions, study.table, config="regions")
    study.score("a", TUMOUR * 1.0)
    with pytest.raises(UsageError, match="theirs holds results of `segment`, out of `anomaly`"):
        evaluate_both(folder, study.predictions, study.table)


def test_cases_without_a_mask_are_named_and_may_be_left_out(study, caplog):
    folder = write(study, "a.nii.gz", OURS)
    write(study, "of_nobody.nii.gz", OURS)
    with pytest.raises(UsageError, match=r"no complete result for 1 of 2 cases: b. Fix: .*--allow-missing"):
        measured(folder, study)
    with caplog.at_level(logging.INFO):
        summary = measured(folder, study, allow_missing=True)
    assert (summary["cases"], summary["missing"]) == (1, ["b"])
    assert "no complete result for 1 of 2 cases: b; they are left out" in caplog.text
    assert "these belong to no case of brains.csv: of_nobody" in caplog.text
    (folder / "a.nii.gz").unlink()
    with pytest.raises(UsageError, match=r"no case of brains.csv has a result in theirs \(there: of_nobody\)"):
        measured(folder, study, allow_missing=True)


def test_masks_that_are_not_clear_are_refused_before_anything_is_measured(study, tmp_path):
    folder = write(study, "a.nii.gz", OURS)
    write(study, "a.nii", OURS)
    write_volume(tmp_path / "elsewhere.nii.gz", OURS.astype(np.uint8), LPS)
    (folder / "b.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    with pytest.raises(MedsegError) as caught:
        measured(folder, study)
    assert len(caught.value.problems) == 2
    assert "[a] two files could be its mask. Fix: keep one of a.nii and a.nii.gz, or" in caught.value.lines[0]
    assert "[b] b.nii.gz: points outside its folder" in caught.value.lines[1]


def test_a_mask_on_another_grid_is_refused_with_a_remedy_and_turned_axes_are_not(study):
    moved = LPS.copy()
    moved[0, 3] = 5.0
    write(study, "a.nii.gz", OURS, affine=moved)
    folder = write(study, "b.nii.gz", OURS)
    with pytest.raises(ImageError, match=r"not on the grid of the result.*Fix: resample the mask onto the grid"):
        measured(folder, study)
    flipped = np.diag([2.0, -2.0, 3.0, 1.0])
    flipped[0, 3] = -2.0 * (OURS.shape[0] - 1)
    write(study, "a.nii.gz", OURS[::-1], affine=flipped)
    assert measured(folder, study)["metrics"]["label_1_dice"]["value"] == 1


def test_labels_of_the_masks_that_no_region_counts_are_told(study, caplog):
    for name in "ab":
        folder = write(study, f"{name}.nii.gz", np.where(CORE, 4, 2) * TUMOUR)
    with caplog.at_level(logging.WARNING):
        measured(folder, study)
    assert "2 of 2 masks hold the label 4, which belongs to no region: a, b" in caplog.text


def test_more_labels_than_can_be_measured_one_by_one_are_refused(tmp_path):
    many = (np.arange(OURS.size).reshape(OURS.shape) % 60 * TUMOUR).astype(int)
    study = Study(tmp_path).add("a", seg=many)
    folder = write(study, "a.nii.gz", OURS)
    assert len(np.unique(many)) > 31
    with pytest.raises(UsageError, match=r"there are \d+ regions to measure; 1 to 30 are supported.*--config"):
        measured(folder, study)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_command_says_what_it_wrote_and_on_a_terminal_what_is_next(study, capsys, monkeypatch, terminal):
    from medseg_diff.cli.review import evaluate as command

    for name in "ab":
        folder = write(study, f"{name}.nii.gz", OURS)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    command(folder, study.table, figure=False)
    lines = capsys.readouterr().out.splitlines()
    assert f"wrote metrics.json, per_case.csv, per_slice.csv in {folder}" in lines
    assert any(line.startswith("next: medseg-diff evaluate") for line in lines) == terminal
    command(folder, study.table, out=study.folder / "scores", compare=folder, figure=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == (
        f"wrote metrics.json, per_case.csv, per_slice.csv, comparison.json in {study.folder / 'scores'}"
    )
