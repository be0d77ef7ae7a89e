"""Training a tiny system that paints masks, and painting: whose grid it is on, what lies beside it, whose bytes they are."""

import csv
import json
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from medseg_diff import report, synthesise, train_synth
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import ImageError, ManifestError, Problems, UsageError
from medseg_diff.tasks.apply.painting import painted, read
from medseg_diff.tasks.apply.synthesis_system import open_synthesis
from medseg_diff.tasks.options import Model
from medseg_diff.tasks.synthesis_options import SynthesisOptions
from tests.stories.test_synthesis import digests

TINY = (
    "channels=[t1, flair]",
    "preparation.spacing_mm=[8.0,8.0,8.0]",
    "view.size=[24,24]",
    "network.width=8",
    "network.multipliers=[1,2]",
    "network.groups=4",
    "network.hidden=8",
    "training.steps=120",
    "training.batch=8",
    "training.learning_rate=3.0e-3",
    "training.ema=0.9",
    "training.precision=fp32",
    "training.validate_every=120",
    "validation.images=4",
    "validation.drawn=1",
    "sampling.steps=4",
    "sampling.network_batch=8",
)


def train(table, out, *overrides):
    known = {"runs": out.parent / "runs", "device": "cpu", "mlflow": False}
    return train_synth(table, config="quick/mask_to_mr", overrides=[*TINY, *overrides], out=out, **known)


@pytest.fixture(scope="module")
def painter(phantoms, tmp_path_factory):
    return train(phantoms, tmp_path_factory.mktemp("painter") / "tiny")


@pytest.fixture(scope="module")
def two(phantoms):
    """The first two cases as a table of their own, one in the split test."""
    return table_of(phantoms, "two.csv", lambda row, number: row | {"split": ("train", "test")[number]}, 2)


def table_of(phantoms, name, change, count):
    rows = [change(row, number) for number, row in enumerate(list(csv.DictReader(phantoms.open()))[:count])]
    table = phantoms.parent / name
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def paint(painter, masks, out, **options):
    return synthesise(out=out, model=painter.folder, masks=masks, device="cpu", **options)


def test_a_scan_lies_on_its_cases_grid_with_the_mask_beside_it(painter, two, tmp_path):
    folders = paint(painter, two, tmp_path, number=2)
    assert [folder.name[-3:] for folder in folders] == ["_00", "_01"] * 2
    for folder, case in zip(folders[::2], read_manifest(two).cases, strict=True):
        own, seg = (nibabel.load(path) for path in (case.images["t1"], case.seg))
        image = nibabel.load(folder / "flair.nii.gz")
        assert image.shape == own.shape and np.allclose(image.affine, own.affine)
        assert np.array_equal(nibabel.load(folder / "seg.nii.gz").get_fdata(), seg.get_fdata())
        values = image.get_fdata()
        assert values.max() > 200 and values.min() == 0 and image.get_data_dtype() == np.int16
        facts = json.loads((folder / "case.json").read_text())
        assert facts["mask_of"] == case.name and facts["inputs"].keys() == {"t1", "flair", "seg"}
    rows = read_manifest(tmp_path / "cases.csv").cases
    assert [(row.patient, row.split) for row in rows[::2]] == [(c.patient, c.split) for c in read_manifest(two).cases]
    assert all(row.seg and set(row.images) == {"t1", "flair"} for row in rows)


def test_painted_scans_have_pages_with_their_labels(painter, two, tmp_path):
    folders = paint(painter, two, tmp_path)
    text = report(tmp_path, mlflow=False).read_text(encoding="utf-8")
    assert "2 synthetic scans" in text and "mask of" in text
    own = (folders[0] / "report.html").read_text(encoding="utf-8")
    assert "painted into the mask of" in own and "label 1" in own and "T1" in own and "FLAIR" in own


def test_a_scan_is_the_same_whatever_else_is_painted(painter, two, tmp_path):
    one, all_of_them = tmp_path / "one", tmp_path / "all"
    (alone,) = paint(painter, two, one, split="test")
    folders = paint(painter, two, all_of_them, number=2)
    assert digests(one).items() <= digests(all_of_them).items()
    before = digests(all_of_them)
    assert len({before[f"{folder.name}/t1.nii.gz"] for folder in folders}) == 4
    shutil.rmtree(folders[0])
    kept = (folders[1] / "case.json").stat().st_mtime_ns
    paint(painter, two, all_of_them, number=2)
    assert digests(all_of_them) == before and (folders[1] / "case.json").stat().st_mtime_ns == kept
    with pytest.raises(UsageError, match="was made with seed"):
        paint(painter, two, one, split="test", seed=1)
    facts = json.loads((alone / "case.json").read_text())
    (alone / "case.json").write_text(json.dumps(facts | {"inputs": facts["inputs"] | {"seg": "0"}}))
    with pytest.raises(UsageError, match="other images"):
        paint(painter, two, one, split="test")


