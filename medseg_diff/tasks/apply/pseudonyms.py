"""Names that say nothing of a case: a keyed hash, with a secret that stays with whoever made the results."""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import EnvironmentFault, UsageError

KEY = "pseudonym.key"
KEY_BYTES, LONGEST_KEY = 32, 4096
SHOWN = 10  # hexadecimal digits: among 10,000 cases two are called the same with a chance of 5e-5


def names_of(wanted: bool, key: Path | None, *, out: Path, runs: Path) -> Callable[[str], str]:
    """case's name → what it is called in results: itself, or, where `wanted`, `case_` and ten digits of a keyed hash.

    The secret is in the file `key` (default: `runs`/pseudonym.key), made where there is none. With the same secret a
    case is always called the same; without it nobody can go from a guessed name to the pseudonym.
    Raises: UsageError where a key is given but no pseudonyms are wanted, where it lies in `out`, which is what will be
    given away, or is too short; EnvironmentFault where it cannot be read or made.
    """
    if not wanted:
        if key is not None:
            raise UsageError("--pseudonym-key without --pseudonymise", fix="add --pseudonymise, or leave the key out")
        return str
    path = (key or runs / KEY).absolute()
    if path.resolve().is_relative_to(out.absolute().resolve()):
        raise UsageError(
            "the key of the pseudonyms would be among the results",
            fix="name a file outside --out with --pseudonym-key",
            file=path.name,
        )
    secret = _read_or_make(path)
    return lambda name: f"case_{hmac.new(secret, name.encode(), hashlib.sha256).hexdigest()[:SHOWN]}"


def without_names(text: str, case: Case, name: str) -> str:
    """The text; where the case is called `name` instead of its own, without its own, its patient's and its files' names."""
    if name == case.name:
        return text
    for path in case.paths.values():
        text = text.replace(str(path), "FILE").replace(path.name, "FILE")
        for inside in path.iterdir() if path.is_dir() else ():  # one file of a DICOM series
            text = text.replace(f"such as {inside.name}", "such as FILE")
    for own in sorted({case.name, case.patient}, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.]){re.escape(own)}(?!\.?\w)", name, text)
    return text


def _read_or_make(path: Path) -> bytes:
    """The secret, for its owner's eyes only; of two processes that make it at once, both use the first one's."""
    try:
        if not path.exists():
            _make(path)
        secret = path.read_bytes()[: LONGEST_KEY + 1].strip()
    except OSError as error:
        raise EnvironmentFault(
            f"cannot be read or made ({error.strerror})", fix="name another --pseudonym-key", file=path.name
        ) from error
    if not KEY_BYTES // 2 <= len(secret) <= LONGEST_KEY:
        raise UsageError(
            f"holds {len(secret)} bytes where a secret has {KEY_BYTES // 2} to {LONGEST_KEY}",
            fix="name a file that does not exist, and a key is created",
            file=path.name,
        )
    return secret


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, secrets.token_hex(KEY_BYTES).encode() + b"\n")
        os.fsync(descriptor)
        os.link(temporary, path)  # unlike a rename, it fails where another process was faster
    except FileExistsError:
        pass
    finally:
        os.close(descriptor)
        temporary.unlink()
