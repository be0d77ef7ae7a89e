"""What channels are called: the words that datasets use, and who names channels that are only numbered; never a guess."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_diff.data.tables.table import MEANT
from medseg_diff.errors import ImageError, UsageError
from medseg_diff.files import read_json

# Words for a channel in any case, without spaces, `-` and `_`.
SYNONYMS = {
    "t1": ("t1", "t1n", "t1w", "t1weighted"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post", "t1contrast", "t1postcontrast"),
    "t2": ("t2", "t2w", "t2weighted"),
    "flair": ("flair", "t2f", "t2flair"),
}
DATASET, LEVELS = "dataset.json", 3  # looked for beside the file and in the two folders above: imagesTr/CASE/FILE
KEYS = ("channel_names", "modality")  # nnU-Net 2; nnU-Net 1 and the Medical Segmentation Decathlon
NUMBER = re.compile(r"\d{1,4}", re.ASCII)
NAME_THEM = f"name them under channel_names in {DATASET}, or by --channels in the order of their numbers"


@dataclass(frozen=True)
class Names:
    """What channel 0, 1 … of a case is: its `words` as `source` has them, and the channels that they mean (of an unknown
    word, the word itself)."""

    channels: tuple[str, ...]
    words: tuple[str, ...]
    source: str

    @property
    def said(self) -> str:
        """`dataset.json of Task01 names FLAIR, T1w`."""
        return f"{self.source} names {', '.join(self.words)}"


def known_channels(channels: Iterable[str]) -> tuple[str, ...]:
    """Every channel that a word may mean: `channels`, then the others of the table."""
    return tuple(dict.fromkeys([*channels, *SYNONYMS]))


def channel_called(word: str, channels: Iterable[str]) -> str | None:
    """The one of `channels` that a word means."""
    bare = _bare(word)
    return next((channel for channel in channels if bare in SYNONYMS.get(channel, (_bare(channel),))), None)


def column_of(word: str) -> str:
    """The column for a channel that is called so: the channel that the word means, else the word as a plain name.

    Raises: UsageError where nothing is left of it, or the column has another meaning.
    """
    known = channel_called(word, SYNONYMS)
    column = known or re.sub(r"\W+", "_", word.lower().replace("*", "star")).strip("_")
    if (
        not column
        or (known is None and channel_called(column, SYNONYMS))
        or column in MEANT
        or re.fullmatch(r"seg_\d+|subject|id", column)
    ):
        raise UsageError(
            f"a channel cannot be called {word[:40]!a}", fix="give it the name of a sequence, such as t1 or swi"
        )
    return column


def names_of_numbers(path: Path, channels: Sequence[str], order: Sequence[str]) -> Names:
    """What the numbered channels beside `path`, or the volumes in it, are called by `order` or by a dataset.json.

    Raises: UsageError where the two contradict each other; ImageError where none names them, one of `channels` is named
    twice, or the dataset.json is at fault and there is no `order`.
    """
    known, dataset = known_channels(channels), dataset_near(path)
    try:
        stated = _words_in(dataset) if dataset else ()
    except ImageError:
        if not order:
            raise
        stated = ()
    for number, (given, read) in enumerate(zip(order, stated, strict=False)):
        meant = channel_called(read, known)
        if meant and meant != channel_called(given, known):
            found = f"channel {number} is {given} by --channels, but {read} by {DATASET}"
            raise UsageError(found, fix="correct the one that is wrong", file=path.name)
    words = tuple(order) or stated
    if not words:
        found = f"its channels are only numbered, and no {DATASET} says which is which"
        raise ImageError(found, fix=NAME_THEM, file=path.name)
    source = "--channels" if order or dataset is None else f"{DATASET} of {dataset.parent.name}"
    names = Names(tuple(channel_called(word, known) or word for word in words), words, source)
    if twice := [channel for channel in channels if names.channels.count(channel) > 1]:
        raise ImageError(f"{names.said}: {twice[0]} twice", fix=NAME_THEM, file=path.name)
    return names


def dataset_near(path: Path) -> Path | None:
    """The nearest dataset.json; links are not followed, which may lead out of a dataset that is made of them."""
    folders = Path(os.path.abspath(path)).parents[:LEVELS]  # noqa: PTH100
    return next((folder / DATASET for folder in folders if (folder / DATASET).is_file()), None)


def _bare(word: str) -> str:
    return re.sub("[ _-]", "", word.lower())


def _words_in(dataset: Path) -> tuple[str, ...]:
    """The names of channel 0, 1 …, none where the file names no channels. Raises: ImageError where it is not clear."""
    fix = "correct it, or pass --channels in the order of the numbers"
    try:
        facts = read_json(dataset)
    except (OSError, ValueError):
        raise ImageError("cannot be read as JSON", fix=fix, file=DATASET) from None
    if not isinstance(facts, dict):
        raise ImageError("is not a JSON object", fix=fix, file=DATASET)
    stated = {key: _by_number(facts[key]) for key in KEYS if key in facts}
    for key, words in stated.items():
        if not words:
            raise ImageError(f"its {key} do not name channel 0, 1 … each once", fix=fix, file=DATASET)
    if len(set(stated.values())) > 1:
        raise ImageError(f"its {' and '.join(stated)} differ", fix=fix, file=DATASET)
    return next(iter(stated.values()), ())


def _by_number(stated: object) -> tuple[str, ...]:
    """Names in the order of their numbers, which are either all keys or all values; empty where they are neither."""
    if not isinstance(stated, dict) or not all(
        isinstance(value, str) or type(value) is int for value in stated.values()
    ):
        return ()
    pairs = [(key, str(value)) for key, value in stated.items()]
    for numbered in (pairs, [(value, key) for key, value in pairs]):
        names = {int(number): name for number, name in numbered if NUMBER.fullmatch(number)}
        real = all(name.strip() and not NUMBER.fullmatch(name) for name in names.values())
        if real and sorted(names) == list(range(len(pairs))):
            return tuple(names[number] for number in sorted(names))
    return ()