def test_what_is_painted_follows_the_mask(painter, phantoms):
    """With the same noise a lesion is brighter in FLAIR than the brain that lies there without one, and more so than what
    lies around it."""
    system = open_synthesis(Model(model=painter.folder), SynthesisOptions(guidance=1.0), device="cpu")
    changes = []
    for case in read_manifest(phantoms).cases[:4]:
        prepared = read(case, system.recipe).prepared
        lesion = prepared.reference[0] > 0
        healthy = replace(prepared, reference=torch.zeros_like(prepared.reference))
        change = (painted(prepared, system, 0) - painted(healthy, system, 0))[1]
        brain, image = prepared.brain[0], painted(prepared, system, 0)[1]
        assert image[brain].mean() > -0.5 and (image[~brain] == -1).all()  # the outline is the case's
        changes.append((change[lesion].mean(), change[prepared.brain[0] & ~lesion].abs().mean()))
    inside, around = torch.tensor(changes).mean(dim=0).tolist()
    assert inside > 2 * around > 0, (inside, around)


LATENT = "space={kind: latent, passes: 0, autoencoder: {kind: kl, widths: [8], latent: 2, groups: 4}, training: %s}"


def test_volumes_are_painted_as_a_whole_in_a_latent_space_too(phantoms, two, tmp_path):
    few = ("training.steps=2", "training.batch=2", "training.validate_every=2", "validation.images=2")
    latent = LATENT % "{steps: 2, batch: 2, validate_every: 2}"
    run = train(phantoms, tmp_path / "tiny", *few, "view={kind: volume, size: [24, 24, 24]}", latent)
    (folder,) = paint(run, two, tmp_path / "out", split="test")
    (case,) = read_manifest(two).of("test")
    assert nibabel.load(folder / "t1.nii.gz").shape == nibabel.load(case.images["t1"]).shape
    assert json.loads((folder / "case.json").read_text())["autoencoder_sha256"]


@pytest.mark.parametrize("view", [{"kind": "volume", "size": [16, 16, 16]}, {"kind": "axial_slices", "size": [16, 16]}])
def test_a_brain_beyond_the_view_and_labels_of_no_region_are_refused(painter, phantoms, view):
    recipe = open_synthesis(Model(model=painter.folder), SynthesisOptions(), device="cpu").recipe
    case = read_manifest(phantoms).cases[0]
    with pytest.raises(ImageError, match="larger than 16×16"):
        read(case, recipe.but(view=view))
    with pytest.raises(ImageError, match="which no region of the recipe names"):
        read(case, recipe.but(regions={"necrotic": [1]}))


def test_what_cannot_be_painted_is_refused(painter, two, phantoms, tmp_path):
    for options, said in (
        ({"masks": two, "age": 40.0}, "takes no covariates"),
        ({"masks": two, "split": "val"}, "no case of split val has a mask"),
        ({"masks": two, "split": "all"}, "no split `all`"),
        ({"split": "test"}, "rows of --masks"),
        ({}, "was given none"),
    ):
        with pytest.raises(UsageError, match=said):
            synthesise(out=tmp_path / "out", model=painter.folder, device="cpu", **options)
    assert not (tmp_path / "out").exists()


def test_a_table_of_other_cases_is_not_replaced(painter, two, tmp_path):
    shutil.copytree(two.parent, tmp_path / "data")
    masks, known = tmp_path / "data" / two.name, (tmp_path / "data" / "cases.csv").read_bytes()
    with pytest.raises(UsageError, match=r"holds a cases.csv of other cases"):
        synthesise(out=tmp_path / "data", model=painter.folder, masks=masks, device="cpu")
    assert (tmp_path / "data" / "cases.csv").read_bytes() == known
    folders = paint(painter, two, tmp_path / "painted")
    with pytest.raises(UsageError, match=r"holds a cases.csv of other cases"):  # all of them painted, and still others
        paint(painter, tmp_path / "painted" / "cases.csv", tmp_path / "painted")
    assert paint(painter, two, tmp_path / "painted") == folders


def test_cases_without_a_mask_are_named_before_anything_is_trained(phantoms, tmp_path):
    references = ("seg", "seg_1", "seg_2")
    bare = table_of(phantoms, "bare.csv", lambda row, n: row | dict.fromkeys(references if n < 2 else (), ""), 10)
    with pytest.raises(Problems) as error:
        train(bare, tmp_path / "tiny")
    assert len(error.value.problems) == 2 and "has no reference" in str(error.value.problems[0])
    assert isinstance(error.value.problems[0], ManifestError)
