"""The table of cases: CSV → validated rows, every fault named with its line and column; splits drawn by patient."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg_diff import files
from medseg_diff.data.tables.case import CASE_NAME, SPLITS, Case, Split
from medseg_diff.data.tables.rows import RowReader
from medseg_diff.data.tables.table import MOST_PROBLEMS, read_table
from medseg_diff.errors import ManifestError, MedsegError, raise_all

__all__ = [
    "CASE_NAME",
    "SPLITS",
    "Case",
    "Manifest",
    "Split",
    "draw_splits",
    "folds_by_patient",
    "read_manifest",
    "scan_manifest",
    "split_by_patient",
    "write_manifest",
]

FEWEST_PATIENTS = 4  # below this, holding out a patient costs more than it tells


@dataclass(frozen=True)
class Manifest:
    """Validated cases of one table; `root` is the folder that every path lies below, `folder` the name of the table's."""

    cases: tuple[Case, ...]
    file: str
    root: Path
    folder: str = ""

    @property
    def name(self) -> str:
        """`brats/cases`: what tells this table from others, most of which are called cases.csv."""
        stem = Path(self.file).stem
        return f"{self.folder}/{stem}" if self.folder else stem

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

    def rows(self) -> list[dict[str, str]]:
        """The cases as rows of text, paths relative to the root."""
        return [_row_of(case, self.root) for case in self.cases]


def read_manifest(path: Path, *, data_root: Path | None = None) -> Manifest:
    """Read and check a table of cases: `case`, and where known `patient`, `split`, `seg`, `seg_1` …, `label`.

    A column whose cells name image files is a channel, but `stack` is one 4D file of several channels, whose names
    `stack_channels` or a dataset.json gives; every other column is a covariate.
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
    table = read_table(path)
    if not root.is_dir():
        raise ManifestError("the folder of the images does not exist", fix="check --data-root", file=path.name)
    reader = RowReader(table, root, absolute_allowed=data_root is not None)
    cases = []
    for line, cells in table.rows:
        if (case := reader.case(line, cells)) is not None:
            cases.append(case)
        if len(reader.problems) >= MOST_PROBLEMS:
            break
    problems = sorted([*table.problems, *reader.problems], key=lambda problem: problem.exit_code)  # stable: by line
    if not table.rows:
        problems.append(ManifestError("the table has no cases", fix="add one row per case", file=path.name))
    return Manifest(tuple(cases), path.name, root.resolve(), _folder_of(path)), problems


def _folder_of(table: Path) -> str:
    """The name of the folder that a table lies in; of a home none, which would be its owner's name."""
    folder, home = table.absolute().parent, Path(os.path.expanduser("~"))  # noqa: PTH111  (it raises nothing)
    is_home = folder == home or folder.parent == home.parent != Path(home.anchor)
    return "" if is_home else folder.name


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
    queue = _mixed(patients, seed)
    splits: dict[str, Split] = dict.fromkeys(queue, "train")
    taken = 0
    for split, share in held_out.items():
        count = max(1, round(share * len(patients)))
        splits |= dict.fromkeys(queue[taken : taken + count], split)
        taken += count
    return splits


def folds_by_patient(manifest: Manifest, folds: int, *, seed: int = 0) -> list[Manifest]:
    """The table once for each fold, whose patients are its `val` and all others its `train`; every patient is held out
    once. Cases of split `test` stay that.

    Raises: ManifestError where there are fewer patients than folds.
    """
    patients = {case.patient: case.label or "" for case in manifest.cases if case.split != "test"}
    if not 2 <= folds <= len(patients):
        raise ManifestError(
            f"{len(patients)} patients cannot be divided among {folds} folds",
            fix=f"use --folds 2 to {len(patients)}" if len(patients) > 1 else "add patients",
            file=manifest.file,
        )
    fold_of = {patient: place % folds for place, patient in enumerate(_mixed(patients, seed))}

    def of_fold(case: Case, fold: int) -> Case:
        if case.split == "test":
            return case
        return replace(case, split="val" if fold_of[case.patient] == fold else "train")

    return [replace(manifest, cases=tuple(of_fold(case, fold) for case in manifest.cases)) for fold in range(folds)]


def _mixed(patients: Mapping[str, str], seed: int) -> list[str]:
    """Patients in an order of (seed, name) in which every stretch has the groups in proportion."""
    drawn = sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    places: dict[str, tuple[float, int]] = {}
    for group in sorted(set(patients.values())):
        members = [patient for patient in drawn if patients[patient] == group]
        for rank, patient in enumerate(members):
            places[patient] = ((rank + 0.5) / len(members), drawn.index(patient))
    return sorted(drawn, key=lambda patient: places[patient])


def _row_of(case: Case, below: Path) -> dict[str, str]:
    paths = {name: path.relative_to(below).as_posix() for name, path in case.paths.items()}
    known = {"case": case.name, "patient": case.patient, "split": case.split or "", "label": case.label or ""}
    known["stack_channels"] = ",".join(case.stack_channels)
    values = {name: value if isinstance(value, str) else f"{value:.17g}" for name, value in case.covariates.items()}
    return {name: value for name, value in (known | paths | values).items() if value != "" or name == "case"}
