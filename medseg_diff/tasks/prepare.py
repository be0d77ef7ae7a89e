"""`prepare`: the folder of a dataset → a manifest, split by patient."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from medseg_diff import files
from medseg_diff.console import log
from medseg_diff.data.tables.channel_names import column_of
from medseg_diff.data.tables.manifest import Case, Split, draw_splits, read_manifest, write_manifest
from medseg_diff.data.tables.sources import SOURCES
from medseg_diff.data.tables.sources.collect import Row, Wanted
from medseg_diff.data.tables.sources.likeness import looks_like
from medseg_diff.errors import ManifestError, MedsegError, Problems, UsageError, counted
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import DatasetOptions

HELD_OUT: dict[Split, float] = {"test": 0.2, "val": 0.1}
BESIDE_TEST: dict[Split, float] = {"val": 0.2}  # where the dataset brings its own test cases
OURS = "made_by_medseg_diff.txt"  # in a folder that may be made again


@with_plain_keywords
def prepare(
    folder: Annotated[Path, "Folder of the dataset."],
    *,
    source: Annotated[str, "What the folder is: brats, bids, nnunet, dicom and others."],
    out: Annotated[Path, "Table to write."],
    dataset: DatasetOptions,
    seed: Annotated[int, "Random seed of the splits."] = 0,
    overwrite: Annotated[bool, "Redo existing results."] = False,
    register: Annotated[str | None, "Channel that the others of a case are registered to first."] = None,
) -> Path:
    """Write the manifest of the dataset in `folder` to `out`, and return its path.

    One patient in five is for testing and one in ten for validation, at least one each; a source that brings its own
    splits keeps them, and fewer than four patients get none. With `register` the images of every case are registered to
    that channel first, into a folder beside `out` (see `tasks.register`).
    Raises: UsageError, ManifestError where `out` exists, ImageError where a case is incomplete.
    """
    folder, out = Path(folder), Path(out)
    if source not in SOURCES:
        raise UsageError(f"no source is called {source}", fix=f"use one of {', '.join(sorted(SOURCES))}")
    if not folder.is_dir():
        raise UsageError(f"{folder.name} is not a folder", fix="give the folder of the dataset")
    if out.exists() and not overwrite:
        raise ManifestError("exists already", fix="choose another --out or pass --overwrite", file=out.name)
    if register is not None:
        return _registered(folder, out, register, source=source, overwrite=overwrite, dataset=dataset, seed=seed)
    root = data_root_of(folder, source, out)
    with _images_beside(out, overwrite=overwrite, needed=SOURCES[source].unpacks) as into:
        rows = _rows(folder, source, _wanted(dataset, source, into))
        below, written = (
            (into, out.resolve().parent) if SOURCES[source].unpacks else (folder, root or out.resolve().parent)
        )
        table = [_as_text(row, below, written) for row in _with_splits(rows, seed)]
        with files.whole_file(out) as temporary:  # only a table that can be read comes to stand there
            write_manifest(temporary, table)
            try:
                manifest = read_manifest(temporary, data_root=root)
            except MedsegError as error:  # it knows the table by its temporary name
                for fault in error.problems if isinstance(error, Problems) else (error,):
                    fault.file = out.name if fault.file == temporary.name else fault.file
                raise
    _say(out, manifest.cases)
    return out


def _rows(folder: Path, source: str, wanted: Wanted) -> list[Row]:
    """The rows of a source; where that finds fault, a word if the folder looks like another's. Raises: what it does."""
    try:
        return SOURCES[source].rows(folder, wanted)
    except MedsegError:
        if (other := looks_like(folder)) not in (None, source):
            log.warning("%s looks like a dataset for --source %s", folder.name, other)
        raise


def _registered(folder: Path, out: Path, to: str, *, source: str, overwrite: bool, **asked: Any) -> Path:
    """The table of the dataset as it is, and then that of its registered images. Raises: as `prepare`."""
    from medseg_diff.tasks.register import folder_of, register_cases, unregistered

    inside = out.resolve().is_relative_to(folder.resolve())
    if inside or folder.resolve().is_relative_to(folder_of(out).resolve()):
        found = "registered images would be among the scans and be mistaken for them"
        raise UsageError(found, fix=f"choose an --out outside of {folder.name}", file=out.name)
    table = prepare(folder=folder, source=source, out=unregistered(out), overwrite=True, **asked)
    root = data_root_of(folder, source, table)
    return register_cases(table, out, to=to, data_root=root, overwrite=overwrite)


