"""What `--volume` takes, and that it says so."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.inputs import MissingChannels, find_case
from medseg_diff.errors import ExitCode, ImageError, MedsegError, UsageError
from medseg_diff.phantoms.make import PhantomSettings, make_case

FOUR = ("t1", "t1ce", "t2", "flair")
LAYOUTS = {
    "plain": ["t1.nii.gz", "t1ce.nii.gz", "t2.nii.gz", "flair.nii.gz"],
    "BraTS 2018 to 2021": [f"BraTS2021_00006_{channel}.nii.gz" for channel in FOUR],
    "BraTS 2023": [f"BraTS-GLI-00000-000-{ending}.nii.gz" for ending in ("t1n", "t1c", "t2w", "t2f")],
    "BraTS of other hands": ["P-7_T1.nii", "P-7_T1-Gd.nii", "P-7_T2.nii", "P-7_T2_FLAIR.nii"],
    "blanks": ["P 7 T1.nii", "P 7 T1 Gd.nii", "P 7 T2.nii", "P 7 FLAIR.nii"],
    "BIDS's entity": ["sub-1_T1w.nii", "sub-1_ce-Gd_T1w.nii", "sub-1_T2w.nii", "sub-1_FLAIR.nii"],
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


def test_what_is_pseudo_healthy_is_no_scan(folder):
    """A folder of results, or of phantoms with their lesion-free twins."""
    healthy = [f"healthy_{channel}.nii.gz" for channel in FOUR]
    case, _ = find_case([str(folder(*LAYOUTS["plain"], *healthy))], FOUR)
    assert [path.name for path in case.images.values()] == LAYOUTS["plain"]
    for name in LAYOUTS["plain"]:
        (case.images["t1"].parent / name).unlink()
    with pytest.raises(MissingChannels, match=r"there: healthy_flair\.nii\.gz"):
        find_case([str(case.images["t1"].parent)], FOUR)


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


def test_a_model_of_t1_does_not_take_one_after_contrast_medium(folder):
    place = folder("sub-1_ce-gadolinium_T1w.nii.gz")
    with pytest.raises(ImageError, match="is named t1ce, the model takes t1"):
        find_case([str(place / "sub-1_ce-gadolinium_T1w.nii.gz")], ("t1",))
    assert find_case([str(place)], ("t1ce",))[0].images["t1ce"].name == "sub-1_ce-gadolinium_T1w.nii.gz"


def test_a_folder_without_images_says_what_it_holds(folder):
    place = folder()
    with pytest.raises(ImageError, match=r"P 7: is empty. Fix: check the path"):
        find_case([str(place)], FOUR)
    (place / "IM001").write_bytes(b"DICOM")
    with pytest.raises(ImageError, match=r"no file with the extension of an image. Fix: .* as in t1=FOLDER"):
        find_case([str(place)], FOUR)
    for number in range(7):
        (place / f"P{number}").mkdir()
    (place / ".hidden").mkdir()
    with pytest.raises(ImageError, match=r"holds no image, but the folders P0, P1, P2, P3, P4 …. Fix: give the one"):
        find_case([str(place)], FOUR)
    for name in ("t1", "FLAIR"):
        (place / name).mkdir()
    with pytest.raises(MissingChannels, match=r"t1ce, t2 not found \(there: the folders FLAIR, t1\)") as caught:
        find_case([str(place)], FOUR)
    assert set(caught.value.present) == {"t1", "flair"}
    (place / "P7.zip").write_bytes(b"PK")
    with pytest.raises(ImageError, match=r"P7.zip: is an archive. Fix: unpack it"):
        find_case([str(place / "P7.zip")], FOUR)


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
    (outer / "t1w").mkdir()
    with pytest.raises(ImageError, match="t1 and t1w both look like t1"):
        find_case([str(outer)], ("t1", "t2"))


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
        (["pet={}/a.nii"], UsageError, "`pet` is not a channel of the model"),
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


def test_a_file_of_another_channel_finds_its_siblings(folder):
    place = folder("x_t1ce.nii", "x_t2.nii", "x_flair.nii")
    assert find_case([str(place / "x_t2.nii")], ("t1ce", "flair"))[0].channels == ("t1ce", "flair")


def test_a_number_that_stands_apart_is_no_part_of_a_word(folder):
    with pytest.raises(ImageError, match="does not say which channel it is"):
        find_case([str(folder("x_t_2.nii", "x_t_1.nii") / "x_t_2.nii")], ("t1", "t2"))  # days, perhaps


WORDS = ("FLAIR", "T1w", "t1gd", "T2w")  # as the Medical Segmentation Decathlon has them
ORDER = ("flair", "t1", "t1ce", "t2")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """One phantom three times: a file for each channel by name, one 4D file, and files by number; the latter two in the
    Decathlon's order, without a dataset.json. The voxels come along as they were written."""
    folder = tmp_path_factory.mktemp("phantom")
    case = make_case(PhantomSettings(cases=1, shape=(32, 32, 32)), 0)
    for number, channel in enumerate(ORDER):
        write_volume(folder / "named" / f"{channel}.nii.gz", case.images[channel], case.affine)
        write_volume(folder / "nnunet/imagesTr" / f"P_{number:04}.nii.gz", case.images[channel], case.affine)
    stack = np.stack([case.images[channel] for channel in ORDER], -1)
    (folder / "msd/imagesTr").mkdir(parents=True)
    nibabel.Nifti1Image(stack, case.affine).to_filename(folder / "msd/imagesTr/BRATS_001.nii.gz")
    return folder, case.images


