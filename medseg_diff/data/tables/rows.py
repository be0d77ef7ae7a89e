"""Rows of a table of cases, one after the other: text → Case, or every reason why not with its line and column."""

import glob
import itertools
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from medseg_diff.data.tables.case import CASE_NAME, CHANNEL_COLUMNS, IMAGE_SUFFIXES, LABELS, SPLITS, TWIN, Case
from medseg_diff.data.tables.channel_names import column_of, names_of_numbers
from medseg_diff.data.tables.table import MEANT, Table
from medseg_diff.errors import ImageError, MedsegError, UsageError

UNITS = ("years", "months", "days", "ml", "mm", "cm", "kg", "percent")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # what Windows makes a device of
MOST_ENTRIES = 5000  # of a DICOM folder
LONGEST_NAME_BYTES = 128  # a folder's name has 255, and ours add to it
FORMULA = re.compile(r"[=+@-].")  # what a spreadsheet would compute
PATIENT_NAME = re.compile(r"[\w .,:/#()@+-]{1,64}")
COVARIATE_RANGES = {"years": (0, 130), "months": (0, 1560), "days": (0, 47_500), "percent": (-100, 100)}


class RowReader:
    """Row of text → Case, one after the other, remembering what must not come twice; `problems` grows on the way."""

    def __init__(self, table: Table, root: Path, *, absolute_allowed: bool) -> None:
        self.table, self.root, self.absolute_allowed = table, root.resolve(), absolute_allowed
        self.root_as_given = root.absolute()
        self.problems: list[MedsegError] = []
        self.line = 0  # of the row that is being read
        self.raters = sorted((c for c in table.columns if re.fullmatch(r"seg_\d+", c)), key=lambda c: int(c[4:]))
        known = {*MEANT, *self.raters}
        others = [column for column in table.columns if column not in known]
        images = [column for column in others if column in CHANNEL_COLUMNS or self._names_images(column)]
        self.channels = [column for column in images if column.removeprefix(TWIN) not in {*images} - {column}]
        self.twins = [column for column in images if column not in self.channels]
        self.covariates = [column for column in others if column and column not in images]
        self.numeric = {column for column in self.covariates if self._is_numeric(column)}
        self.split_given = any(cells.get("split") for _, cells in table.rows)
        self.line_of_case: dict[str, tuple[int, str]] = {}
        self.line_of_file: dict[tuple[int, int] | Path, tuple[int, str]] = {}
        self.split_of_patient: dict[str, tuple[str, int]] = {}

    def case(self, line: int, cells: dict[str, str]) -> Case | None:
        """The case of one row, or None where a fault of the table makes it unusable (then `problems` has grown)."""
        before, self.line = len(self.problems), line
        name = self._name(cells["case"])
        patient = self._patient(cells.get("patient") or name)
        split = self._choice("split", cells.get("split", ""), SPLITS)
        label = self._choice("label", cells.get("label", ""), LABELS)
        if self.split_given and not cells.get("split"):
            self._fault("split", "is empty although other rows have one", "give every row a split, or none")
        self._check_leakage(patient, split)
        images = {c: p for c in self.channels if (p := self._path(c, cells[c], name)) is not None}
        stack, stack_channels = self._stack(cells, name)
        if not cells.get("stack") and not any(cells[column] for column in self.channels):
            self._fault("case", f"case {name} names no image", "add one column per channel, e.g. t1, t1ce, t2, flair")
        seg = self._path("seg", cells.get("seg", ""), name)
        raters = [self._path(column, cells[column], name) for column in self.raters]
        twins = {c.removeprefix(TWIN): p for c in self.twins if (p := self._path(c, cells[c], name)) is not None}
        covariates = {column: self._covariate(column, cells[column]) for column in self.covariates}
        if len(self.problems) > before:
            return None
        return Case(
            name=name,
            patient=patient,
            split=split,  # type: ignore[arg-type]  # _choice returns one of SPLITS or None
            images=images,
            seg=seg,
            raters=tuple(path for path in raters if path is not None),
            label=label,  # type: ignore[arg-type]
            covariates={column: value for column, value in covariates.items() if value != ""},
            stack=stack,
            stack_channels=stack_channels,
            twins=twins,
        )

    def _stack(self, cells: dict[str, str], case: str) -> tuple[Path | None, tuple[str, ...]]:
        """The 4D file of a row and what its volumes are, by the row itself or by a dataset.json."""
        given = cells.get("stack_channels", "")
        if not cells.get("stack"):
            if given:
                self._fault("stack_channels", "names volumes, but no file", "fill the column stack too")
            return None, ()
        if also := [column for column in self.channels if cells[column]]:
            self._fault(
                "stack", f"is given together with {also[0]}", "name a 4D file or one file per channel, not both"
            )
        path = self._path("stack", cells["stack"], case)
        if path is None:
            return None, ()
        try:
            words = tuple(given.split(",")) if given else names_of_numbers(path, CHANNEL_COLUMNS, ()).words
            channels = tuple(column_of(word) for word in words)
        except UsageError as error:
            self._fault("stack_channels", error.found, error.fix)
        except ImageError as error:
            self._fault("stack", error.found, "fill the column stack_channels, as in flair,t1,t1ce,t2")
        else:
            if len(set(channels)) == len(channels):
                return path, channels
            self._fault("stack_channels", "names a channel twice", "give every volume its own name")
        return None, ()

    def _fault(self, column: str, found: str, fix: str) -> None:
        self.problems.append(self.table.fault(self.line, column, found, fix))

    def _missing(self, column: str, found: str, fix: str, case: str, file: str) -> None:
        found = f"{found} (line {self.line} of {self.table.file})"
        self.problems.append(ImageError(found, fix=fix, case=case, channel=column, file=file))

    def _values(self, column: str) -> Iterable[str]:
        return (value for _, cells in self.table.rows if (value := cells[column]))

    def _names_images(self, column: str) -> bool:
        return any(value.lower().endswith(IMAGE_SUFFIXES) for value in self._values(column))

    def _is_numeric(self, column: str) -> bool:
        """Numbers throughout, or a name that ends in a unit: then a cell that is no number is a fault."""
        return column.rpartition("_")[2] in UNITS or all(_number(value) is not None for value in self._values(column))

    def _name(self, name: str) -> str:
        plain = CASE_NAME.fullmatch(name) and len(name.encode()) <= LONGEST_NAME_BYTES
        first, other = self.line_of_case.setdefault(_alike(name), (self.line, name))
        if not plain or name.startswith((".", "-")) or name.endswith("."):
            fix = "use 1 to 64 letters, digits, `_`, `.`, `-`, not `.` or `-` first"
            self._fault("case", f"{name[:70]!a} is not a valid case name", fix)
        elif RESERVED.fullmatch(name):
            self._fault("case", f"{name} is a reserved device name on Windows", "give the case another name")
        elif first != self.line:
            found = f"{name} is in line {first} too" if other == name else f"{name} and {other} of line {first}"
            found += "" if other == name else " are the same folder where upper and lower case are not distinguished"
            self._fault("case", found, "give every case its own name")
        return name

    def _patient(self, patient: str) -> str:
        if not PATIENT_NAME.fullmatch(patient) or FORMULA.match(patient):
            self._fault("patient", f"{patient[:70]!a} is not a valid patient name", "use up to 64 plain characters")
        return patient

    def _choice(self, column: str, value: str, allowed: Sequence[str]) -> str | None:
        if value and value.lower() not in allowed:
            self._fault(column, f"{value[:40]!a} is not known", f"use {', '.join(allowed)} or leave it empty")
            return None
        return value.lower() or None

    def _check_leakage(self, patient: str, split: str | None) -> None:
        if split is None:
            return
        first_split, first_line = self.split_of_patient.setdefault(_alike(patient), (split, self.line))
        if first_split != split:
            found = f"patient {patient} is in {split} here and in {first_split} in line {first_line}"
            self._fault("split", found, "keep all cases of a patient in one split; this is leakage")

    def _covariate(self, column: str, value: str) -> float | str:
        number = _number(value)
        if column not in self.numeric or not value:
            if not value.isprintable() or (number is None and FORMULA.match(value)):
                self._fault(column, f"{value[:40]!a} is not plain text", "write it without leading signs")
            return value
        if number is None:
            self._fault(column, f"{value[:40]!a} is not a number", "write a number, or leave the cell empty")
            return ""
        unit = column.rpartition("_")[2]
        low, high = COVARIATE_RANGES.get(unit, (0, math.inf) if unit in UNITS else (-math.inf, math.inf))
        if not low <= number <= high:
            self._fault(column, f"{value[:40]} {unit} is impossible", "correct it, or leave the cell empty")
        return number

    def _path(self, column: str, cell: str, case: str) -> Path | None:
        """The file that a cell names: below the root, there, and named once only."""
        if not cell:
            return None
        if not cell.isprintable():
            self._fault(column, "the path holds control characters", "retype it")
            return None
        if Path(cell).is_absolute() and not self.absolute_allowed:
            self._fault(column, "the path is absolute", "write it relative to the table, or give --data-root")
            return None
        try:
            return self._found(column, cell, case)
        except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, not a name of this system
            reason = getattr(error, "strerror", None) or "a loop of links"
            self._missing(column, f"cannot be accessed ({reason})", "check the path", case, Path(cell).name)
            return None

    def _found(self, column: str, cell: str, case: str) -> Path | None:
        path = self._below_root(Path(os.path.normpath(cell)))
        if not path.is_relative_to(self.root) or not all(p.resolve().is_relative_to(self.root) for p in _parts(path)):
            fix = "move the file into it, or give --data-root"
            self._fault(column, "the path points outside the data folder", fix)
            return None
        if not path.exists():
            fix = "write / between folders" if "\\" in cell else "check the path, or drop the row"
            self._missing(column, "no such file", fix, case, path.name)
            return None
        state, whole = path.stat(), path.resolve()
        for key in (whole, (state.st_dev, state.st_ino) if state.st_ino else whole):  # another name, the same file
            other_line, other_column = self.line_of_file.setdefault(key, (self.line, column))
            if (other_line, other_column) != (self.line, column):
                found = f"{path.name} is already used in line {other_line}, column {other_column}"
                self._fault(column, found, "name every file once; the same scan in two cases is leakage")
                return None
        return path

    def _below_root(self, path: Path) -> Path:
        """An absolute path may name the root through a link; ours never does."""
        if path.is_absolute() and path.is_relative_to(self.root_as_given):
            path = path.relative_to(self.root_as_given)
        return Path(os.path.normpath(self.root / path))


def _parts(path: Path) -> list[Path]:
    """What is read of a path besides itself: the other half of a pair, or the files of a folder."""
    if path.is_dir():
        return [path, *itertools.islice(path.iterdir(), MOST_ENTRIES)]
    return [path, *path.parent.glob(f"{glob.escape(path.name[:-4])}.*")] if path.suffix in (".hdr", ".mhd") else [path]


def _alike(name: str) -> str:
    """The same for names that a file system or a person may take for one."""
    return unicodedata.normalize("NFKC", name).casefold()


def _number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None
