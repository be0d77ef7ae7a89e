"""A BraTS folder of any year from 2017 to 2023 → rows of a manifest.

The names differ (`Brats18_…_t1ce`, `BraTS2021_00006_t1ce`, `BraTS-GLI-00000-000-t1c`, or plain `t1ce` in a folder of
the case), and so do the labels: the enhancing tumour is 4 up to 2021 and 3 from 2023. The recipes' regions group both.
"""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from medseg_diff.data.tables.case import CHANNEL_COLUMNS
from medseg_diff.data.tables.inputs import Found, case_name, one_each, recognise, stem_of
from medseg_diff.errors import ImageError, raise_all

NECROSIS, OEDEMA, ENHANCING = 1, 2, 4  # labels of 2017 to 2021; from 2023 enhancing is 3

FOLLOW_UP = (
    re.compile(r"(?P<patient>BraTS-[A-Z]+-\d+)-\d{3}", re.IGNORECASE),  # 2023: …-00000-000, …-00000-001
    re.compile(r"(?P<patient>Brats1[789]_\w+)_\d+", re.IGNORECASE),  # 2017 to 2019: …_TCIA01_147_1
)

SHOWN = 5

logger = logging.getLogger(__name__)


def rows(folder: Path) -> list[dict[str, str]]:
    """One row for every case below `folder`, in order of name; paths relative to it. Folders that look like a case's but
    hold nothing known are named in a warning.

    Raises: ImageError where a case lacks a channel or has one twice or nothing is found, Problems of them.
    """
    table, problems, unknown = [], [], []
    for place, inside, names in os.walk(folder):
        cases: dict[str, list[Found]] = {}
        for item in recognise([Path(place) / name for name in names], CHANNEL_COLUMNS):
            cases.setdefault(item.prefix or Path(place).name, []).append(item)
        for name, found in cases.items():
            try:
                table.append(_row(case_name(name), found, folder))
            except ImageError as error:
                problems.append(error)
        if not cases and (not inside or any(stem_of(Path(name)) for name in names)):
            unknown.append(Path(place).relative_to(folder).as_posix())
    raise_all(sorted(problems, key=lambda problem: problem.line))
    if not table:
        raise ImageError(f"no BraTS case below {folder.name}", fix="give the folder that holds the case folders")
    if unknown:
        some = ", ".join(sorted(unknown)[:SHOWN]) + (" …" if len(unknown) > SHOWN else "")
        logger.warning("%d folders hold no image known by its name: %s", len(unknown), some)
    return sorted(table, key=lambda row: row["case"])


def _row(case: str, found: Sequence[Found], folder: Path) -> dict[str, str]:
    """Raises: ImageError."""
    files = one_each(found, case=case, fix="keep one of them")
    if missing := [channel for channel in CHANNEL_COLUMNS if channel not in files]:
        fix = "complete its download, or remove the case"
        raise ImageError(f"{', '.join(missing)} not found", fix=fix, case=case)
    columns = [column for column in (*CHANNEL_COLUMNS, "seg") if column in files]
    paths = {column: files[column].relative_to(folder).as_posix() for column in columns}
    return {"case": case, "patient": patient_of(case)} | paths


def patient_of(case: str) -> str:
    """The patient of a case: BraTS numbers the visits of one patient at the end of the name."""
    matches = (pattern.fullmatch(case) for pattern in FOLLOW_UP)
    return next((match["patient"] for match in matches if match), case)
