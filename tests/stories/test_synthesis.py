"""Training a tiny system that draws volumes, and drawing: what is written, that it goes on, and whose bytes they are."""

import csv
import hashlib
import json
import shutil

import nibabel
import numpy as np
import pytest

from medseg_diff import audit, audit_volumes, report, synthesise, train_synth
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.errors import CheckpointError, ManifestError, UsageError
from medseg_diff.recipes.covariates import read_covariates
from medseg_diff.run import Run
from medseg_diff.tasks.apply.summary import rows_of
from medseg_diff.training.runner import Course

TINY = (
    "preparation.spacing_mm=[6.0,6.0,6.0]",
    "view.size=[24,32,24]",
    "space.autoencoder.widths=[8]",
    "space.autoencoder.latent=2",
    "space.autoencoder.groups=4",
    "space.training.steps=3",
    "space.training.batch=2",
    "space.training.validate_every=3",
    "space.passes=1",
    "network.width=8",
    "network.multipliers=[1,1]",
    "network.attention=[1]",
    "network.groups=4",
    "network.stem=1",
    "training.steps=4",
    "training.batch=2",
    "training.precision=fp32",
    "training.validate_every=4",
    "training.save_every=2",
    "regressor.width=8",
    "regressor.multipliers=[1,1]",
    "regressor.groups=4",
    "regressor_training.steps=3",
    "regressor_training.batch=4",
    "regressor_training.validate_every=3",
    "validation.images=2",
    "validation.drawn=1",
    "sampling.steps=3",
    "sampling.network_batch=2",
)
CONFIG = "quick/brain_ldm_3d"


def train(phantoms, out, *overrides, **options):
    runs = out.parent / "runs"
    return train_synth(
        phantoms,
        config=CONFIG,
        overrides=[*TINY, *overrides],
        out=out,
        runs=runs,
        device="cpu",
        mlflow=False,
        **options,
    )


@pytest.fixture(scope="module")
def drawn_from(phantoms, tmp_path_factory):
    return train(phantoms, tmp_path_factory.mktemp("synthesis") / "tiny")


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.nii.gz"))
    }


def test_the_run_holds_all_networks_their_ranges_and_a_picture(drawn_from):
    weights = {path.stem for path in (drawn_from.folder / "weights").glob("*.safetensors")}
    assert weights == {"denoiser", "autoencoder", "regressor"}
    known = read_covariates(drawn_from)
    assert known.names == ("age_years", "sex", "ventricle_volume_ml", "brain_volume_ml")
    assert "covariates.json" in (drawn_from.folder / "SHA256SUMS").read_text()
    names = {point.name for point in drawn_from.numbers()}
    assert {
        "regressor_val_r_age_years",
        "autoencoder_val_psnr",
        "autoencoder_val_ms_ssim",
        "denoiser_val_loss",
    } <= names
    pictures = {picture.series for picture in drawn_from.trajectories}
    assert pictures == {"trajectories/autoencoder", "trajectories/denoiser"}


def test_what_is_drawn_is_a_table_of_scans_that_every_verb_reads(drawn_from, tmp_path):
    from medseg_diff.data.tables.manifest import read_manifest
    from medseg_diff.tasks.validate import validate

    folders = synthesise(out=tmp_path, model=drawn_from.folder, number=3, age=40, sex="F", device="cpu")
    assert [folder.name for folder in folders] == ["synthetic_0000", "synthetic_0001", "synthetic_0002"]
    image = nibabel.load(folders[0] / "t1.nii.gz")
    assert image.shape == (24, 32, 24) and nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms() == (6, 6, 6) and image.get_data_dtype() == np.int16
    middle = image.affine @ [11.5, 15.5, 11.5, 1]
    assert np.allclose(middle[:3], 0)
    facts = json.loads((folders[0] / "case.json").read_text())
    assert facts["covariates"]["age_years"] == 40 and facts["covariates"]["sex"] == "F"
    assert facts["network_evaluations"] == 6 and facts["asked"] == {"age_years": 40, "sex": "F"}
    manifest = read_manifest(tmp_path / "cases.csv")
    assert [case.covariates["sex"] for case in manifest.cases] == ["F"] * 3
    assert not validate(data=tmp_path / "cases.csv").problems