def data_root_of(folder: Path, source: str, out: Path) -> Path | None:
    """The folder that the paths in the table `out` are relative to, where that is not the table's own."""
    inside = folder.resolve().is_relative_to(out.resolve().parent)
    return None if inside or SOURCES[source].unpacks else folder.resolve()


def _wanted(dataset: DatasetOptions, source: str, into: Path) -> Wanted:
    """Raises: UsageError for an option that the source does not know, and for a name that no channel can have."""
    given = {each.name: getattr(dataset, each.name) for each in fields(dataset)}
    for name, value in given.items():
        if value and name not in SOURCES[source].takes:
            users = ", ".join(other for other, each in SOURCES.items() if name in each.takes)
            raise UsageError(f"--{name.replace('_', '-')} is for --source {users}", fix="leave it out")
    channels = tuple(dict.fromkeys(column_of(word) for word in dataset.channels))
    return Wanted(**{name: value for name, value in given.items() if value} | {"channels": channels}, into=into)


@contextmanager
def _images_beside(out: Path, *, overwrite: bool, needed: bool) -> Iterator[Path]:
    """A new folder beside the table for a source that unpacks images. Where the source fails nothing is left of it, and what
    it was to replace is there again.

    Raises: ManifestError where there is a folder that may not be replaced, EnvironmentFault.
    """
    into = out.resolve().with_name(f"{out.stem}_images")
    if not needed:
        yield into
        return
    ours, before = (into / OURS).is_file(), into.with_name(f".{os.getpid()}.{into.name}")
    if into.exists():
        if not (overwrite and ours):
            fix = "choose another --out" + (" or pass --overwrite" if ours else "")
            raise ManifestError("the folder for its images already exists", fix=fix, file=into.name)
        into.rename(before)
    try:
        files.write_text(into / OURS, f"Made by medseg-diff prepare, for {out.name}. It can be made again.\n")
        yield into
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        if before.exists():
            before.rename(into)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _with_splits(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows, each with its split beside its patient, where a reader looks for it. Splits that a source brings are kept;
    beside its test cases the others are for training and validation."""
    undecided = [row for row in rows if not row.get("split")]
    patients = {str(row.get("patient", row["case"])): str(row.get("label", "")) for row in undecided}
    some = len(undecided) < len(rows)
    drawn = draw_splits(patients, BESIDE_TEST if some else HELD_OUT, seed=seed) if undecided else {}
    if drawn is None and not some:
        return list(rows)
    splits = drawn or dict.fromkeys(patients, "train")
    return [_with_split(row, row.get("split") or splits[str(row.get("patient", row["case"]))]) for row in rows]


def _with_split(row: Row, split: str | Path) -> Row:
    head = {"case": row["case"], "patient": row.get("patient", row["case"]), "split": split}
    return head | {column: value for column, value in row.items() if column not in head}


def _as_text(row: Row, below: Path, root: Path) -> dict[str, str]:
    """The row as it is written: files below a folder by their paths from the root of the table."""
    above = below.resolve().relative_to(root)
    return {
        column: (above / cell.relative_to(below)).as_posix() if isinstance(cell, Path) else cell
        for column, cell in row.items()
    }


def _say(out: Path, cases: Sequence[Case]) -> None:
    counts = Counter(case.split or "no split" for case in cases)
    parts = ", ".join(f"{count} {split}" for split, count in sorted(counts.items()))
    log.info("%s: %s (%s)", out.name, counted(counts.total(), "case"), parts)
    if "no split" in counts:
        log.info("too few patients to hold any out; training holds out a tenth of the slices instead")
    marked = {case.split for case in cases if case.references}
    if marked and counts["test"] and "test" not in marked:
        log.info("no test case has a reference: `evaluate` can compare with those of val only")


def hold_out_last(table: Path, *, data_root: Path | None) -> None:
    """Fewer than four patients get no split from `prepare`: here the last of them tests and the others train.

    Raises: UsageError for a single patient.
    """
    manifest = read_manifest(table, data_root=data_root)
    if manifest.of("test"):
        return
    patients = list(dict.fromkeys(case.patient for case in manifest.cases))
    if len(patients) < 2:
        raise UsageError("one patient cannot both train and test", fix="add patients")
    rows = manifest.rows()
    for case, row in zip(manifest.cases, rows, strict=True):
        row["split"] = "test" if case.patient == patients[-1] else "train"
    write_manifest(table, rows)
    log.warning(
        "only %s: training on all but %s, testing on that one. The score shows that the pipeline works, "
        "not how good the model is",
        counted(len(patients), "patient"),
        patients[-1],
    )
