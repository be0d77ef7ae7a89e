"""A CSV as text: every cell as it was typed, with the line it stands in, whatever editor wrote it."""

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path

from medseg_diff.errors import ManifestError, MedsegError

LARGEST_TABLE = 64 * 2**20  # bytes; a hundred thousand cases fit ten times over

logger = logging.getLogger(__name__)


@dataclass
class Table:
    """A CSV as text: columns in lower case, rows with their line numbers, and what was wrong on the way."""

    file: str
    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]
    problems: list[MedsegError]

    def check_header(self) -> None:
        """Find the column of case names, and refuse what cannot be told apart. Raises: ManifestError."""
        names = [name for name in self.columns if name in ("case", "subject", "id")]
        if not names:
            raise ManifestError(
                f"has no column `case` (found: {', '.join(self.columns)[:200]})",
                fix="name the column of unique case names `case`",
                file=self.file,
            )
        chosen = "case" if "case" in names else names[0]
        if chosen != "case":
            logger.info("%s: column `%s` is read as `case`", self.file, chosen)
            self.columns[self.columns.index(chosen)] = "case"
        for name in sorted({name for name in self.columns if self.columns.count(name) > 1}):
            raise ManifestError(f"column `{name}` appears twice", fix="keep one of them", file=self.file)
        if "" in self.columns[:-1] or (self.columns and not self.columns[-1] and len(self.columns) == 1):
            raise ManifestError("a column has no name", fix="name it or delete it", file=self.file)

    def add(self, line: int, cells: list[str]) -> None:
        """Take one row, or remember why not."""
        if len(cells) != len(self.columns):
            self.problems.append(
                ManifestError(
                    f"line {line}: {len(cells)} cells where the header has {len(self.columns)}",
                    fix="check the separators and quotes of that line",
                    file=self.file,
                )
            )
            return
        self.rows.append((line, dict(zip(self.columns, cells, strict=True))))


def read_table(path: Path) -> Table:
    """Read a CSV with commas, semicolons or tabs, in UTF-8 or UTF-16. Raises: ManifestError where it is none."""
    text = _text_of(path)
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise ManifestError(
            f"line {reader.line_num}: not readable as CSV ({error})", fix="check its quotes", file=path.name
        ) from None
    if not lines:
        raise ManifestError("the table is empty", fix="start it with a header such as case,t1,seg", file=path.name)
    columns = [name.lower() for name in lines[0][1]]
    table = Table(path.name, columns, [], [])
    table.check_header()
    for line, cells in lines[1:]:
        table.add(line, cells)
    return table


def _text_of(path: Path) -> str:
    """The text of a table, whatever editor wrote it. Raises: ManifestError."""
    try:
        if not path.is_file():
            raise ManifestError("no such table", fix="check the path given to --data", file=path.name)
        if path.stat().st_size > LARGEST_TABLE:
            raise ManifestError("larger than 64 MB, not a table of cases", fix="check --data", file=path.name)
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"cannot be read ({error.strerror})", fix="check its permissions", file=path.name) from None
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise ManifestError("is an Excel workbook, not CSV", fix="save it as CSV UTF-8", file=path.name)
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ManifestError(f"line {line}: not UTF-8 text", fix="save it as CSV UTF-8", file=path.name) from None
    if "\0" in text:
        raise ManifestError("holds null bytes, not text", fix="save it as CSV UTF-8", file=path.name)
    return text
