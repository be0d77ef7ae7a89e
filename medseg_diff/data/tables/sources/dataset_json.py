"""The dataset.json of nnU-Net and of the Medical Segmentation Decathlon: what channels and labels are called."""

import logging
import re
from pathlib import Path
from typing import Any

from medseg_diff.data.tables.channel_names import DATASET, column_of, names_of_numbers
from medseg_diff.errors import ImageError, UsageError
from medseg_diff.files import read_facts

LONGEST_NAME = 40  # letters of a region's, as in a recipe

logger = logging.getLogger(__name__)


def columns_by_number(folder: Path) -> tuple[str, ...]:
    """The columns for channel 0, 1 … of the dataset in `folder`; a word that is not known is a column of its own, and said.

    Raises: ImageError where there is no dataset.json, or it does not name them clearly.
    """
    if not (folder / DATASET).is_file():
        inside = sorted(path.name for path in folder.iterdir() if (path / DATASET).is_file())
        fix = f"give the folder that holds it{', such as ' + inside[0] if inside else ''}"
        raise ImageError(f"there is no {DATASET} in {folder.name}", fix=fix)
    fix = f"correct the channel names in {DATASET}"
    try:
        words = names_of_numbers(folder / DATASET, (), ()).words
        columns = tuple(column_of(word) for word in words)
    except (ImageError, UsageError) as error:
        raise ImageError(error.found, fix=fix, file=DATASET) from None
    if twice := next((column for column in columns if columns.count(column) > 1), ""):
        raise ImageError(f"two channels are {twice}", fix=fix, file=DATASET)
    named = ", ".join(f"{word} (column {column})" for word, column in zip(words, columns, strict=True))
    logger.info("%s names the channels %s", DATASET, named)
    return columns


def say_labels(folder: Path) -> None:
    """The labels and regions that the dataset.json names, for the recipe's `regions`."""
    named, regions, ignored = _labels(read_facts(folder / DATASET).get("labels"))
    if regions:  # beside those of several labels, a single one is a region too
        named, regions = [], [*regions, *((name, [label]) for label, name in named)]
    parts = [f"labels {', '.join(f'{label} {name}' for label, name in named)}"] if named else []
    if regions:
        listed = ", ".join(f"{_plain(name)}: {labels}" for name, labels in regions)
        parts += [f"regions {{{listed}}}, which training takes as regions={{…}}"]
    if ignored is not None:
        parts += [
            f"label {ignored} where the truth is unknown: training needs other_labels=[{ignored}], and treats it as healthy"
        ]
    if parts:
        logger.info("%s names the %s", DATASET, "; the ".join(parts))


def regions_named(dataset: Path) -> dict[str, tuple[int, ...]]:
    """The labels of each region that a dataset.json names, in its order and under plain names; none where it names none.

    Background and what is to be ignored are no regions. Raises: UsageError where two names come out alike.
    """
    named, regions, _ = _labels(read_facts(dataset).get("labels"))
    every = [*regions, *((name, [label]) for label, name in named)]
    found: dict[str, tuple[int, ...]] = {}
    for name, labels in every:
        region = _plain(name)[:LONGEST_NAME] or "region"
        region = region if region[0].isalpha() else f"region_{region}"
        if region in found:
            raise UsageError(f"two of its labels are called {region}", fix=f"rename one in {DATASET}", file=DATASET)
        found[region] = tuple(label for label in labels if label)
    return {region: labels for region, labels in found.items() if labels}


def _labels(stated: Any) -> tuple[list[tuple[int, str]], list[tuple[str, list[int]]], int | None]:
    """Single labels with their names, regions of several labels, and the label to ignore; background is none of them."""
    named, regions, ignored = list[tuple[int, str]](), list[tuple[str, list[int]]](), None
    for key, value in stated.items() if isinstance(stated, dict) else ():
        name, labels = (value, key) if str(key).isdecimal() and isinstance(value, str) else (key, value)
        if isinstance(labels, list) and all(type(label) is int for label in labels):
            regions.append((str(name), labels))
        elif str(labels).isdecimal() and int(labels):
            label = int(labels)
            ignored = label if name == "ignore" else ignored
            named += [(label, str(name))] if name != "ignore" else []
    return sorted(named), regions, ignored


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_")
