"""What `--volume` takes, and that it says so."""

from pathlib import Path

import numpy as np
import pytest

from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.inputs import MissingChannels, find_case
from medseg_diff.errors import ExitCode, ImageError, MedsegError, UsageError

FOUR = ("t1", "t1ce", "t2", "flair")
LAYOUTS = {
    "plain": ["t1.nii.gz", "t1ce.nii.gz", "t2.nii.gz", "flair.nii.gz"],
    "BraTS 2018 to 2021": [f"BraTS2021_00006_{channel}.nii.gz" for channel in FOUR],
    "BraTS 2023": [f"BraTS-GLI-00000-000-{ending}.nii.gz" for ending in ("t1n", "t1c", "t2w", "t2f")],
    "nnU-Net": [f"P_7_{number:04}.nii.gz" for number in range(4)],
    "BIDS": ["sub-1_T1w.nii", "sub-1_T1gd.nii", "sub-1_T2w.nii", "sub-1_FLAIR.nii"],
}


@pytest.fixture
def folder(tmp_path):
    def fill(*names: str) -> Path:
        place = tmp_path / "P 7"
        place.mkdir(exist_ok=True)
        for name in names:
            (place / name).write_bytes(b"not read here")
        return place

    return fill


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
def test_a_case_folder_in_every_naming(folder, names):
    place = folder(*names, "notes.txt", ".hidden_t1.nii.gz")
    case, sentence = find_case([str(place)], FOUR)
    assert case.name == "P_7" and tuple(case.images) == FOUR
    assert [path.name for path in case.images.values()] == names
    assert sentence == f"took {', '.join(names)} from folder P 7"


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
def test_one_file_finds_its_siblings(folder, names):
    place = folder(*names, "other_t1.nii.gz", "other_seg.nii.gz")
    if names[0] == "t1.nii.gz":
        (place / "other_t1.nii.gz").unlink()
    # The file has to exist as an image only as far as its header is looked at: it is none, so it counts as one volume.
    case, _ = find_case([str(place / names[2])], FOUR)
    assert [path.name for path in case.images.values()] == names and case.seg is None


def test_the_mask_of_a_folder_is_found(folder):
    case, _ = find_case([str(folder("x_t1.nii", "x_t2.nii", "x_seg.nii"))], ("t2", "t1"))
    assert case.seg.name == "x_seg.nii" and tuple(case.images) == ("t2", "t1")


def test_channel_words(folder):
    place = folder("a.nii", "b=c.nii")
    case, sentence = find_case([f"T1={place}/a.nii", f"t1c={place}/b=c.nii"], ("t1", "t1ce"))
    assert [path.name for path in case.images.values()] == ["a.nii", "b=c.nii"]
    assert sentence == "took the files named: t1=a.nii, t1ce=b=c.nii"


def test_one_file_for_a_model_of_one_channel(folder):
    place = folder("scan.nii.gz", "p_flair.nii.gz")
    case, sentence = find_case([str(place / "scan.nii.gz")], ("t1",))
    assert (case.name, sentence) == ("scan", "took scan.nii.gz as t1")
    assert find_case([str(place / "p_flair.nii.gz")], ("flair",))[0].name == "p"
    with pytest.raises(ImageError, match="is named flair, the model takes t1"):
        find_case([str(place / "p_flair.nii.gz")], ("t1",))
    assert find_case([f"t1={place}/p_flair.nii.gz"], ("t1",))[0].images["t1"].name == "p_flair.nii.gz"


def test_a_4d_file_holds_the_channels_in_order(tmp_path):
    import nibabel

    voxels = np.random.default_rng(0).random((3, 4, 5, 2), dtype=np.float32)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "BRATS_001.nii.gz")
    case, sentence = find_case([str(tmp_path / "BRATS_001.nii.gz")], ("flair", "t1"))
    assert case.name == "BRATS_001" and sentence == "took BRATS_001.nii.gz as 4D, its volumes as flair, t1"
    np.testing.assert_array_equal(read_case(case, ["flair", "t1"]).image, np.moveaxis(voxels, -1, 0))
    with pytest.raises(ImageError, match="holds 2 volumes, the model has 4 channels"):
        find_case([str(tmp_path / "BRATS_001.nii.gz")], FOUR)


