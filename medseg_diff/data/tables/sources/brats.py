"""A BraTS folder of any year from 2017 to 2023 → rows of a manifest.

The names differ (`Brats18_…_t1ce`, `BraTS2021_00006_t1ce`, `BraTS-GLI-00000-000-t1c`, or plain `t1ce` in a folder of
the case), and so do the labels: the enhancing tumour is 4 up to 2021 and 3 from 2023. The recipes' regions group both.
"""

import logging
from pathlib import Path

from medseg_diff.data.tables.case import CHANNEL_COLUMNS
from medseg_diff.data.tables.inputs import Found, case_name, recognise, stem_of
from medseg_diff.data.tables.sources.collect import Cases, Row, Wanted, chosen, in_short, walk
from medseg_diff.errors import ImageError

NECROSIS, OEDEMA, ENHANCING = 1, 2, 4  # labels of 2017 to 2021; from 2023 enhancing is 3

logger = logging.getLogger(__name__)


def rows(folder: Path, wanted: Wanted) -> list[Row]:
    """One row for every case below `folder`, in order of name. Folders that look like a case's but hold nothing known are
    named in a warning.

    Raises: ImageError where a case lacks a channel or has one twice or nothing is found, Problems of them.
    """
    cases, unknown = Cases(folder, wanted, CHANNEL_COLUMNS), []
    for place, inside, files in walk(folder):
        found: dict[str, list[Found]] = {}
        for item in recognise(files, wanted.channels or CHANNEL_COLUMNS):
            found.setdefault(item.prefix or place.name, []).append(item)
        for name, items in found.items():
            try:
                images = chosen(items, wanted, name)
            except ImageError as error:
                cases.problems.append(error)
                continue
            columns = [column for column in (*(wanted.channels or CHANNEL_COLUMNS), "seg") if column in images]
            cases.add(case_name(name), {column: images[column] for column in columns})
        if not found and (not inside or any(stem_of(path) for path in files)):
            unknown.append(place.relative_to(folder).as_posix())
    table = cases.rows(nothing="no BraTS case", fix="give the folder that holds the case folders")
    if unknown:
        logger.warning("%d folders hold no image with a known name: %s", len(unknown), in_short(unknown))
    return table
