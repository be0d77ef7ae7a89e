"""Files that are whole or absent: write beside the final name, flush to disk, rename."""

import csv
import hashlib
import importlib.resources
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medseg_diff.errors import EnvironmentFault, unwritable

LARGEST_JSON = 64 * 2**20  # bytes
TEMPORARY = re.compile(r"\.(\d+)\.(.+)")  # as whole_file names them: the number of the process that writes
OF_SAFETENSORS = re.compile(r"\.tmp[0-9A-Za-z]{6}")  # that library writes beside the path it is given, and then renames


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it becomes `path`, on failure nothing is left.

    The temporary name keeps the suffixes of `path`, for writers that choose their format by them.
    Raises: EnvironmentFault where the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        raise unwritable(error, path.name, fix="free disk space or choose another --out") from error
    finally:
        with suppress(OSError):  # such as a file where the folder should be; the first error is the one to show
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write plain data as indented JSON; NaN is refused, because JSON has none."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Plain data out of a JSON file. Raises: OSError; ValueError where it is no JSON, or JSON beyond any of ours."""
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError("too large")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_facts(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none that can be read."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV with a header; None is an empty cell."""
    write_text(path, table_text(columns, rows))


def table_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A CSV with a header; None is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return buffer.getvalue()


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Make the kernel write a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clean(folder: Path, name: str | None = None) -> None:
    """Remove temporary files that a killed process left below a folder, while this one writes nothing there; with `name`
    only those that were to become that file or folder in it."""
    for path in list(folder.glob("**/.*" if name is None else f".*.{name}")):
        named = TEMPORARY.fullmatch(path.name)
        dead = named and name in (None, named[2]) and not _lives(int(named[1]))
        if dead and name and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif (dead or OF_SAFETENSORS.fullmatch(path.name)) and path.is_file():
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether another process of this number is there: in a container this one's may be that of the one killed."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process not in (0, os.getpid())


def check_writable(folder: Path) -> None:
    """Try to write in a folder, or in the nearest there is where it has yet to be made; nothing is left.

    Raises: EnvironmentFault.
    """
    place = _nearest(folder)
    probe = place / f".{os.getpid()}.probe"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise unwritable(error, place.name) from error


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    here = folder.absolute()
    return next(path for path in (here, *here.parents) if os.path.lexists(path))


def check_room(folder: Path, needed: int) -> None:
    """Raises: EnvironmentFault where the disk below `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(_nearest(folder)).free
    if free < needed:
        raise EnvironmentFault(
            f"{free / 1e9:.2f} GB are free where this run needs about {needed / 1e9:.2f}",
            fix="free disk space or choose another --out",
            file=folder.name,
        )


def configs_folder() -> Path:
    """Where the recipes lie: inside the installed package, or beside it in a checkout."""
    package = Path(str(importlib.resources.files("medseg_diff")))
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