def test_dicom_folders(folder):
    place = folder("1.dcm", "2.dcm")
    case, sentence = find_case([str(place)], ("t1",))
    assert case.images["t1"] == place and "one DICOM series" in sentence
    outer = place.parent
    (outer / "t1").mkdir()
    (outer / "T2w").mkdir()
    case, sentence = find_case([str(outer)], ("t1", "t2"))
    assert {channel: path.name for channel, path in case.images.items()} == {"t1": "t1", "t2": "T2w"}
    assert "DICOM" in sentence


@pytest.mark.parametrize(
    ("words", "kind", "expected"),
    [
        (["{}"], ImageError, r"\[P_7\] flair not found \(there: a.nii, t1.nii, x_t1ce.nii, y_t2.nii\)"),
        (["{}/a.nii"], ImageError, "does not say which channel"),
        (["{}/t1.nii"], ImageError, "t1ce, t2, flair not found"),
        (["{}/gone.nii"], ImageError, "no such file or folder"),
        (["t1={}/gone.nii"], ImageError, r"\[t1\] gone.nii: no such file"),
        (["t1={}/t1.nii"], UsageError, "no file is given for t1ce, t2, flair"),
        (["t1={}/t1.nii", "t1={}/a.nii"], UsageError, "t1 is given twice"),
        ([f"{channel}={{}}/t1.nii" for channel in FOUR], UsageError, "one file is given for two channels"),
        (["pet={}/a.nii"], UsageError, "`pet` is no channel of the model"),
        (["{}/a.nii", "{}/t1.nii"], UsageError, "given 2 times"),
    ],
)
def test_what_is_refused(folder, words, kind, expected):
    place = folder("a.nii", "t1.nii", "x_t1ce.nii", "y_t2.nii")
    with pytest.raises(kind, match=expected) as caught:
        find_case([word.format(place) for word in words], FOUR)
    assert "Fix: " in caught.value.line and str(place) not in caught.value.line


def test_two_files_of_one_channel(folder):
    with pytest.raises(MedsegError, match=r"a_t1.nii and b_t1.nii both look like t1") as caught:
        find_case([str(folder("a_t1.nii", "b_t1.nii", "a_t2.nii"))], ("t1", "t2"))
    assert caught.value.exit_code == ExitCode.IMAGE


def test_channels_may_be_missing_where_that_is_allowed(folder):
    place = folder("x_t1.nii", "x_flair.nii", "x_seg.nii")
    case, sentence = find_case([str(place)], FOUR, fill_missing=True)
    assert case.channels == ("t1", "flair") and case.seg is not None
    assert sentence.endswith("lacks t1ce, t2")
    case, sentence = find_case([str(place / "x_flair.nii")], FOUR, fill_missing=True)
    assert case.channels == ("t1", "flair") and "lacks t1ce, t2" in sentence
    case, sentence = find_case([f"flair={place}/x_flair.nii"], FOUR, fill_missing=True)
    assert case.channels == ("flair",) and sentence.endswith("lacks t1, t1ce, t2")
    whole, sentence = find_case([str(place)], ("t1", "flair"), fill_missing=True)
    assert whole.channels == ("t1", "flair") and "lacks" not in sentence


def test_a_refusal_says_what_the_case_has(folder):
    place = folder("x_t1.nii", "x_flair.nii", "x_seg.nii")
    for fill_missing, channels in ((False, FOUR), (False, ("t2",)), (True, ("t2", "t1ce"))):
        with pytest.raises(MissingChannels, match="not found") as caught:
            find_case([str(place)], channels, fill_missing=fill_missing)
        assert caught.value.present == ("t1", "flair")
    assert "buy one" in caught.value.with_fix("buy one").line


def test_folders_of_series_may_be_fewer_where_that_is_allowed(tmp_path):
    for name in ("t1", "flair"):
        (tmp_path / name).mkdir()
    case, sentence = find_case([str(tmp_path)], FOUR, fill_missing=True)
    assert case.channels == ("t1", "flair") and sentence.endswith("lacks t1ce, t2")
