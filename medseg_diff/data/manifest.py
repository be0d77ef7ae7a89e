"""The table of cases: CSV → validated rows, every fault named with its line and column; splits drawn by patient."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from medseg_diff import files
from medseg_diff.data.table import Table, read_table
from medseg_diff.errors import ImageError, ManifestError, MedsegError, raise_all

Split = Literal["train", "val", "test"]
Label = Literal["healthy", "diseased"]

CASE_NAME = re.compile(r"[\w.-]{1,64}")
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".mgz", ".mgh", ".mha", ".mhd", ".nrrd")
CHANNEL_COLUMNS = ("t1", "t1ce", "t2", "flair")
UNITS = ("years", "months", "days", "ml", "mm", "cm", "kg", "percent")
SPLITS = ("train", "val", "test")
LABELS = ("healthy", "diseased")
FEWEST_PATIENTS = 4  # below this, holding out a patient costs more than it tells


@dataclass(frozen=True)
class Case:
    """One visit of one patient: where its images are and what is known of it.

    `images` maps channel to absolute path in the order of the table; `stack` is one 4D file that holds the channels
    `stack_channels` along its last axis, instead of `images`. `seg` is the reference, `raters` further opinions.
    """

    name: str
    patient: str
    split: Split | None = None
    images: Mapping[str, Path] = field(default_factory=dict)
    seg: Path | None = None
    raters: tuple[Path, ...] = ()
    label: Label | None = None
    covariates: Mapping[str, float | str] = field(default_factory=dict)
    stack: Path | None = None
    stack_channels: tuple[str, ...] = ()

    @property
    def channels(self) -> tuple[str, ...]:
        return self.stack_channels if self.stack else tuple(self.images)

    @property
    def paths(self) -> dict[str, Path]:
        """Every file of the case under the name of its column."""
        found = {"stack": self.stack} if self.stack else dict(self.images)
        found |= {"seg": self.seg} if self.seg else {}
        return found | {f"seg_{number}": path for number, path in enumerate(self.raters, start=1)}


@dataclass(frozen=True)
class Manifest:
    """Validated cases of one table; `root` is the folder that every path lies below."""

    cases: tuple[Case, ...]
    file: str
    root: Path

    @property
    def channels(self) -> tuple[str, ...]:
        """Every channel that some case has, in the order of the table."""
        return tuple(dict.fromkeys(channel for case in self.cases for channel in case.channels))

    def of(self, split: Split) -> tuple[Case, ...]:
        """The cases of one split, in the order of the table."""
        return tuple(case for case in self.cases if case.split == split)

    def digest(self) -> str:
        """SHA-256 of the rows as validated: the same wherever the folder lies."""
        return hashlib.sha256(json.dumps(self.rows(), sort_keys=True).encode()).hexdigest()

    def rows(self, below: Path | None = None) -> list[dict[str, str]]:
        """The cases as rows of text, paths relative to `below` (default: the root)."""
        below = below or self.root
        return [_row_of(case, below) for case in self.cases]


def read_manifest(path: Path, *, data_root: Path | None = None) -> Manifest:
    """Read and check a table of cases: `case`, and where known `patient`, `split`, `seg`, `seg_1` …, `label`.

    A column whose cells name image files is a channel; every other column is a covariate.
    Paths are relative to `data_root` (default: the folder of the table) and must stay below it.
    Raises: ManifestError where the table is at fault, ImageError where a file it names is missing, Problems of both.
    """
    manifest, problems = scan_manifest(path, data_root=data_root)
    raise_all(problems)
    return manifest


def scan_manifest(path: Path, *, data_root: Path | None = None) -> tuple[Manifest, list[MedsegError]]:
    """The rows that are sound, and every problem of the others; faults of the table come first.

    Raises: ManifestError where the file as a whole is no table of cases.
    """
    path = Path(path)
    root = Path(data_root) if data_root else path.parent
    if not root.is_dir():
        raise ManifestError("the folder of the images does not exist", fix="check --data-root", file=path.name)
    table = read_table(path)
    reader = _RowReader(table, root, absolute_allowed=data_root is not None)
    cases = [case for line, cells in table.rows if (case := reader.case(line, cells)) is not None]
    problems = sorted([*table.problems, *reader.problems], key=lambda problem: problem.exit_code)  # stable: by line
    if not table.rows:
        problems.append(ManifestError("the table has no cases", fix="add one row a case", file=path.name))
    return Manifest(tuple(cases), path.name, root.resolve()), problems


def write_manifest(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows as a table of cases, whole or not at all; its columns are those of all rows, as they appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    files.write_table(Path(path), columns, [[row.get(column, "") for column in columns] for row in rows])


def split_by_patient(manifest: Manifest, seed: int = 0) -> Manifest | None:
    """Give a table without splits one: one patient in five for validation, the others for training.

    None where there are fewer than four patients: the caller then holds out slices, and says so.
    """
    splits = draw_splits({case.patient: case.label or "" for case in manifest.cases}, {"val": 0.2}, seed=seed)
    if splits is None:
        return None
    return replace(manifest, cases=tuple(replace(case, split=splits[case.patient]) for case in manifest.cases))


def draw_splits(patients: Mapping[str, str], held_out: Mapping[Split, float], *, seed: int) -> dict[str, Split] | None:
    """Patient → split: `held_out` names the share of each, the rest trains; None for fewer than four patients.

    `patients` maps each patient to its group, so that a split has healthy and diseased in proportion. A patient's
    place depends on its name and the seed alone, not on the order of the rows.
    """
    if len(patients) < FEWEST_PATIENTS:
        return None
    drawn = sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    places: dict[str, tuple[float, int]] = {}
    for group in sorted(set(patients.values())):
        members = [patient for patient in drawn if patients[patient] == group]
        for rank, patient in enumerate(members):
            places[patient] = ((rank + 0.5) / len(members), drawn.index(patient))
    queue = sorted(drawn, key=lambda patient: places[patient])
    splits: dict[str, Split] = dict.fromkeys(queue, "train")
    taken = 0
    for split, share in held_out.items():
        count = max(1, round(share * len(patients)))
        splits |= dict.fromkeys(queue[taken : taken + count], split)
        taken += count
    return splits


def _row_of(case: Case, below: Path) -> dict[str, str]:
    paths = {name: path.relative_to(below).as_posix() for name, path in case.paths.items()}
    known = {"case": case.name, "patient": case.patient, "split": case.split or "", "label": case.label or ""}
    values = {name: value if isinstance(value, str) else f"{value:.17g}" for name, value in case.covariates.items()}
    return {name: value for name, value in (known | paths | values).items() if value != "" or name == "case"}


class _RowReader:
    """Row of text → Case, one after the other, remembering what must not come twice."""

    def __init__(self, table: Table, root: Path, *, absolute_allowed: bool) -> None:
        self.table, self.root, self.absolute_allowed = table, root.resolve(), absolute_allowed
        self.root_as_given = root.absolute()
        self.problems: list[MedsegError] = []
        self.raters = sorted((c for c in table.columns if re.fullmatch(r"seg_\d+", c)), key=lambda c: int(c[4:]))
        self.channels = [column for column in table.columns if self._is_channel(column)]
        known = {"", "case", "patient", "split", "label", "seg", *self.raters, *self.channels}
        self.covariates = [column for column in table.columns if column not in known]
        self.numeric = {column for column in self.covariates if self._is_numeric(column)}
        self.split_given = any(cells.get("split") for _, cells in table.rows)
        self.line_of_case: dict[str, int] = {}
        self.line_of_file: dict[Path, tuple[int, str]] = {}
        self.split_of_patient: dict[str, tuple[str, int]] = {}

    def case(self, line: int, cells: dict[str, str]) -> Case | None:
        """The case of one row, or None where a fault of the table makes it unusable (then `problems` has grown)."""
        before = len(self.problems)
        name = self._name(line, cells["case"])
        patient = self._patient(line, cells.get("patient") or name)
        split = self._choice(line, "split", cells.get("split", ""), SPLITS)
        label = self._choice(line, "label", cells.get("label", ""), LABELS)
        if self.split_given and not cells.get("split"):
            self._fault(line, "split", "is empty although other rows have one", "give every row a split, or none")
        self._check_leakage(line, patient, split)
        images = {c: p for c in self.channels if (p := self._path(line, c, cells[c], name)) is not None}
        if not any(cells[column] for column in self.channels):
            self._fault(line, "case", f"case {name} names no image", "add a column a channel, e.g. t1, t1ce, t2, flair")
        seg = self._path(line, "seg", cells.get("seg", ""), name)
        raters = [self._path(line, column, cells[column], name) for column in self.raters]
        covariates = {column: self._covariate(line, column, cells[column]) for column in self.covariates}
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
        )

    def _fault(self, line: int, column: str, found: str, fix: str) -> None:
        place = f"line {line}, column {column}: {found}"
        self.problems.append(ManifestError(place, fix=fix, file=self.table.file))

    def _values(self, column: str) -> Iterable[str]:
        return (value for _, cells in self.table.rows if (value := cells[column]))

    def _is_channel(self, column: str) -> bool:
        return column in CHANNEL_COLUMNS or (
            column not in ("case", "patient", "split", "label", "seg", *self.raters)
            and any(value.lower().endswith(IMAGE_SUFFIXES) for value in self._values(column))
        )

    def _is_numeric(self, column: str) -> bool:
        """Numbers throughout, or a name that ends in a unit: then a cell that is no number is a fault."""
        return column.rpartition("_")[2] in UNITS or all(_number(value) is not None for value in self._values(column))

    def _name(self, line: int, name: str) -> str:
        if not CASE_NAME.fullmatch(name) or name.startswith((".", "-")) or name.endswith("."):
            shown = ascii(name[:70])
            self._fault(
                line,
                "case",
                f"{shown} is no case name",
                "use 1 to 64 letters, digits, `_`, `.`, `-`, not `.` or `-` first",
            )
        elif name in self.line_of_case:
            self._fault(
                line, "case", f"{name} stands in line {self.line_of_case[name]} too", "give every case its own name"
            )
        self.line_of_case.setdefault(name, line)
        return name

    def _patient(self, line: int, patient: str) -> str:
        if len(patient) > 64 or not patient.isprintable() or patient.startswith(("=", "+", "@")):
            self._fault(line, "patient", f"{patient[:70]!a} is no patient name", "use up to 64 plain characters")
        return patient

    def _choice(self, line: int, column: str, value: str, allowed: Sequence[str]) -> str | None:
        if value and value.lower() not in allowed:
            self._fault(line, column, f"{value[:40]!a} is not known", f"use {', '.join(allowed)} or leave it empty")
            return None
        return value.lower() or None

    def _check_leakage(self, line: int, patient: str, split: str | None) -> None:
        if split is None:
            return
        first_split, first_line = self.split_of_patient.setdefault(patient, (split, line))
        if first_split != split:
            found = f"patient {patient} is in {split} here and in {first_split} in line {first_line}"
            self._fault(line, "split", found, "keep all cases of a patient in one split; this is leakage")

    def _covariate(self, line: int, column: str, value: str) -> float | str:
        if column not in self.numeric or not value:
            return value
        number = _number(value)
        if number is None:
            self._fault(line, column, f"{value[:40]!a} is no number", "write a number, or leave the cell empty")
            return ""
        return number

    def _path(self, line: int, column: str, cell: str, case: str) -> Path | None:
        """The file that a cell names: below the root, there, and named once only."""
        if not cell:
            return None
        if not cell.isprintable():
            self._fault(line, column, "the path holds control characters", "retype it")
            return None
        if Path(cell).is_absolute() and not self.absolute_allowed:
            self._fault(line, column, "the path is absolute", "write it relative to the table, or give --data-root")
            return None
        path = self._below_root(Path(os.path.normpath(cell)))
        real = path.resolve()
        if not path.is_relative_to(self.root) or not real.is_relative_to(self.root):
            self._fault(
                line, column, "the path leads out of the data folder", "move the file below it, or give --data-root"
            )
            return None
        if real in self.line_of_file:
            other_line, other_column = self.line_of_file[real]
            found = f"{path.name} is already used in line {other_line}, column {other_column}"
            self._fault(line, column, found, "name every file once; the same scan in two cases is leakage")
            return None
        self.line_of_file[real] = (line, column)
        if not path.exists():
            fix = "write / between folders" if "\\" in cell else "check the path, or drop the row"
            found = f"no such file (line {line} of {self.table.file})"
            self.problems.append(ImageError(found, fix=fix, case=case, channel=column, file=path.name))
            return None
        return path

    def _below_root(self, path: Path) -> Path:
        """An absolute path may name the root through a link; ours never does."""
        if path.is_absolute() and path.is_relative_to(self.root_as_given):
            path = path.relative_to(self.root_as_given)
        return Path(os.path.normpath(self.root / path))


def _number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None
