"""A CSV as text: every cell as it was typed, with the line it stands in, whatever editor wrote it."""

import csv
import difflib
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medseg_diff.errors import ManifestError, MedsegError

LARGEST_TABLE = 32 * 2**20  # bytes
MOST_ROWS, MOST_COLUMNS, MOST_CELLS, LONGEST_CELL = 100_000, 500, 4_000_000, 4096
MOST_LINES = 1_000_000  # blank ones and those inside of quotes too
MOST_PROBLEMS = 1000  # then the rest of the table is not looked at
COLUMN_NAME = re.compile(r"[\w .()/%°-]{1,64}")
MISTYPED = 0.8  # how like another name a column's must be to be taken for a slip
MEANT = ("case", "patient", "split", "label", "seg", "stack", "stack_channels")

logger = logging.getLogger(__name__)


@dataclass
class Table:
    """A CSV as text: columns in lower case, rows with their line numbers, and what was wrong on the way."""

    file: str
    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]
    problems: list[MedsegError]

    def fault(self, line: int, column: str, found: str, fix: str) -> ManifestError:
        """What is wrong in a row, and in which cell where `column` names it."""
        place = f"line {line}, column {column}" if column else f"line {line}"
        return ManifestError(f"{place}: {found}", fix=fix, file=self.file)

    def add(self, line: int, cells: list[str]) -> None:
        """Take one row, or remember why not."""
        longest = max(cells, key=len)
        if len(cells) != len(self.columns):
            found = f"{len(cells)} cells where the header has {len(self.columns)}"
            self.problems.append(self.fault(line, "", found, "check the separators and quotes of that line"))
        elif len(longest) > LONGEST_CELL:
            column, found = self.columns[cells.index(longest)], f"a cell with {len(longest):,} characters"
            self.problems.append(self.fault(line, column, found, "check the quotes of that line"))
        else:
            self.rows.append((line, dict(zip(self.columns, cells, strict=True))))


def read_table(path: Path) -> Table:
    """Read a CSV with commas, semicolons or tabs, in UTF-8 or UTF-16. Raises: ManifestError where it is none."""
    try:
        (_, header), *lines = _cells_of(_text_of(path))
        table = Table(path.name, _checked_columns([name.lower() for name in header], path.name), [], [])
    except ManifestError as error:
        raise ManifestError(error.found, fix=error.fix, file=path.name) from None
    for line, cells in lines:
        table.add(line, cells)
        if len(table.problems) >= MOST_PROBLEMS:
            break
    return table


def _checked_columns(columns: list[str], file: str) -> list[str]:
    """The header, the column of case names called `case`.

    Refused are columns that cannot be told apart, and one that is almost one with a meaning: a split that nobody reads
    would be leakage. Raises: ManifestError without its file.
    """
    names = [name for name in columns if name in ("case", "subject", "id")]
    if not names:
        found = f"has no column `case` (found: {', '.join(columns)[:200]})"
        raise ManifestError(found, fix="name the column of unique case names `case`")
    if "case" not in names:
        logger.info("%s: column `%s` is read as `case`", file, names[0])
        columns[columns.index(names[0])] = "case"
    for name in columns:
        if name and (not COLUMN_NAME.fullmatch(name) or not name[0].isalnum()):
            fix = "use up to 64 letters, digits, spaces, `_`, `.`, `-`, a letter or digit first"
            raise ManifestError(f"the column name {name[:70]!a} is not plain text", fix=fix)
    for name in sorted({name for name in columns if columns.count(name) > 1}):
        raise ManifestError(f"column `{name}` appears twice", fix="keep one of them")
    if "" in columns[:-1]:
        raise ManifestError("a column has no name", fix="name it or delete it")
    for meant in set(MEANT) - set(columns):
        others = [name for name in columns if name and name not in MEANT and not re.match(r"seg_\d+$", name)]
        if near := difflib.get_close_matches(meant, others, n=1, cutoff=MISTYPED):
            raise ManifestError(
                f"column `{near[0]}` is unknown; perhaps `{meant}` is meant", fix=f"rename it `{meant}`"
            )
    return columns


def _cells_of(text: str) -> list[tuple[int, list[str]]]:
    """The lines that are not blank, with their numbers, the header first. Raises: ManifestError without its file."""
    header = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    delimiter = max(",;\t", key=header.count)
    if header.count(delimiter) >= MOST_COLUMNS:
        raise ManifestError(f"has more than {MOST_COLUMNS} columns", fix="keep those that are needed")
    reader = csv.reader(_bounded(text, delimiter), delimiter=delimiter, skipinitialspace=True, strict=True)
    lines: list[tuple[int, list[str]]] = []
    count = 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, [cell.strip() for cell in cells]))
            count += len(cells)
            if len(lines) > MOST_ROWS or count > MOST_CELLS:
                raise ManifestError(f"has more than {MOST_ROWS:,} rows or {MOST_CELLS:,} cells", fix="split it")
    except csv.Error as error:
        found = f"line {reader.line_num}: not readable as CSV ({error})"
        raise ManifestError(found, fix="check its quotes") from None
    if not lines:
        raise ManifestError("the table is empty", fix="start it with a header such as case,t1,seg")
    return lines


def _bounded(text: str, delimiter: str) -> Iterator[str]:
    """The lines of a table, none of them with so many or so long cells that they fill the memory. Raises: ManifestError."""
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        if line.count(delimiter) > 2 * MOST_COLUMNS or len(line) > MOST_COLUMNS * LONGEST_CELL:
            raise ManifestError(f"line {number} is too long", fix="check the separators and quotes")
        if number > MOST_LINES:
            raise ManifestError(f"has more than {MOST_LINES:,} lines", fix="check --data")
        yield line


def _text_of(path: Path) -> str:
    """The text of a table, whatever editor wrote it. Raises: ManifestError without its file."""
    try:
        if path.exists() and not path.is_file():
            raise ManifestError("is not a file", fix="give --data a table (CSV)")
        if not path.is_file():
            raise ManifestError("no such table", fix="check the path given to --data")
        if path.stat().st_size > LARGEST_TABLE:
            raise ManifestError("larger than 32 MB, not a table of cases", fix="check --data")
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"cannot be read ({error.strerror})", fix="check its permissions") from None
    if content.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise ManifestError("is compressed, not CSV", fix="unpack it")
    if content.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ManifestError("is a web page, not CSV", fix="download the table itself")
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise ManifestError("is an Excel workbook, not CSV", fix="save it as CSV UTF-8")
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = "not UTF-16 text" if wide else f"line {line}: not UTF-8 text"
        raise ManifestError(found, fix="save it as CSV UTF-8") from None
    if "\0" in text:
        raise ManifestError("holds null bytes, not text", fix="save it as CSV UTF-8")
    return text