@pytest.fixture
def dataset(phantom):
    """Write a dataset.json into each of the datasets, for one test."""
    written = [phantom[0] / name / "dataset.json" for name in ("msd", "nnunet")]

    def write(words=WORDS, key="modality"):
        facts = {"name": "BRATS", key: {str(number): word for number, word in enumerate(words)}}
        for file in written:
            file.write_text(json.dumps(facts))

    yield write
    for file in written:
        file.unlink(missing_ok=True)


MSD, NNUNET = "msd/imagesTr/BRATS_001.nii.gz", "nnunet/imagesTr"
PLACES = {"4D": MSD, "numbers": NNUNET, "one of the numbers": f"{NNUNET}/P_0002.nii.gz"}


def check_voxels(phantom, found, channels):
    images = read_case(found, channels).image
    assert len(images) == len(channels)
    for channel, voxels in zip(channels, images, strict=True):
        np.testing.assert_array_equal(voxels, phantom[1][channel])


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("channels", [FOUR, ORDER, ("t1ce", "flair"), ("t2", "t1")], ids="-".join)
@pytest.mark.parametrize("by", ["modality", "channel_names", "--channels"])
def test_numbered_channels_are_what_their_names_say(phantom, dataset, place, channels, by):
    if by != "--channels":
        dataset(key=by)
    case, sentence = find_case([str(phantom[0] / place)], channels, order=ORDER if by == "--channels" else ())
    check_voxels(phantom, case, channels)
    check_voxels(phantom, find_case([str(phantom[0] / "named")], channels)[0], channels)
    source = by if by == "--channels" else f"dataset.json of {place.partition('/')[0]}"
    assert sentence == (
        f"took BRATS_001.nii.gz as 4D, its volumes flair, t1, t1ce, t2 by {source}"
        if place == MSD
        else f"took {', '.join(f'{c}=P_{ORDER.index(c):04}.nii.gz' for c in channels)} from folder imagesTr by {source}"
    )


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_an_order_is_never_guessed(phantom, dataset, place):
    path = [str(phantom[0] / place)]
    with pytest.raises(ImageError, match=r"only numbered, and no dataset.json says which is which") as caught:
        find_case(path, FOUR)
    assert "channel_names in dataset.json" in caught.value.line and "--channels" in caught.value.line
    dataset()
    with pytest.raises(UsageError, match=r"channel 0 is t1 by --channels, but FLAIR by dataset.json"):
        find_case(path, FOUR, order=FOUR)
    dataset(("FLAIR", "MRI", "noNorm", "T2"))
    with pytest.raises(MissingChannels, match=r"t1, t1ce not found \(there: .*names FLAIR, MRI, noNorm, T2") as caught:
        find_case(path, FOUR)
    assert caught.value.present == ("t2", "flair") and caught.value.exit_code == ExitCode.IMAGE
    check_voxels(phantom, find_case(path, ("t2", "flair"))[0], ("t2", "flair"))
    check_voxels(phantom, find_case(path, FOUR, order=ORDER)[0], FOUR)  # no contradiction: MRI may be anything
    case, sentence = find_case(path, FOUR, fill_missing=True)
    assert [c for c in FOUR if c in case.channels] == ["t2", "flair"] and sentence.endswith("lacks t1, t1ce")
    with pytest.raises(UsageError, match="has an empty name"):
        find_case(path, FOUR, order=("flair", "", "t1ce", "t2"))


