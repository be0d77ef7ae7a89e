"""A folder that one process holds: the kernel keeps the lock and lets go when the process ends, however it ends."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medseg_diff.errors import EnvironmentFault, unwritable

LOCK = ".lock"
LONGEST_TURN_SECONDS = 10.0  # of another process that writes a table: it takes milliseconds
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # what a disk says that does not know them

_held: set[Path] = set()  # by this process: the kernel would give it the same one twice


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made where it is not there, is this process's alone while inside. A lock left behind never blocks.

    Raises: EnvironmentFault where another process holds it, naming that process, or where the folder cannot be written.
    """
    path = folder.absolute() / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path)
    except OSError as error:
        raise unwritable(error, folder.name) from error
    if descriptor is None:
        raise EnvironmentFault(
            f"process {_holder(path)} is working in it",
            fix="wait for it, stop it, or choose another --out",
            file=folder.name,
        )
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether the file `path` is this process's alone while inside; it is made for that and goes again.

    A claim of a process that ended never blocks. On a disk that knows no locks every process gets what it asks for.
    Raises: EnvironmentFault where its folder cannot be written.
    """
    path = path.absolute()
    made = not path.parent.exists()
    try:
        descriptor = _claim(path)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise unwritable(error, path.parent.name) from error
        descriptor = -1
    if descriptor is None:
        yield False
        return
    _held.add(path)
    try:
        yield True
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)
        if descriptor >= 0:
            os.close(descriptor)
        if made:
            with suppress(OSError):  # it is not empty
                path.parent.rmdir()


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """One process after the other, for what takes milliseconds; a process that hangs is not waited for.

    Raises: EnvironmentFault where the folder of the file `path` cannot be written.
    """
    ends = time.monotonic() + LONGEST_TURN_SECONDS
    while True:
        with claimed(path) as ours:
            if ours or time.monotonic() > ends:
                yield
                return
        time.sleep(0.02)


def _claim(path: Path) -> int | None:
    """As `_lock`, in a folder that another process may remove at any moment because it is empty."""
    for _ in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return _lock(path)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _lock(path: Path) -> int | None:
    """An open file whose lock this process has; None where another has it."""
    import fcntl

    if path in _held:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # A record lock: loader workers, which outlive a killed process by seconds, do not inherit it.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)  # its last holder removed it just now


def holder(folder: Path) -> int | None:
    """The number of the process that says it holds the folder, which may have ended; None where none does."""
    with suppress(ValueError):
        return int(_holder(folder.absolute() / LOCK))
    return None


def _holder(path: Path) -> str:
    """The number of the process that holds a lock."""
    if path in _held:  # to open and close the file here would let go of it
        return str(os.getpid())
    try:
        return path.read_text() or "unknown"
    except (OSError, ValueError):
        return "unknown"
