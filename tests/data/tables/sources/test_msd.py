"""A task of the Medical Segmentation Decathlon becomes a table of 4D files that can be trained on as it lies."""

import json
import logging

import nibabel
import numpy as np
import pytest

from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.manifest import read_manifest, write_manifest
from medseg_diff.errors import ImageError, Problems
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.prepare import prepare

TASK01 = {
    "name": "BRATS",
    "tensorImageSize": "4D",
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
    "numTraining": 5,
    "training": [{"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}],
    "test": ["./imagesTs/BRATS_485.nii.gz"],
}


@pytest.fixture
def task(tmp_path, make):
    """Five training cases and one without a mask for testing, as the archive unpacks on a Mac."""
    folder = tmp_path / "Task01_BrainTumour"
    for number in range(1, 6):
        make.image(folder / "imagesTr" / f"BRATS_{number:03}.nii.gz", volumes=4)
        make.mask(folder / "labelsTr" / f"BRATS_{number:03}.nii.gz", label=2)
        make.junk(folder / "imagesTr" / f"._BRATS_{number:03}.nii.gz")
        make.junk(folder / "labelsTr" / f"._BRATS_{number:03}.nii.gz")
    make.image(folder / "imagesTs" / "BRATS_485.nii.gz", volumes=4)
    make.junk(folder / "._dataset.json", folder / "imagesTs" / "._BRATS_485.nii.gz", folder / "imagesTr" / ".DS_Store")
    (folder / "dataset.json").write_text(json.dumps(TASK01))
    return folder


def test_a_task_of_4d_files(task, read_all, caplog):
    with caplog.at_level(logging.INFO):
        cases = read_all(prepare(task, source="msd", out=task / "cases.csv"))
    assert sorted(cases) == [f"BRATS_{number:03}" for number in (1, 2, 3, 4, 5, 485)]
    assert cases["BRATS_485"].split == "test" and cases["BRATS_485"].seg is None
    assert sorted(case.split for case in cases.values() if case.seg) == ["train"] * 4 + ["val"]
    first = cases["BRATS_001"]
    assert first.channels == first.stack_channels == ("flair", "t1", "t1ce", "t2")
    t2, flair = read_case(first, ["t2", "flair"]).image
    assert 400 <= t2[t2 > 0].min() < 420 and 100 <= flair[flair > 0].min() < 120  # as the maker made volumes 3 and 0
    assert "labels 1 edema, 2 non-enhancing tumor, 3 enhancing tumour" in caplog.text
    assert "no test case has a reference" in caplog.text


def test_a_task_of_one_channel_has_plain_columns(tmp_path, make, read_all):
    folder = tmp_path / "Task04_Hippocampus"
    make.image(folder / "imagesTr" / "hippocampus_001.nii.gz")
    make.mask(folder / "labelsTr" / "hippocampus_001.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "labels": {"1": "Anterior"}}))
    (case,) = read_all(prepare(folder, source="msd", out=folder / "cases.csv")).values()
    assert case.stack is None and case.channels == ("mri",)


def test_channels_that_a_task_does_not_have(task, read_all):
    options = {"source": "msd", "out": task / "cases.csv"}
    with pytest.raises(Problems) as caught:
        prepare(task, channels="flair,swi", **options)
    assert caught.value.lines[0].startswith("[BRATS_001] swi not found. Fix: do without it: --channels flair (and")
    with pytest.raises(ImageError, match="no image below Task01_BrainTumour"):
        prepare(task, channels="swi", skip_incomplete=True, **options)
    cases = read_all(prepare(task, channels="t2,flair", **options))
    assert cases["BRATS_001"].stack_channels == ("flair", "t1", "t1ce", "t2")  # every volume keeps its name


def test_a_4d_file_of_a_table_is_segmented_as_its_channels_are(trained, tmp_path):
    plain = read_manifest(trained.table).cases[0]
    volumes = [nibabel.load(path) for path in plain.images.values()]
    stack = np.stack([np.asarray(volume.dataobj) for volume in volumes], axis=-1)
    nibabel.save(nibabel.Nifti1Image(stack, None, volumes[0].header), tmp_path / "stack.nii.gz")
    named = {"stack": "stack.nii.gz", "stack_channels": ",".join(plain.images)}
    write_manifest(tmp_path / "4d.csv", [{"case": plain.name, **named}])
    write_manifest(tmp_path / "3d.csv", [{"case": plain.name, **{c: str(path) for c, path in plain.images.items()}}])
    options = {"model": trained.folder, "device": "cpu", "members": 1, "seed": 3}
    segment(data=tmp_path / "4d.csv", out=tmp_path / "4d", **options)
    segment(data=tmp_path / "3d.csv", data_root=trained.table.parent, out=tmp_path / "3d", **options)
    masks = [nibabel.load(tmp_path / name / plain.name / "probability.nii.gz").get_fdata() for name in ("4d", "3d")]
    assert np.array_equal(*masks)
    before = (tmp_path / "4d" / plain.name / "case.json").stat().st_mtime_ns
    segment(data=tmp_path / "4d.csv", out=tmp_path / "4d", **options)
    assert (tmp_path / "4d" / plain.name / "case.json").stat().st_mtime_ns == before  # known as the same scan
