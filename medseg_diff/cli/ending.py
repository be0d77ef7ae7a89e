"""How a command ends: every error becomes its line and its exit code."""

import logging
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Any

import typer

from medseg_diff import __version__, console
from medseg_diff.errors import EnvironmentFault, ExitCode, MedsegError, Preempted, UsageError, is_out_of_memory, plain

SETTINGS_NOW = {f"--{name}": f"engine.{name}=…" for name in ("depth", "steps", "scale")}  # once options of `anomaly`


def report(error: MedsegError, *, debug: bool = False) -> int:
    """Print the error's lines to stderr, and before them with `debug` its traceback; returns its exit code."""
    if debug:
        traceback.print_exception(error)
    for line in error.lines:
        _print(f"{'stopped' if isinstance(error, Preempted) else 'error'}: {line}")
    return int(error.exit_code)


def _print(line: str) -> None:
    print(line, file=sys.stderr)
    console.note(logging.INFO, line)


def note(code: int, seconds: float) -> None:
    """Into the log file, where there is one: what was called, and how it ended."""
    words = shlex.join(["medseg-diff", *sys.argv[1:]])
    console.note(
        logging.INFO, f"{words}: exit code {code} after {console.duration(seconds)} (medseg-diff {__version__})"
    )


def report_other(error: Exception, *, debug: bool = False) -> int:
    """What is not ours: a wrong word on the command line, the machine's limits, or a bug."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if debug:
        traceback.print_exception(error)
    if hasattr(error, "format_message"):  # a wrong word; the class is click's or typer's own, by version
        return _of_word(error)
    if is_out_of_memory(error):
        return report(EnvironmentFault("out of memory", fix="lower --network-batch or training.batch"))
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, OSError):
        name = Path(str(error.filename)).name if error.filename else None
        return report(EnvironmentFault(error.strerror or str(error), fix="check disk and permissions", file=name))
    words = plain(f"a bug in medseg-diff: {type(error).__name__}: {error}")
    _print(f"error: {words}. Fix: report it, with --debug.")
    return int(ExitCode.BUG)


def _of_word(error: Any) -> int:
    """What typer says of a wrong word, in our form; without any word it is the help, as it stands."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return int(ExitCode.USAGE)
    program = context.command_path if context else "medseg-diff"
    if program.endswith(" anomaly") and (now := SETTINGS_NOW.get(getattr(error, "option_name", ""))):
        return report(UsageError(f"{error.option_name} is now a setting of the engine", fix=f"write {now}"))
    return report(UsageError(error.format_message(), fix=f"see {program} --help"))
