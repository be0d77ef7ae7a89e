"""`failures.csv`: the cases of a folder of results that could not be done, and why; it goes when there are none left."""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import MedsegError, Problems, plain
from medseg_diff.files import clean, write_table
from medseg_diff.locking import in_turn
from medseg_diff.tasks.apply.pseudonyms import without_names

FAILURES, LOCK = "failures.csv", ".failures.lock"
COLUMNS = ("case", "error", "exit_code", "message")
FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s]+/)+")
FORMULA = ("=", "+", "-", "@")  # a spreadsheet computes what begins with one of these


class Failures:
    """The table in the folder `out`, which several processes may keep at once: each case has one row at most."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / FAILURES

    def note(self, name: str, error: MedsegError, message: str) -> None:
        """The case that is called `name` in the folder failed. Raises: EnvironmentFault where that cannot be written."""
        with self._alone():
            rows = self._read()
            rows[_cell(name)] = [type(error).__name__, str(int(error.exit_code)), _cell(message)]
            self._write(rows)

    def forget(self, name: str) -> None:
        """The case is done. Raises: EnvironmentFault."""
        if not self.path.exists():
            return
        with self._alone():
            rows = self._read()
            if rows.pop(_cell(name), None) is not None:
                self._write(rows)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with in_turn(self.out / LOCK):
            clean(self.out, FAILURES)
            yield

    def _read(self) -> dict[str, list[str]]:
        """What the other columns say of each case; a table that cannot be read is begun anew."""
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
        except (OSError, ValueError, csv.Error):
            return {}
        return {row[0]: row[1:] for row in rows if len(row) == len(COLUMNS)} if tuple(header) == COLUMNS else {}

    def _write(self, rows: dict[str, list[str]]) -> None:
        if rows:
            write_table(self.path, COLUMNS, [[name, *rest] for name, rest in rows.items()])
        else:
            self.path.unlink(missing_ok=True)


def in_words(error: MedsegError, case: Case, name: str) -> str:
    """What went wrong with a case that is called `name` in results: without folders, and, where that is a pseudonym,
    without the names of its files, of its patient and its own."""
    if name == case.name:
        return FOLDERS.sub("", "; ".join(error.lines))
    parts = error.problems if isinstance(error, Problems) else (error,)
    said = "; ".join(f"{part.channel}: {part.found}" if part.channel else part.found for part in parts)
    return plain(FOLDERS.sub("", without_names(said, case, name)))


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text
