"""Who is learned from and who is validated on, and that held-out slices are never learned from."""

import csv
from pathlib import Path

import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_volume
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import ImageError, ManifestError, UsageError
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.settings import parse_settings, read_yaml
from medseg_diff.tasks.train.labelled_study import prepare_labelled_study
from medseg_diff.tasks.train.study import prepare_study, with_splits

SMALL = ("view.size=[32,32]", "validation.slices=8", "fewest_voxels=1")
SPLITS = ("train", "train", "val", "test")


def rows_of(table, splits):
    """The first rows of a table, with these splits."""
    with table.open(newline="") as file:
        return [row | {"split": split} for row, split in zip(csv.DictReader(file), splits, strict=False)]


def write_rows(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def manifest_of(phantoms, tmp_path, splits):
    """The first cases of the phantoms with these splits."""
    return read_manifest(write_rows(tmp_path / "some.csv", rows_of(phantoms, splits)), data_root=phantoms.parent)


def test_splits_that_are_given_are_kept(phantoms, tmp_path):
    manifest = with_splits(manifest_of(phantoms, tmp_path, ["train", "val", "test"]))
    assert [case.split for case in manifest.cases] == ["train", "val", "test"] and manifest.of("val")
    assert not with_splits(manifest_of(phantoms, tmp_path, ["train", "train"])).of("val")
    with pytest.raises(ManifestError, match="no case has split `train`"):
        with_splits(manifest_of(phantoms, tmp_path, ["val", "test"]))


def test_without_splits_patients_are_held_out_where_there_are_enough(phantoms, tmp_path):
    manifest = with_splits(manifest_of(phantoms, tmp_path, [""] * 5))
    assert len(manifest.of("val")) == 1 and len(manifest.of("train")) == 4
    few = with_splits(manifest_of(phantoms, tmp_path, [""] * 3))
    assert not few.of("val") and len(few.cases) == 3


def test_with_few_patients_a_tenth_of_the_slices_is_held_out(trained, tmp_path):
    recipe = parse_settings(SegmentationRecipe, read_yaml(trained.folder / "recipe.yaml"), source="recipe.yaml")
    manifest = with_splits(manifest_of(trained.table, tmp_path, [""] * 2))
    cache = trained.runs / "cache"
    study = prepare_study(manifest, recipe, cache=cache)
    total, held = len(study.training) + len(study.held), study.validation(1000)
    assert study.cases == 2 and 0 < len(held) == len(study.held) <= total / 10 + 1
    assert held.image.shape[1:] == (4, 32, 32) and held.mask.shape[1:] == (1, 32, 32)
    whole = prepare_study(manifest_of(trained.table, tmp_path, ["train", "val"]), recipe, cache=cache)
    assert len(whole.training) + len(whole.held) == total


def test_test_cases_are_never_learned_from(trained, tmp_path):
    recipe = parse_settings(SegmentationRecipe, read_yaml(trained.folder / "recipe.yaml"), source="recipe.yaml")
    manifest = manifest_of(trained.table, tmp_path, ["train", "test", "val"])
    study = prepare_study(manifest, recipe, cache=trained.runs / "cache")
    assert [case.name for case in study.training.cases] == ["phantom_0000"]


def study_of(phantoms, cache, rows, *overrides):
    manifest = read_manifest(write_rows(cache / "cases.csv", rows), data_root=phantoms.parent)
    return prepare_labelled_study(
        manifest,
        load_recipe("quick/phantom", task="anomaly", overrides=(*SMALL, *overrides)),
        cache=cache,
    )


def test_cases_without_reference_are_healthy_by_their_word_or_teach_the_denoiser_only(phantoms, tmp_path):
    first, second, val, _ = rows_of(phantoms, SPLITS)
    bare = {key: value for key, value in second.items() if not key.startswith("seg")}
    healthy = study_of(phantoms, tmp_path, [first, bare | {"label": "healthy"}, val])
    unknown = study_of(phantoms, tmp_path, [first, bare | {"label": "diseased"}, val])
    assert len(healthy.training) == len(unknown.training)
    counts = [[len(places) for places in study.classified.places] for study in (healthy, unknown)]
    assert counts[0][1] == counts[1][1] and counts[0][0] > counts[1][0]
    assert (unknown.training.classes == -1).sum() == counts[0][0] - counts[1][0]


def test_validation_is_half_healthy_half_diseased_and_held_out(phantoms, tmp_path):
    rows = rows_of(phantoms, SPLITS)
    study = study_of(phantoms, tmp_path, rows)
    assert study.label.tolist() == [0] * 4 + [1] * 4 and study.of_both_kinds
    assert study.validation.image.shape == (8, 4, 32, 32)
    held = study_of(phantoms, tmp_path, rows[:2])
    assert 0.05 < len(study.training) / len(held.training) - 1 < 0.2  # one in ten is left out


def test_which_labels_are_a_disease_is_the_recipes_word(phantoms, tmp_path):
    some = study_of(phantoms, tmp_path, rows_of(phantoms, SPLITS), "diseased=[4]")
    every = study_of(phantoms, tmp_path, rows_of(phantoms, SPLITS))
    assert 0 < len(some.classified.places[1]) < len(every.classified.places[1])
    with pytest.raises(UsageError, match="no training slice is diseased"):
        study_of(phantoms, tmp_path, rows_of(phantoms, SPLITS), "diseased=[77]")


def test_labels_that_take_most_of_the_brain_are_no_lesion(phantoms, tmp_path):
    rows = rows_of(phantoms, SPLITS)
    brain = read_volume(phantoms.parent / rows[1]["t1"])
    tissue = tmp_path / "tissue.nii.gz"
    write_volume(tissue, (brain.voxels > 0).astype(np.uint8), brain.affine)
    rows = [
        {key: cell and str(phantoms.parent / cell) if cell.endswith(".gz") else cell for key, cell in row.items()}
        for row in rows
    ]
    rows[1]["seg"] = str(tissue)
    manifest = read_manifest(write_rows(tmp_path / "some.csv", rows), data_root=Path("/"))
    recipe = load_recipe("quick/phantom", task="anomaly", overrides=list(SMALL))
    with pytest.raises(ImageError, match="marks 100% of the brain as lesion, with label 1: no lesion"):
        prepare_labelled_study(manifest, recipe, cache=tmp_path / "cache")


def test_what_is_doubtful_is_said_of_cases_from_the_cache_too(trained, tmp_path, caplog):
    recipe = parse_settings(SegmentationRecipe, read_yaml(trained.folder / "recipe.yaml"), source="recipe.yaml")
    rows = rows_of(trained.table, ("train", "val"))
    for said in ([], ["[phantom_0001] seg marks a lesion, but the table calls the case healthy"]):
        manifest = read_manifest(write_rows(tmp_path / "cases.csv", rows), data_root=trained.table.parent)
        for _ in range(2):
            caplog.clear()
            prepare_study(manifest, recipe, cache=tmp_path / "cache")
            assert [record.message for record in caplog.records if "] seg marks" in record.message] == said
        rows[1]["label"] = "healthy"
