"""Any folder of folders → rows of a manifest, by the words that the names of its images end in.

A folder that holds images is a case. Where folders stand in folders, those right below the dataset are the patients, so
that their visits stay in one split. Where several cases lie in one folder, what their names begin with tells them apart.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from medseg_diff.data.tables.inputs import Found, case_name, recognise
from medseg_diff.data.tables.sources.collect import Cases, Row, Wanted, chosen, in_short, patient_of, walk
from medseg_diff.errors import ImageError, UsageError

logger = logging.getLogger(__name__)


def rows(folder: Path, wanted: Wanted) -> list[Row]:
    """One row for every case below `folder`, in order of name.

    Raises: UsageError without channels; ImageError where a case lacks one or has one twice or nothing is found, Problems
    of them.
    """
    if not wanted.channels:
        raise UsageError(
            "--source folders does not know the channels by itself", fix="name them, as in --channels t1,flair"
        )
    mask = wanted.seg or "seg"
    cases, patients = Cases(folder, wanted), set[str]()
    for place, _, files in walk(folder):
        items = recognise(files, (*wanted.channels, mask))
        found = [item for item in items if item.channel in (*wanted.channels, mask)]
        for name, members in _apart(found, wanted.channels, always=place == folder).items():
            parts = [*place.relative_to(folder).parts, *([name] if name else [])]
            case = case_name("_".join(parts or [folder.name]))
            try:
                images = chosen(members, wanted, case)
            except ImageError as error:
                cases.problems.append(error)
                continue
            columns = {channel: images[channel] for channel in wanted.channels if channel in images}
            seg = {"seg": images[mask]} if mask in images else {}
            patient = patient_of(case_name(parts[-1])) if len(parts) < 2 else case_name(parts[0])
            patients |= {parts[0]} if len(parts) > 1 else set()
            cases.add(case, columns | seg, patient)
    table = cases.rows(nothing="no image with such a name", fix="check --channels against the names of the files")
    if patients:
        said = "%d folders are taken as patients: %s; if they are groups of patients, prepare each group separately"
        logger.info(said, len(patients), in_short(sorted(patients)))
    if not any("seg" in row for row in table):
        logger.info("no file is called %s: the table has no references (--seg names them)", mask)
    return table


def _apart(found: Sequence[Found], channels: Sequence[str], *, always: bool) -> dict[str, list[Found]]:
    """The cases of one folder by the beginnings of their files' names: one without a name, unless there are several that
    each have all channels; `always` where the folder is the dataset itself, whose name is no case's."""
    by_prefix: dict[str, list[Found]] = {}
    for item in found:
        by_prefix.setdefault(item.prefix, []).append(item)
    whole = [prefix for prefix, items in by_prefix.items() if {item.channel for item in items} >= set(channels)]
    if found and (always or len(whole) > 1):
        return by_prefix
    return {"": list(found)} if found else {}