def test_drawn_scans_have_pages(drawn_from, tmp_path):
    folders = synthesise(out=tmp_path, model=drawn_from.folder, number=2, age=40, sex="F", device="cpu")
    row = rows_of(folders)[1]
    assert (row["case"], row["task"], row["age_years"], row["sex"]) == ("synthetic_0001", "synthesise", 40, "F")
    page = report(tmp_path, mlflow=False)
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "report.html" and "2 synthetic scans" in text and text.count("<img ") == 1
    assert ">40<" in text and ">F<" in text and 'href="synthetic_0001/report.html"' in text
    own = (folders[0] / "report.html").read_text(encoding="utf-8")
    assert "A synthetic scan of age (years) 40, sex F" in own and '"name": "t1"' in own and "in three planes" in own
    before = {path: path.read_bytes() for path in tmp_path.rglob("report.html")}
    assert report(tmp_path / "synthetic_0000") == folders[0] / "report.html"
    report(tmp_path, mlflow=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("report.html")} == before
    synthesise(out=tmp_path, model=drawn_from.folder, number=2, age=40, sex="F", device="cpu", overwrite=True)
    assert not (folders[0] / "report.html").exists()
    with pytest.raises(UsageError, match="are scans themselves"):
        report(tmp_path, data=tmp_path / "cases.csv")


def test_a_scan_is_the_same_however_many_are_drawn(drawn_from, tmp_path):
    one, three = tmp_path / "one", tmp_path / "three"
    synthesise(out=one, model=drawn_from.folder, number=1, device="cpu")
    synthesise(out=three, model=drawn_from.folder, number=3, device="cpu")
    assert digests(one).items() <= digests(three).items()
    assert len(set(digests(three).values())) == 3
    shutil.rmtree(three / "synthetic_0001")
    before = (three / "synthetic_0000" / "case.json").stat().st_mtime_ns
    synthesise(out=three, model=drawn_from.folder, number=3, device="cpu")
    assert (three / "synthetic_0000" / "case.json").stat().st_mtime_ns == before  # complete: not done again
    again = tmp_path / "again"
    synthesise(out=again, model=drawn_from.folder, number=3, device="cpu")
    assert digests(again) == digests(three)


@pytest.mark.parametrize("left_out", [{"unconditional": True}, {"guidance": 0.0}])
def test_scans_of_anybody_claim_no_covariates(drawn_from, tmp_path, left_out):
    (folder,) = synthesise(out=tmp_path, model=drawn_from.folder, number=1, device="cpu", **left_out)
    facts = json.loads((folder / "case.json").read_text())
    assert facts["covariates"] == {} and facts["network_evaluations"] == 3
    assert (tmp_path / "cases.csv").read_text().splitlines()[0] == "case,patient,t1"
    with pytest.raises(UsageError, match="leaves them out"):
        synthesise(out=tmp_path, model=drawn_from.folder, number=1, age=40, device="cpu", **left_out)


def test_guidance_and_seed_change_what_is_drawn_and_need_another_folder(drawn_from, tmp_path):
    synthesise(out=tmp_path / "a", model=drawn_from.folder, number=1, device="cpu")
    for options in ({"guidance": 3.0}, {"unconditional": True}, {"seed": 1}, {"sex": "F"}):
        with pytest.raises(UsageError, match="was made with"):
            synthesise(out=tmp_path / "a", model=drawn_from.folder, number=1, device="cpu", **options)
    synthesise(out=tmp_path / "b", model=drawn_from.folder, number=1, device="cpu", seed=1)
    assert digests(tmp_path / "a") != digests(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"covariates": ["age=3"]}, "not trained on age"),
        ({"covariates": ["age_years"]}, "is not a covariate"),
        ({"age": 400}, "age_years 400"),
        ({"age": 40, "covariates": ["age_years=50"]}, "asked for twice"),
        ({"unconditional": True, "sex": "F"}, "leaves them out"),
        ({"unconditional": True, "guidance": 2.0}, "use one of them"),
        ({"steps": 5000}, "5000 steps"),
    ],
)
def test_what_cannot_be_drawn_is_refused(drawn_from, tmp_path, options, said):
    with pytest.raises(UsageError) as error:
        synthesise(out=tmp_path / "out", model=drawn_from.folder, number=1, device="cpu", **options)
    assert said in f"{error.value.found} {error.value.fix}" and not (tmp_path / "out").exists()


