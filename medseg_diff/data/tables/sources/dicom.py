"""A mixed export of DICOM files → rows of a manifest: series sorted by their headers into one folder a channel.

A case is a study of a patient. Cases, patients and slices are numbered: nothing that a header says of a person reaches the
table, a folder's name or a message. The slices themselves are the exported files, unchanged.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg_diff.console import bar
from medseg_diff.data.tables.case import CHANNEL_COLUMNS
from medseg_diff.data.tables.sources.collect import Cases, Row, Wanted, is_inside, place_file, walk
from medseg_diff.data.tables.sources.dicom_series import Header, Series, read_headers, sorted_series
from medseg_diff.errors import ImageError, MedsegError, UsageError

logger = logging.getLogger(__name__)


def rows(folder: Path, wanted: Wanted) -> list[Row]:
    """One row for every study with a series of a channel; the series are laid out below `wanted.into`.

    Raises: UsageError for other channels; ImageError where a study lacks a channel or two of its series could be one,
    Problems of them; EnvironmentFault without pydicom.
    """
    if unknown := [channel for channel in wanted.channels if channel not in CHANNEL_COLUMNS]:
        raise UsageError(
            f"DICOM headers do not identify a series as {unknown[0]}", fix=f"choose from {', '.join(CHANNEL_COLUMNS)}"
        )
    left_out = Counter[str]()
    series = sorted_series(_headers(folder, left_out))
    studies: dict[tuple[str, str], list[tuple[str, Series]]] = {}
    for each in series:
        channel = None if each.fault else each.channel
        if channel is None:
            left_out[f"series {each.fault or 'not recognised as a channel'}"] += 1
        else:
            studies.setdefault((each.first.patient, each.first.study), []).append((channel, each))
    cases, taken, patients = Cases(folder, wanted), dict[Path, Series](), dict[str, str]()
    for number, (patient, study) in enumerate(sorted(studies, key=_drawn), start=1):
        case = f"case_{number:03}"
        chosen = _one_each(studies[patient, study], wanted, case, cases.problems)
        paths = {channel: wanted.into / case / channel for channel in _in_order(chosen, wanted)}
        taken |= {path: chosen[channel] for channel, path in paths.items()}
        cases.add(case, paths, patients.setdefault(patient, f"patient_{len(patients) + 1:03}"))
    _say(len(series), left_out)
    table = cases.rows(
        nothing="no DICOM series of a brain recognised as t1, t1ce, t2 or flair", fix="check the folder, or --channels"
    )
    _lay_out({cell: taken[cell] for row in table for cell in row.values() if isinstance(cell, Path)})
    logger.info(
        "cases are numbered; the DICOM files in %s are as exported, with everything in their headers", wanted.into.name
    )
    if any(_on_several_grids(row, taken) for row in table):
        logger.info(
            "series of one case are on different grids: pass --resample-to with the channel whose grid all should have"
        )
    return table


def _on_several_grids(row: Row, taken: Mapping[Path, Series]) -> bool:
    return (
        len({(taken[cell].first.part[:3], len(taken[cell].slices)) for cell in row.values() if isinstance(cell, Path)})
        > 1
    )


def _headers(folder: Path, left_out: Counter[str]) -> list[Header]:
    """The headers of the images; `left_out` counts other files."""
    files = [path for _, _, paths in walk(folder) for path in paths if path.name != "DICOMDIR"]
    usable = [path for path in files if path.is_file() and is_inside(path, folder)]
    headers = []
    with bar("reading headers", len(usable)) as advance:
        for header in read_headers(usable):
            headers += [header] if header else []
            advance()
    left_out["files that are not DICOM images"] = len(files) - len(headers)
    return headers


def _drawn(study: tuple[str, str]) -> str:
    """An order that neither names nor dates tell."""
    return hashlib.sha256("\0".join(study).encode()).hexdigest()


def _one_each(
    found: Sequence[tuple[str, Series]], wanted: Wanted, case: str, problems: list[MedsegError]
) -> dict[str, Series]:
    """The series of each channel: the one that is called for, or else that of most slices, which is said; of two with as
    many, none, and `problems` grows."""
    channels: dict[str, list[Series]] = {}
    for channel, series in found:
        channels.setdefault(channel, []).append(series)
    chosen = {}
    for channel, several in channels.items():
        if wanted.channels and channel not in wanted.channels:
            continue
        left = several
        for word in wanted.prefer:
            left = [series for series in left if series.says(word)] or left
        most = max(len(series.slices) for series in left)
        longest = [series for series in left if len(series.slices) == most]
        if len(longest) > 1:
            numbers = " and ".join(sorted(series.first.number or "?" for series in longest))
            found_ = f"series {numbers}, of {most} slices each, could all be {channel}"
            fix = "choose with --prefer and a word of the description or the number of a series"
            problems.append(ImageError(found_, fix=fix, case=case))
        elif len(left) > 1:
            others = sorted(len(series.slices) for series in left if series is not longest[0])
            logger.info(
                "[%s] %s is the series of %d slices, not that of %s", case, channel, most, ", ".join(map(str, others))
            )
        chosen[channel] = longest[0]
    return chosen


def _in_order(chosen: dict[str, Series], wanted: Wanted) -> list[str]:
    return [channel for channel in wanted.channels or CHANNEL_COLUMNS if channel in chosen]


def _lay_out(series: dict[Path, Series]) -> None:
    with bar("laying out series", len(series)) as advance:
        for place, each in series.items():
            for number, header in enumerate(each.slices, start=1):
                place_file(header.path, place / f"{number:04}.dcm")
            advance()


def _say(series: int, left_out: Counter[str]) -> None:
    parts = [f"{count} {what}" for what, count in left_out.most_common() if count]
    logger.info("%d series%s", series, f"; left out: {', '.join(parts)}" if parts else "")