def test_as_many_names_as_there_are_channels(phantom, dataset):
    with pytest.raises(ImageError, match="holds 4 volumes, but --channels names flair, t1, t2"):
        find_case([str(phantom[0] / MSD)], ("t1", "t2"), order=("flair", "t1", "t2"))
    with pytest.raises(ImageError, match=r"P_0003.nii.gz: has number 03, but --channels names flair, t1, t2"):
        find_case([str(phantom[0] / NNUNET)], ("t1", "t2"), order=("flair", "t1", "t2"))


def test_one_numbered_file_for_a_model_of_one_channel(phantom, dataset):
    path = phantom[0] / NNUNET / "P_0002.nii.gz"
    with pytest.raises(ImageError, match="only numbered"):
        find_case([str(path)], ("t1ce",))
    assert find_case([f"t1ce={path}"], ("t1ce",))[0].name == "P"
    check_voxels(phantom, find_case([str(path)], ("t1ce",), order=ORDER)[0], ("t1ce",))
    dataset()
    case, sentence = find_case([str(path)], ("t1ce",))
    assert case.name == "P" and sentence == "took P_0002.nii.gz as t1ce by dataset.json of nnunet"
    check_voxels(phantom, case, ("t1ce",))
    with pytest.raises(
        ImageError, match=r"is t1ce by dataset.json of nnunet, the model takes t1. Fix: .* write t1=P_0002"
    ):
        find_case([str(path)], ("t1",))
    dataset(["MRI"] * 4)
    with pytest.raises(ImageError, match=r"is MRI by dataset.json of nnunet, the model takes t1ce"):
        find_case([str(path)], ("t1ce",))


def test_an_extra_volume_may_be_anything(phantom, tmp_path):
    """What the model does not read is not looked at: a constant map beside the channels, say."""
    voxels = np.stack([phantom[1]["t1"], np.zeros_like(phantom[1]["t1"]), phantom[1]["t2"]], -1)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    case, _ = find_case([str(tmp_path / "a.nii.gz")], ("t2", "t1"), order=("t1", "mask", "t2"))
    check_voxels(phantom, case, ("t2", "t1"))


def test_names_for_what_is_not_numbered_are_refused(folder):
    place = folder("x_t1.nii", "x_t2.nii", "scan.nii")
    (place / "t1").mkdir()
    for volumes in ([place], [place / "x_t1.nii"], [f"t1={place}/x_t1.nii"]):
        with pytest.raises(UsageError, match="--channels names numbered files or the volumes of a 4D file"):
            find_case([str(volume) for volume in volumes], ("t1",), order=("t1",))
    with pytest.raises(UsageError, match="and --volume is neither"):
        find_case([str(place / "scan.nii")], ("t1",), order=("t1",))


def test_names_count_more_than_numbers(folder):
    """A file with a word for a channel needs no number; one with a number only is then of something else."""
    place = folder("x_t1.nii", "x_t2.nii", "x_0000.nii")
    assert find_case([str(place)], ("t1", "t2"))[0].images["t1"].name == "x_t1.nii"
