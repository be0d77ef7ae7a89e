"""A BIDS dataset becomes a table: sessions, contrast, masks among derivatives, participants."""

import logging

import pytest

from medseg_diff.errors import ImageError, Problems
from medseg_diff.tasks.prepare import prepare

IMAGES = ("T1w", "ce-gadolinium_T1w", "FLAIR")
PEOPLE = (
    "participant_id\tage\tsex\tnotes\nsub-01\t63.5\tF\t-\nsub-02\tn/a\tmale\tx\nsub-03\t89+\tn/a\ty\n04\t40\tM\tz\n"
)


@pytest.fixture
def dataset(tmp_path, make):
    """Four subjects, the second with two sessions, the other modalities, derivatives and notes of real datasets."""
    root = tmp_path / "ds000001"
    for subject, session in (("01", ""), ("02", "ses-pre"), ("02", "ses-post"), ("03", ""), ("04", "")):
        name = f"sub-{subject}" + (f"_{session}" if session else "")
        inside = (f"sub-{subject}", *([session] if session else []), "anat")
        for image in IMAGES:
            make.image(root.joinpath(*inside) / f"{name}_{image}.nii.gz")
            make.junk(
                root.joinpath(*inside) / f"{name}_{image}.json", root.joinpath(*inside) / f"._{name}_{image}.nii.gz"
            )
        make.image(root.joinpath(*inside[:-1], "func") / f"{name}_task-rest_bold.nii.gz", volumes=3)
        make.image(root.joinpath(*inside) / f"{name}_PDw.nii.gz")
        make.mask(root / "derivatives" / "manual" / inside[0] / f"{name}_label-lesion_mask.nii.gz")
        prepared = root.joinpath("derivatives", "fmriprep", *inside)
        make.mask(prepared / f"{name}_dseg.nii.gz")
        make.mask(prepared / f"{name}_desc-brain_mask.nii.gz")
        make.image(prepared / f"{name}_desc-preproc_T1w.nii.gz")
        make.mask(prepared / f"{name}_space-MNI152NLin2009cAsym_label-lesion_mask.nii.gz")
    (root / "participants.tsv").write_text(PEOPLE)
    make.junk(root / "dataset_description.json", root / "README", root / ".bidsignore", root / "sub-01" / ".DS_Store")
    return root


@pytest.fixture
def table(dataset, caplog):
    def call(**options):
        with caplog.at_level(logging.INFO):
            return prepare(dataset, source="bids", out=dataset.parent / "cases.csv", overwrite=True, **options)

    return call


def test_sessions_contrast_masks_and_participants(dataset, table, read_all, caplog):
    cases = read_all(table())
    assert list(cases) == ["sub-01", "sub-02_ses-post", "sub-02_ses-pre", "sub-03", "sub-04"]
    assert {case.channels for case in cases.values()} == {("t1", "t1ce", "flair")}
    assert cases["sub-02_ses-pre"].patient == cases["sub-02_ses-post"].patient == "sub-02"
    assert cases["sub-02_ses-pre"].split == cases["sub-02_ses-post"].split
    assert cases["sub-01"].images["t1ce"].name == "sub-01_ce-gadolinium_T1w.nii.gz"
    masks = dataset / "derivatives" / "manual"
    assert cases["sub-01"].seg == masks / "sub-01" / "sub-01_label-lesion_mask.nii.gz"
    assert cases["sub-02_ses-pre"].seg == masks / "sub-02" / "sub-02_ses-pre_label-lesion_mask.nii.gz"
    assert dict(cases["sub-01"].covariates) == {"age_years": 63.5, "sex": "F"}
    assert dict(cases["sub-02_ses-pre"].covariates) == {"sex": "M"} and dict(cases["sub-03"].covariates) == {}
    assert dict(cases["sub-04"].covariates) == {"age_years": 40, "sex": "M"}
    assert "references of 5 cases: *label-lesion_mask of manual" in caplog.text


def test_a_segmentation_stands_in_for_lesion_masks_and_is_doubted(dataset, table, read_all, caplog):
    for path in list(dataset.glob("derivatives/manual/*/*.nii.gz")):
        path.unlink()
    assert read_all(table())["sub-03"].seg.name == "sub-03_dseg.nii.gz"
    assert "are the labels of *dseg of fmriprep lesions?" in caplog.text
    assert read_all(table(seg="desc-brain_mask"))["sub-03"].seg.name == "sub-03_desc-brain_mask.nii.gz"
    assert read_all(table(seg="nothing"))["sub-03"].seg is None
    assert "its derivatives hold no lesion mask" in caplog.text


def test_runs_and_acquisitions_are_chosen_by_their_entities(dataset, table, make, read_all):
    for name in ("run-1", "run-10"):
        make.image(dataset / "sub-03" / "anat" / f"sub-03_acq-fast_{name}_FLAIR.nii.gz")
    with pytest.raises(ImageError) as caught:
        table()
    assert caught.value.line == (
        "[sub-03] sub-03_FLAIR.nii.gz and sub-03_acq-fast_run-10_FLAIR.nii.gz are both flair. "
        "Fix: choose with --prefer and a part of the name, as in --prefer run-01,acq-highres."
    )
    assert read_all(table(prefer="run-1"))["sub-03"].images["flair"].name == "sub-03_acq-fast_run-1_FLAIR.nii.gz"
    with pytest.raises(ImageError, match=r"run-10_FLAIR.nii.gz and sub-03_acq-fast_run-1_FLAIR"):
        table(prefer="acq-fast")


def test_other_suffixes_are_taken_where_they_are_asked_for(dataset, table, make, read_all):
    make.image(dataset / "sub-01" / "anat" / "sub-01_part-phase_T2w.nii.gz")
    make.image(dataset / "sub-01" / "anat" / "sub-01_ce-gadolinium_FLAIR.nii.gz")
    cases = read_all(table(channels="PDw,FLAIR"))
    assert {case.channels for case in cases.values()} == {("pdw", "flair")}
    make.image(dataset / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    with pytest.raises(Problems) as caught:
        table()
    assert caught.value.lines[0].startswith(
        "[sub-02_ses-post] t2 not found. Fix: do without it: --channels t1,t1ce,flair"
    )


def test_two_masks_of_one_case_are_chosen_by_their_pipeline(dataset, table, make, read_all):
    make.mask(dataset / "derivatives" / "second" / "sub-01" / "anat" / "sub-01_desc-lesion_mask.nii.gz")
    with pytest.raises(ImageError, match=r"\[sub-01\] sub-01_label-lesion_mask.nii.gz and .* are both seg"):
        table()
    assert "second" in read_all(table(prefer="second"))["sub-01"].seg.parts


def test_a_folder_without_subjects(tmp_path):
    (tmp_path / "sub-01").mkdir()
    with pytest.raises(ImageError, match=r"no sub-…/anat/ with a T1w, T2w or FLAIR below"):
        prepare(tmp_path, source="bids", out=tmp_path / "cases.csv")
