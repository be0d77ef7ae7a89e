"""The store on this machine: a database that names its folder of files by an absolute path, which a copy takes along."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

DATABASE, FILES = "mlflow.db", "mlflow"
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
PATIENCE_SECONDS = 10.0  # while others write


def files_of(store: Path) -> str:
    """The address of the folder that the store's files lie in, as its database writes it."""
    return (store / FILES).absolute().as_uri()


def settle(store: Path) -> bool:
    """Have the database of a folder of runs that was copied or moved name the files beside it, and never again those
    where it came from; returns whether it had to. Raises: sqlite3.Error where it cannot be changed."""
    database, here = store / DATABASE, files_of(store)
    if not database.is_file() or not database.stat().st_size:
        return False
    with closing(sqlite3.connect(database, timeout=PATIENCE_SECONDS)) as opened:
        strange = [place for place in _places_in(opened) if place != here and not _same(place, here)]
        if not strange:
            return False
        for place in strange:
            for table, column in PLACES:
                _move(opened, table, column, place, here)
        opened.commit()
    return True


def _places_in(opened: sqlite3.Connection) -> list[str]:
    """The folders that experiments of ours keep files in: those called as we call it."""
    with suppress(sqlite3.OperationalError):  # the database is being made
        found = opened.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        return [place for (place,) in found if place and place.startswith("file:") and place.endswith(f"/{FILES}")]
    return []


def _same(one: str, other: str) -> bool:
    """Whether both are one folder, by two paths."""
    with suppress(OSError, ValueError):
        first, second = (Path(url2pathname(urlparse(each).path)) for each in (one, other))
        return first.samefile(second)
    return False


def _move(opened: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    """Names are our own constants, values are bound."""
    with suppress(sqlite3.OperationalError):  # an older MLflow has no such table
        opened.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        )
