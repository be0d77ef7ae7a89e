"""The words of a channel, and who may name channels that are only numbered."""

import json

import pytest

from medseg_diff.data.tables.channel_names import SYNONYMS, channel_called, names_of_numbers
from medseg_diff.errors import ImageError, UsageError

FOUR = ("t1", "t1ce", "t2", "flair")
WORDS = {
    "t1": ["T1", "t1w", "T1n", "T1-weighted", "t1_w"],
    "t1ce": ["T1ce", "t1c", "T1gd", "T1-Gd", "t1_post", "T1 contrast", "T1 post-contrast"],
    "t2": ["T2", "T2w", "T2 weighted"],
    "flair": ["FLAIR", "t2f", "T2-FLAIR", "t2_flair", "T2 Flair"],
    None: ["MRI", "noNorm", "CT", "", "t", "1", "t1t2", "ce", "flair2"],
}


@pytest.mark.parametrize(("channel", "word"), [(channel, word) for channel, words in WORDS.items() for word in words])
def test_the_words_of_a_channel(channel, word):
    assert channel_called(word, FOUR) == channel
    assert channel_called(word, [name for name in FOUR if name != channel]) is None


def test_no_word_means_two_channels():
    words = [word for words in SYNONYMS.values() for word in words]
    assert len(words) == len(set(words)) and all(channel_called(word, FOUR) for word in words)


def test_a_channel_of_a_recipe_of_its_own_is_called_by_its_name():
    assert channel_called("ADC map", ("t1", "adc_map")) == "adc_map"


@pytest.fixture
def named(tmp_path):
    """What number 0, 1 … of a file in TASK/imagesTr/CASE is, by the text or data of a dataset.json in that folder."""

    def ask(content, *, place="", channels=FOUR, order=()):
        folder = tmp_path / "TASK" / "imagesTr" / "CASE"
        folder.mkdir(parents=True, exist_ok=True)
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / "TASK" / place / "dataset.json").write_text(text, encoding="utf-8")
        return names_of_numbers(folder / "x.nii.gz", channels, order)

    return ask


MSD = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
TURNED = {word: int(number) for number, word in MSD.items()}


@pytest.mark.parametrize(
    "facts",
    [
        {"modality": MSD},
        {"channel_names": MSD},
        {"channel_names": dict(reversed(MSD.items()))},
        {"channel_names": MSD, "modality": MSD},
        {"modality": TURNED},
        {"channel_names": {word: str(number) for word, number in TURNED.items()}},
    ],
)
@pytest.mark.parametrize("place", ["", "imagesTr", "imagesTr/CASE"])
def test_a_dataset_json_names_them(named, facts, place):
    found = named(facts, place=place)
    assert found.channels == ("flair", "t1", "t1ce", "t2") and found.words == ("FLAIR", "T1w", "t1gd", "T2w")
    assert found.source == f"dataset.json of {place.rpartition('/')[2] or 'TASK'}"


def test_the_nearest_dataset_json_counts_and_one_further_away_does_not(named, tmp_path):
    named({"modality": {"0": "T2"}})
    assert named({"modality": {"0": "FLAIR"}}, place="imagesTr").channels == ("flair",)
    with pytest.raises(ImageError, match="only numbered"):
        named({}, place="imagesTr/CASE")  # it is near and names none: one further away is of something else
    for file in tmp_path.rglob("dataset.json"):
        file.unlink()
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T2"}}')
    with pytest.raises(ImageError, match="only numbered"):
        named(None)


def test_words_that_no_channel_has_stay_words(named):
    assert named({"channel_names": {"0": "MRI", "1": "T2w", "2": "MRI"}}).channels == ("MRI", "t2", "MRI")


UNCLEAR = {
    "no JSON": "FLAIR, T1",
    "cut off": '{"modality": {"0": "FL',
    "too deep": '{"modality": ' + "[" * 100_000,
    "a list": ["FLAIR", "T1"],
    "a word": "\"modality\"",
    "null": "null",
    "a list of names": {"channel_names": ["FLAIR", "T1"]},
    "one word": {"modality": "MR"},
    "nothing": {"modality": None},
    "a number": {"modality": 4},
    "none": {"channel_names": {}},
    "counted from 1": {"modality": {"1": "FLAIR", "2": "T1"}},
    "a gap": {"modality": {"0": "FLAIR", "2": "T1"}},
    "a number twice": {"modality": {"0": "FLAIR", "00": "T1"}},
    "a name twice": '{"modality": {"FLAIR": 0, "FLAIR": 1}}',
    "numbers both ways": {"modality": {"0": "1", "1": "0"}},
    "numbers and numbers": {"modality": {"0": 1, "1": 0}},
    "names both ways": {"modality": {"FLAIR": "T1"}},
    "mixed": {"modality": {"0": "FLAIR", "T1": 1}},
    "negative": {"modality": {"FLAIR": -1}},
    "a fraction": {"modality": {"FLAIR": 0.0, "T1": 1.0}},
    "true": {"modality": {"FLAIR": False, "T1": True}},
    "deeper": {"modality": {"0": {"name": "FLAIR"}}},
    "an empty name": {"modality": {"0": " ", "1": "T1"}},
    "two that differ": {"modality": {"0": "FLAIR", "1": "T1"}, "channel_names": {"0": "T1", "1": "FLAIR"}},
    "other digits": {"modality": {"٠": "FLAIR"}},
}  # fmt: skip


@pytest.mark.parametrize("how", UNCLEAR)
def test_a_dataset_json_that_is_not_clear_is_refused(named, how):
    with pytest.raises(ImageError) as caught:
        named(UNCLEAR[how])
    assert caught.value.file == "dataset.json" and "--channels" in caught.value.line
    found = named(UNCLEAR[how], order=["FLAIR", "t1"])  # a person may say it in its place
    assert found.channels == ("flair", "t1") and found.source == "--channels"


def test_a_dataset_json_too_large_is_refused(named, monkeypatch):
    from medseg_diff import files

    monkeypatch.setattr(files, "LARGEST_JSON", 10)
    with pytest.raises(ImageError, match=r"dataset.json: cannot be read as JSON"):
        named({"modality": MSD})


def test_one_that_is_no_file_is_no_dataset_json(named, tmp_path):
    named({"modality": MSD}, place="imagesTr")
    (tmp_path / "TASK" / "imagesTr" / "CASE" / "dataset.json").mkdir()
    assert named(None).source == "dataset.json of imagesTr"


def test_words_of_the_command_line_that_contradict_it_are_refused(named):
    assert named({"modality": MSD}, order=["flair", "t1", "T1-Gd", "t2w"]).source == "--channels"
    assert named({"modality": {"0": "MRI", "1": "T2"}}, order=["t1", "t2"]).channels == ("t1", "t2")
    for order in (["t1", "flair", "t1ce", "t2"], ["adc", "t1", "t1ce", "t2"]):
        with pytest.raises(UsageError, match=f"channel 0 is {order[0]} by --channels, but FLAIR by dataset.json"):
            named({"modality": MSD}, order=order)


def test_a_channel_named_twice_is_refused_where_it_is_needed(named):
    facts = {"modality": {"0": "T1", "1": "T1w", "2": "T2"}}
    with pytest.raises(ImageError, match=r"dataset.json of TASK names T1, T1w, T2: t1 twice"):
        named(facts)
    assert named(facts, channels=("t2",)).channels == ("t1", "t1", "t2")