def test_it_goes_on_where_it_stopped_to_the_same_bytes(phantoms, drawn_from, tmp_path, monkeypatch):
    whole = Course._go

    def broken(course, stop):
        if course.phase.name == "denoiser":
            steps = course.phase.settings
            course.phase = course.phase.__class__(**{**vars(course.phase), "settings": steps.but(steps=2)})
            whole(course, stop)
            raise KeyboardInterrupt
        whole(course, stop)

    with monkeypatch.context() as patched:
        patched.setattr(Course, "_go", broken)
        with pytest.raises(KeyboardInterrupt):
            train(phantoms, tmp_path / "tiny", "training.decay=constant")
    resumed = train(phantoms, tmp_path / "tiny", "training.decay=constant", resume="must")
    through = train(phantoms, tmp_path / "through", "training.decay=constant")
    for name in ("denoiser", "autoencoder", "regressor"):
        assert resumed.weights(name).read_bytes() == through.weights(name).read_bytes()


def test_a_case_without_a_covariate_is_named_before_anything_is_trained(phantoms, tmp_path):
    rows = list(csv.DictReader(phantoms.open()))
    rows[0]["age_years"] = ""
    table = phantoms.parent / "without_age.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ManifestError, match=r"age_years|conditioned"):
        train(table, tmp_path / "tiny")


def test_an_image_space_and_slices_are_recipes_as_well(phantoms, tmp_path):
    """No autoencoder, no covariates, no regressor: one phase, and a drawn slice."""
    overrides = (
        "space={kind: image}",
        "covariates=[]",
        "sampling.guidance=1.0",
        "view={kind: axial_slices, size: [32, 32]}",
        "validation.drawn=0",
    )
    run = train(phantoms, tmp_path / "tiny", *overrides)
    assert {path.stem for path in (run.folder / "weights").glob("*")} == {"denoiser"}
    (folder,) = synthesise(out=tmp_path / "out", model=run.folder, number=1, device="cpu")
    assert nibabel.load(folder / "t1.nii.gz").shape == (32, 32, 1)
    with pytest.raises(UsageError, match="guidance needs covariates"):
        synthesise(out=tmp_path / "other", model=run.folder, number=1, guidance=2.0, device="cpu")


