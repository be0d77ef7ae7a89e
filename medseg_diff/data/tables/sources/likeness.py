"""Which source a folder looks like, by the few names that give each away: a hint for who named another."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from medseg_diff.data.tables.case import CHANNEL_COLUMNS
from medseg_diff.data.tables.channel_names import DATASET
from medseg_diff.data.tables.inputs import numbered, recognise
from medseg_diff.data.tables.sources.collect import walk

LOOKED_AT = 200  # folders


def looks_like(folder: Path) -> str | None:
    """The source whose mark is there, the surest first; None where there is none."""
    return next((name for name, has in MARKS.items() if has(folder)), None)


def _nnunet(folder: Path) -> bool:
    return (folder / DATASET).is_file() and bool(numbered(folder.glob("imagesTr/*")))


def _msd(folder: Path) -> bool:
    return (folder / DATASET).is_file() and (folder / "imagesTr").is_dir()


def _bids(folder: Path) -> bool:
    return any(folder.glob("sub-*/anat")) or any(folder.glob("sub-*/ses-*/anat"))


def _brats(folder: Path) -> bool:
    """A folder with all four channels by their names."""
    return any(
        {item.channel for item in recognise(files, CHANNEL_COLUMNS)} >= set(CHANNEL_COLUMNS)
        for _, _, files in islice(walk(folder), LOOKED_AT)
    )


MARKS: dict[str, Callable[[Path], bool]] = {"nnunet": _nnunet, "msd": _msd, "bids": _bids, "brats": _brats}
