"""A BraTS folder of any year from 2017 to 2023 → rows of a manifest.

The names differ (`Brats18_…_t1ce`, `BraTS2021_00006_t1ce`, `BraTS-GLI-00000-000-t1c`, or plain `t1ce` in a folder of
the case), and so do the labels: the enhancing tumour is 4 up to 2021 and 3 from 2023. Recipes group both.
"""

import os
import re
from pathlib import Path

from medseg_diff.data.tables.inputs import case_name, recognise
from medseg_diff.data.tables.manifest import CHANNEL_COLUMNS
from medseg_diff.errors import ImageError, raise_all

FOLLOW_UP = (
    re.compile(r"(?P<patient>BraTS-[A-Z]+-\d+)-\d{3}", re.IGNORECASE),  # 2023: …-00000-000, …-00000-001
    re.compile(r"(?P<patient>Brats1[789]_\w+)_\d+", re.IGNORECASE),  # 2017 to 2019: …_TCIA01_147_1
)


def rows(folder: Path) -> list[dict[str, str]]:
    """One row for every case below `folder`, in order of name; paths relative to it.

    Raises: ImageError where a case lacks a channel or nothing is found, Problems of them.
    """
    found, problems = [], []
    for place, _, names in os.walk(folder):
        cases: dict[str, dict[str, Path]] = {}
        for item in recognise([Path(place) / name for name in names], CHANNEL_COLUMNS, numbered=False):
            cases.setdefault(item.prefix or Path(place).name, {})[item.channel] = item.path
        for name, files in cases.items():
            missing = [channel for channel in CHANNEL_COLUMNS if channel not in files]
            if missing:
                fix = "complete its download, or remove the case"
                problems.append(ImageError(f"{', '.join(missing)} not found", fix=fix, case=case_name(name)))
                continue
            columns = [column for column in (*CHANNEL_COLUMNS, "seg") if column in files]
            paths = {column: files[column].relative_to(folder).as_posix() for column in columns}
            found.append({"case": case_name(name), "patient": patient_of(case_name(name)), **paths})
    raise_all(sorted(problems, key=lambda problem: problem.line))
    if not found:
        raise ImageError(f"no BraTS case below {folder.name}", fix="give the folder that holds the case folders")
    return sorted(found, key=lambda row: row["case"])


def patient_of(case: str) -> str:
    """The patient of a case: BraTS numbers the visits of one patient at the end of the name."""
    matches = (pattern.fullmatch(case) for pattern in FOLLOW_UP)
    return next((match["patient"] for match in matches if match), case)
