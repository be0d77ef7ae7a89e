"""A table of UK Biobank's fields → covariates of each visit: age and sex under our names, any other field by its number.

Columns are called `21003-2.0` in downloads of old, `f.21003.2.0` in R, `p21003_i2` on the Research Analysis Platform.
"""

import csv
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medseg_diff.data.tables.channel_names import column_of
from medseg_diff.data.tables.rows import FORMULA
from medseg_diff.data.tables.sources.collect import Row
from medseg_diff.errors import ManifestError, UsageError

FORMS = (
    re.compile(r"(?P<field>\d+)-(?P<visit>\d+)\.(?P<number>\d+)", re.ASCII),
    re.compile(r"f\.(?P<field>\d+)\.(?P<visit>\d+)\.(?P<number>\d+)", re.ASCII),
    re.compile(r"(participant\.)?p(?P<field>\d+)(_i(?P<visit>\d+))?(_a(?P<number>\d+))?", re.ASCII),
)
IDS = ("eid", "f.eid", "n_eid", "participant.eid")
NAMED = {"31": "sex", "21003": "age_years"}
SEXES = {"0": "F", "1": "M", "female": "F", "male": "M"}
MOST = 400  # columns; a table of cases has at most 500

logger = logging.getLogger(__name__)


class _Column(NamedTuple):
    """Where a covariate stands, and at which visit it was taken (none: once for all)."""

    place: int
    name: str
    visit: str | None


def covariates_of(path: Path, rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Covariates by case; of a field that was taken at several visits, the value of the case's own.

    Raises: UsageError where there is no such file, ManifestError where it is no table of participants.
    """
    wanted = {str(row["patient"]) for row in rows}
    try:
        columns, lines = _read(path, wanted)
    except FileNotFoundError:
        raise UsageError("no such table", fix="check --covariates", file=path.name) from None
    except (OSError, csv.Error) as error:
        raise ManifestError(f"cannot be read as a table ({error})", fix="save it as CSV", file=path.name) from None
    if len({column.name for column in columns}) > MOST:
        raise ManifestError(f"has more than {MOST} columns", fix="keep those that are needed", file=path.name)
    if absent := len(wanted) - len(lines):
        logger.warning("%s: %d participants are not in it", path.name, absent)
    visits = {str(row["case"]): (str(row["patient"]), str(row["case"]).rpartition("_")[2]) for row in rows}
    return {case: _of_visit(lines.get(eid, ()), columns, visit) for case, (eid, visit) in visits.items()}


def _read(path: Path, wanted: set[str]) -> tuple[list[_Column], dict[str, list[str]]]:
    """The columns that are covariates, and the lines of those who are wanted. Raises: OSError, csv.Error, ManifestError."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        head = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=max(",;\t", key=head.count))
        header = [name.strip().lower() for name in next(reader, [])]
        ids = [place for place, name in enumerate(header) if name in IDS]
        if not ids:
            raise ManifestError("has no column eid", fix="name the column of participants eid", file=path.name)
        lines = {line[ids[0]].strip(): line for line in reader if len(line) > ids[0] and line[ids[0]].strip() in wanted}
    return _columns(header, path.name), lines


def _columns(header: Sequence[str], file: str) -> list[_Column]:
    columns, visits = list[_Column](), dict[str, set[str]]()
    for place, name in enumerate(header):
        match = next((found for form in FORMS if (found := form.fullmatch(name))), None)
        if match:
            number = match["number"] or "0"
            called = NAMED.get(match["field"]) or f"field_{match['field']}" + (f"_{number}" if number != "0" else "")
            visits.setdefault(called, set()).add(match["visit"] or "")
            columns.append(_Column(place, called, match["visit"]))
        elif name and name not in IDS:
            try:
                columns.append(_Column(place, column_of(name), None))
            except UsageError:
                raise ManifestError(
                    f"column `{name[:40]}` already means something else", fix="rename it", file=file
                ) from None
    first_only = {name for name, taken in visits.items() if taken == {"0"}}  # such as sex, which is asked once
    if others := sorted(first_only - set(NAMED.values())):
        logger.warning("%s: measured at the first visit only, long before the scan: %s", file, ", ".join(others[:5]))
    return [column._replace(visit=None) if column.name in first_only else column for column in columns]


def _of_visit(line: Sequence[str], columns: Sequence[_Column], visit: str) -> dict[str, str]:
    found = {}
    for column in columns:
        text = line[column.place].strip() if column.place < len(line) else ""
        if column.name == "sex":
            text = SEXES.get(text.lower(), "")
        if column.visit in (None, visit) and text and text.isprintable() and not _computes(text):
            found[column.name] = text
    return found


def _computes(text: str) -> bool:
    """Whether a spreadsheet would take the text for a formula, and a table of cases refuse it."""
    return bool(FORMULA.match(text)) and not re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", text, re.IGNORECASE)
