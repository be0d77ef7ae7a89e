"""The front door: words on the command line → one function of `tasks`. Heavy libraries are imported behind it."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from medseg_diff import VERBS, __version__
from medseg_diff.cli import about, apply, ending, review, runs, start, train
from medseg_diff.cli.help import WIDEST, Command, Group
from medseg_diff.cli.options import on_command_line
from medseg_diff.errors import MedsegError

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": WIDEST}

app = typer.Typer(
    name="medseg-diff",
    cls=Group,
    help="Diffusion models for brain MR: segmentation with uncertainty, anomaly maps, synthesis.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)

ROOMS = (start, train, apply, review, about)  # where the words of each verb are
for verb in VERBS:
    function = next(getattr(room, verb) for room in ROOMS if hasattr(room, verb))
    app.command(verb.replace("_", "-"), cls=Command)(on_command_line(function))
for command in runs.app.registered_commands:
    assert command.callback
    command.cls, command.callback = Command, on_command_line(command.callback)
app.add_typer(runs.app, cls=Group, context_settings=SETTINGS)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medseg-diff {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Warnings and errors only.")] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            show_default=False,
            help="Also files that are read, and seconds of each stage.",
        ),
    ] = 0,
    log_file: Annotated[
        Path | None,
        typer.Option(
            "--log-file", metavar="FILE", help="Everything that -v says, with the time, at the end of this file."
        ),
    ] = None,
    progress: Annotated[
        bool, typer.Option("--progress/--no-progress", help="Bars on a terminal, else a line a minute.")
    ] = True,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback for an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    from medseg_diff import console

    console.configure(verbosity=-1 if quiet else 1 if debug else verbose, progress=progress, log_file=log_file)


def main() -> None:
    """Run the command line and turn every error into its line and its exit code."""
    debug, began = "--debug" in sys.argv, time.monotonic()
    try:
        code = app(_global_words_first(sys.argv[1:]), standalone_mode=False)
    except MedsegError as error:
        code = ending.report(error, debug=debug)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        code = ending.report_other(error, debug=debug)
    sys.stdout.flush()
    code = code if isinstance(code, int) else 0
    ending.note(code, time.monotonic() - began)
    sys.exit(code)


def _global_words_first(words: Sequence[str]) -> list[str]:
    """-q, -v, --debug, --no-progress, --log-file FILE and --version may stand anywhere, also behind the verb."""
    everywhere = {"-q", "--quiet", "-v", "-vv", "--verbose", "--debug", "--progress", "--no-progress", "--version"}
    first, rest, left = list[str](), list[str](), list(words)
    while left:
        word = left.pop(0)
        if word == "--log-file":
            first += [word, *left[:1]]
            del left[:1]
        else:
            (first if word in everywhere or word.startswith("--log-file=") else rest).append(word)
    return first + rest