def test_a_damaged_range_is_noticed(drawn_from, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(drawn_from.folder, copy)
    (copy / "covariates.json").write_text((copy / "covariates.json").read_text().replace("20", "21"))
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        synthesise(out=tmp_path / "out", model=Run(copy).folder, number=1, device="cpu")


def halves(phantoms):
    """A table whose odd rows stand for scans trained on, and the even ones for others."""
    rows = list(csv.DictReader(phantoms.open()))
    for number, row in enumerate(rows):
        row["split"] = "test" if number % 2 else "train"
    table = phantoms.parent / "halves.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


@pytest.fixture(scope="module")
def audited(drawn_from, phantoms, tmp_path_factory):
    """What an audit found, and its folder, with the scans. Read only: copy it to change it."""
    out = tmp_path_factory.mktemp("audited") / "a"
    asked = {"number": 4, "steps": 1, "guidance": (1.0, 2.0), "device": "cpu", "keep_scans": True}
    return audit(data=halves(phantoms), out=out, model=drawn_from.folder, **asked), out


def test_an_audit_says_what_is_obeyed_beside_the_same_of_real_scans(drawn_from, audited):
    found, out = audited
    rows = found["obedience"]
    names = read_covariates(drawn_from).names
    assert {row["covariate"] for row in rows if row["of"] == "real"} == set(names)
    drawn = [(row["covariate"], row["by"], row["guidance"]) for row in rows if row["of"] == "drawn"]
    measured = [(name, "regressor") for name in names] + [(name, "intensity") for name in names[2:]]
    assert sorted(drawn) == sorted((*each, scale) for each in measured for scale in (1.0, 2.0))
    likeness = [(row["drawn"], row["guidance"]) for row in found["likeness"]]
    assert likeness == [("anybody", 1.0), ("anybody", 2.0), ("unconditional", 0.0), ("decoded noise", None)]
    assert all(row["frechet_distance"] >= 0 and row["frechet_images"] == 2 for row in found["likeness"])
    assert found["data"] == "phantom" and {"favoured", "copies", "near"} <= set(found["memory"])
    assert found["memory"]["trained"] == 5
    with (out / "audit.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len([line for line in lines if line["of"] == "drawn"]) == 2 * 6 * 4
    assert len([line for line in lines if line["of"] == "real"]) == 6 * 5
    assert {line["by"] for line in lines} == {"regressor", "intensity"}
    assert json.loads((out / "audit.json").read_text()) == json.loads(json.dumps(found))
    assert (out / "audit.png").stat().st_size > 10_000


def test_masks_of_another_program_are_measured_beside_what_was_asked_for(drawn_from, audited, tmp_path):
    before, out = audited[0], shutil.copytree(audited[1], tmp_path / "a")
    masks = tmp_path / "masks"
    names = read_covariates(drawn_from).names
    scans = sorted(path.name.removesuffix(".nii.gz") for path in (out / "scans").iterdir())
    real = [f"real_{number:04d}" for number in range(5)]
    assert scans == sorted(
        real + [f"g{scale}_{name}_{number:04d}" for scale in (1, 2) for name in names for number in range(4)]
    )
    # A program that knows the answer, on a finer grid of its own whose voxels have 1/64 ml.
    with (out / "audit.csv").open() as file:
        wanted = {row["scan"]: row for row in csv.DictReader(file) if row["covariate"] == "ventricle_volume_ml"}
    for scan, row in wanted.items():
        voxels = np.zeros((30, 30, 30), dtype=np.uint8)
        voxels.flat[: round(64 * float(row["asked"]))] = 4
        voxels.flat[-64:] = 43
        write_volume(masks / f"{scan}_synthseg.nii.gz", voxels, np.diag([2.5, 2.5, 2.5, 1]))
    structures = ["ventricle_volume_ml=4,43"]
    found = audit_volumes(out, segmentations=masks, structures=structures, by="synthseg")
    assert found == audit_volumes(out, segmentations=masks, structures=structures, by="synthseg")  # replaced, not added
    added = [row for row in found["obedience"] if row["by"] == "synthseg"]
    assert [(row["of"], row["covariate"], row["guidance"]) for row in added] == [
        ("real", "ventricle_volume_ml", None),
        ("drawn", "ventricle_volume_ml", 1.0),
        ("drawn", "ventricle_volume_ml", 2.0),
    ]
    assert all(row["r"] > 0.999 for row in added) and found["structures"] == {
        "synthseg": {"ventricle_volume_ml": [4, 43]}
    }
    assert [row for row in found["obedience"] if row["by"] != "synthseg"] == before["obedience"]
    with (out / "audit.csv").open() as file:
        ours = {row["scan"]: row for row in csv.DictReader(file) if row["by"] == "synthseg"}
    assert ours.keys() == wanted.keys()
    assert all(abs(float(row["measured"]) - float(row["asked"]) - 1) < 0.01 for row in ours.values())
    (masks / "g2_ventricle_volume_ml_0002_synthseg.nii.gz").unlink()
    for options, said in (
        ({"structures": ["ventricle_volume_ml=four"]}, "names no labels"),
        ({"structures": ["hippocampus_ml=17"]}, "no covariate hippocampus_ml"),
        ({"structures": structures, "by": "regressor"}, "that name is taken"),
        ({"structures": structures}, "no mask of 1 scan of 13, such as g2_ventricle_volume_ml_0002"),
    ):
        with pytest.raises(UsageError, match=said):
            audit_volumes(out, segmentations=masks, **options)
    (out / "audit.csv").write_text("scan,of\n1,2\n")
    for folder in (out, tmp_path / "nothing"):
        with pytest.raises(UsageError, match="no audit that can be read"):
            audit_volumes(folder, segmentations=masks, structures=structures)


def test_an_audit_needs_enough_real_scans_and_covariates(drawn_from, phantoms, tmp_path):
    with pytest.raises(ManifestError, match="too few"):
        audit(data=phantoms, out=tmp_path / "a", model=drawn_from.folder, device="cpu")
    for options, said in (({"guidance": (0.0,)}, "scales above 0"), ({"split": "train"}, "not a held-out split")):
        with pytest.raises(UsageError, match=said):
            audit(data=phantoms, out=tmp_path / "a", model=drawn_from.folder, device="cpu", **options)
