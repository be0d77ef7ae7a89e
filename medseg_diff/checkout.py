"""Which commit of the package this is, where it lies in a checkout."""

import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

GIT_SECONDS = 5


@cache
def commit() -> dict[str, Any]:
    """The commit of the package where it lies in a checkout of its own, and whether its files were changed since; else
    nothing."""
    package = Path(__file__).resolve().parent
    if not ((package.parent / ".git").exists() and (package.parent / "pyproject.toml").is_file()):
        return {}  # installed: a repository around it would be another's
    found = [_git(package, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno", "."))]
    return {} if None in found else {"commit": found[0], "commit_changed": bool(found[1])}


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where it cannot."""
    command = ["git", "-C", str(folder), "--no-optional-locks", *words]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
        return done.stdout.strip()
    return None
