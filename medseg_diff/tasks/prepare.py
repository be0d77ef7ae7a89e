"""`prepare`: the folder of a dataset → a manifest, split by patient."""

from collections import Counter
from pathlib import Path

from medseg_diff import files
from medseg_diff.console import log
from medseg_diff.data.tables.manifest import Split, draw_splits, read_manifest, write_manifest
from medseg_diff.data.tables.sources import SOURCES
from medseg_diff.errors import ManifestError, MedsegError, Problems, UsageError

HELD_OUT: dict[Split, float] = {"test": 0.2, "val": 0.1}


def prepare(
    folder: Path, *, source: str, out: Path, seed: int = 0, overwrite: bool = False, register: str | None = None
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
        raise UsageError(f"{folder.name} is no folder", fix="give the folder of the dataset")
    if out.exists() and not overwrite:
        raise ManifestError("exists already", fix="choose another --out or pass --overwrite", file=out.name)
    if register is not None:
        return _registered(folder, out, register, source=source, seed=seed, overwrite=overwrite)
    rows = SOURCES[source](folder)
    if not any(row.get("split") for row in rows):
        patients = {row.get("patient", row["case"]): row.get("label", "") for row in rows}
        if splits := draw_splits(patients, HELD_OUT, seed=seed):
            rows = [_with_split(row, splits[row.get("patient", row["case"])]) for row in rows]
    rows, root = _relative_to_table(rows, folder, out)
    with files.whole_file(out) as temporary:  # only a table that can be read comes to stand there
        write_manifest(temporary, rows)
        try:
            manifest = read_manifest(temporary, data_root=root)
        except MedsegError as error:  # it knows the table by its temporary name
            for fault in error.problems if isinstance(error, Problems) else (error,):
                fault.file = out.name if fault.file == temporary.name else fault.file
            raise
    _say(out, Counter(case.split or "no split" for case in manifest.cases), root)
    return out


def _registered(folder: Path, out: Path, to: str, *, source: str, seed: int, overwrite: bool) -> Path:
    """The table of the dataset as it is, and then that of its registered images. Raises: as `prepare`."""
    from medseg_diff.tasks.register import folder_of, register_cases, unregistered

    inside = out.resolve().is_relative_to(folder.resolve())
    if inside or folder.resolve().is_relative_to(folder_of(out).resolve()):
        found = "registered images would lie among the scans, and be taken for some"
        raise UsageError(found, fix=f"choose an --out outside of {folder.name}", file=out.name)
    table = prepare(folder, source=source, out=unregistered(out), seed=seed, overwrite=True)
    return register_cases(table, out, to=to, data_root=folder.resolve(), overwrite=overwrite)


def _with_split(row: dict[str, str], split: Split) -> dict[str, str]:
    """The row with its split beside its patient, where a reader looks for it."""
    head = {"case": row["case"], "patient": row.get("patient", row["case"]), "split": split}
    return head | {column: value for column, value in row.items() if column not in head}


def _relative_to_table(rows: list[dict[str, str]], folder: Path, out: Path) -> tuple[list[dict[str, str]], Path | None]:
    """Paths as the table needs them; where it lies outside the data, they stay relative to the data's folder."""
    table_folder, folder = out.resolve().parent, folder.resolve()
    if not folder.is_relative_to(table_folder):
        return rows, folder
    above = folder.relative_to(table_folder)
    return [{c: (above / v).as_posix() if _is_path(folder, v) else v for c, v in row.items()} for row in rows], None


def _is_path(folder: Path, value: str) -> bool:
    return bool(value) and (folder / value).is_file()


def _say(out: Path, counts: Counter[str], root: Path | None) -> None:
    parts = ", ".join(f"{count} {split}" for split, count in sorted(counts.items()))
    log.info("%s: %d cases (%s)", out.name, counts.total(), parts)
    if "no split" in counts:
        log.info("too few patients to hold any out; training holds out a tenth of the slices instead")
    if root is not None:
        log.info("the images lie elsewhere: pass --data-root %s with this table", root)


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
        "only %d patients: training on all but %s, testing on that one. Its score shows that the pipeline works, "
        "not how good it would be",
        len(patients),
        patients[-1],
    )
