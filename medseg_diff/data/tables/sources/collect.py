"""What all sources share: what is wanted of a dataset, its files in order, and its cases, each complete or refused."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from medseg_diff import files
from medseg_diff.data.tables.case import CHANNEL_COLUMNS
from medseg_diff.data.tables.inputs import Found, one_each
from medseg_diff.errors import ImageError, MedsegError, counted, raise_all

Item = TypeVar("Item")
Row = dict[str, str | Path]  # one of a table of cases: text, and the files that it names as absolute paths

FOLLOW_UP = (
    re.compile(r"(?P<patient>BraTS-[A-Z]+-\d+)-\d{3}", re.IGNORECASE),  # 2023: …-00000-000, …-00000-001
    re.compile(r"(?P<patient>Brats1[789]_\w+)_\d+", re.IGNORECASE),  # 2017 to 2019: …_TCIA01_147_1
    re.compile(r"(?P<patient>sub-[a-z0-9]+)_ses-[a-z0-9]+.*", re.IGNORECASE),  # BIDS
)
SHOWN = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What of a dataset is to come into its table, and what decides where it is not clear.

    Every case must have `channels` (none: what the source itself asks for). The names of masks end in the word `seg`.
    Of several images of one channel that one is taken whose name holds one of `prefer`. `covariates` is a table of them.
    With `skip_incomplete` cases that lack a channel are left out. `into` is a folder that the source may fill with images.
    """

    channels: tuple[str, ...] = ()
    seg: str = ""
    prefer: tuple[str, ...] = ()
    covariates: Path | None = None
    skip_incomplete: bool = False
    into: Path = Path()


class Cases:
    """The cases of a dataset as they are found; `rows` are those that are complete, if nothing is at fault.

    Each must have the channels that are wanted, or `expected`, or else those that any other has.
    """

    def __init__(self, folder: Path, wanted: Wanted, expected: Sequence[str] = ()) -> None:
        self.folder, self.wanted, self.expected = folder, wanted, tuple(expected)
        self.problems: list[MedsegError] = []
        self._rows: list[Row] = []

    def add(self, case: str, files: Mapping[str, Path], patient: str = "", **facts: str) -> None:
        """A case with its files by column, and what else is known of it, such as its split."""
        for path in files.values():
            if not is_inside(path, self.folder) and not is_inside(path, self.wanted.into):
                fix = "put the file itself there, or give a folder that holds both"
                found = f"is a link that points outside {self.folder.name}"
                self.problems.append(ImageError(found, fix=fix, case=case, file=path.name))
        known = {"case": case, "patient": patient or patient_of(case)} | {k: v for k, v in facts.items() if v}
        self._rows.append(known | dict(files))

    def rows(self, *, nothing: str, fix: str) -> list[Row]:
        """In order of name, each with the channels that all must have, besides other columns.

        Raises: ImageError where there is no case: `nothing` was found below the folder; Problems of all cases.
        """
        channels = self._channels()
        complete = [row for row in self._rows if not missing_of(row, channels)]
        incomplete = [row for row in self._rows if missing_of(row, channels)]
        if not self.wanted.skip_incomplete:
            self.problems += self._refused(incomplete, channels)
        raise_all(sorted(self.problems, key=lambda problem: problem.line))
        if incomplete:
            names = in_short([str(row["case"]) for row in incomplete])
            logger.warning("left out for lack of a channel: %s (%s)", counted(len(incomplete), "case"), names)
        if not complete:
            raise ImageError(f"{nothing} below {self.folder.name}", fix=fix)
        kept = sorted(complete, key=lambda row: str(row["case"]))
        return [{key: row[key] for key in row if key not in channels_of(row) or key in channels} for row in kept]

    def _channels(self) -> tuple[str, ...]:
        anywhere = {channel for row in self._rows for channel in channels_of(row)}
        known = [channel for channel in CHANNEL_COLUMNS if channel in anywhere]
        return self.wanted.channels or self.expected or (*known, *sorted(anywhere - set(known)))

    def _refused(self, rows: Sequence[Row], channels: Sequence[str]) -> Iterator[ImageError]:
        """Cases lack a channel: what there is for each, or without it."""
        absent = {channel for row in rows for channel in missing_of(row, channels)}
        without = ",".join(channel for channel in channels if channel not in absent)
        fix = f"do without it: --channels {without} (and train with channels=[{without}]); or " if without else ""
        fix += "complete its download, or leave it out with --skip-incomplete"
        for row in rows:
            yield ImageError(f"{', '.join(missing_of(row, channels))} not found", fix=fix, case=str(row["case"]))


def channels_of(row: Row) -> list[str]:
    """The channels of a row: the volumes of its 4D file, or its columns that name an image."""
    if volumes := row.get("stack_channels"):
        return str(volumes).split(",")
    return [column for column, cell in row.items() if isinstance(cell, Path) and column != "seg"]


def missing_of(row: Row, channels: Sequence[str]) -> list[str]:
    """Those of `channels` that a row lacks."""
    return [channel for channel in channels if channel not in channels_of(row)]


def chosen(found: Iterable[Found], wanted: Wanted, case: str) -> dict[str, Path]:
    """The file of each channel; where it has several, the one whose name holds a word of `wanted.prefer`.

    Raises: ImageError where that leaves more than one.
    """
    files: dict[str, list[Path]] = {}
    for item in found:
        files.setdefault(item.channel, []).append(item.path)
    fix = "keep one of them, or choose with --prefer and a word of its name"
    return {
        channel: one_each(
            [Found(channel, "", path) for path in preferred(paths, wanted.prefer, lambda path: path.name)],
            case=case,
            fix=fix,
        )[channel]
        for channel, paths in files.items()
    }


def preferred(items: Sequence[Item], words: Sequence[str], text_of: Callable[[Item], str]) -> list[Item]:
    """Those of several items whose text holds each of the words that some of them hold, in upper or lower case."""
    left = list(items)
    for word in words:
        left = [item for item in left if word.lower() in text_of(item).lower()] or left
    return left


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[Path]]]:
    """Every folder from `folder` down with the names of its folders and its files, in order of name; nothing hidden, no
    folder behind a link, and none of what macOS adds to an archive."""
    for place, inside, names in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith(".") and name != "__MACOSX")
        yield Path(place), inside, [Path(place) / name for name in sorted(names) if not name.startswith(".")]


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file lies below a folder, links followed."""
    return path.resolve().is_relative_to(folder.resolve())


def place_file(source: Path, target: Path) -> None:
    """A second name for a file, or where the disk gives none a copy, whole or not at all. Raises: EnvironmentFault."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source.resolve(), target)
    except OSError:
        with files.whole_file(target) as temporary:
            shutil.copyfile(source, temporary)


def patient_of(case: str) -> str:
    """The patient of a case: BraTS numbers the visits of one patient at the end of the name, BIDS calls them `ses-`."""
    matches = (pattern.fullmatch(case) for pattern in FOLLOW_UP)
    return next((match["patient"] for match in matches if match), case)


def in_short(names: Sequence[str]) -> str:
    """The first few names in order, and that there are more."""
    return ", ".join(sorted(names)[:SHOWN]) + (" …" if len(names) > SHOWN else "")
