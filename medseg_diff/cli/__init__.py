"""The front door: words on the command line → one function of `tasks`. Heavy libraries are imported behind it."""

import logging
import sys
from typing import Annotated

import typer

from medseg_diff import VERBS, __version__
from medseg_diff.cli import about, apply, ending, review, runs, start, train
from medseg_diff.cli.options import on_command_line
from medseg_diff.errors import MedsegError

app = typer.Typer(
    name="medseg-diff",
    help="Diffusion models for brain MR: segmentation with uncertainty, anomaly maps, synthesis.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ROOMS = (start, train, apply, review, about)  # where the words of each verb are
for verb in VERBS:
    function = next(getattr(room, verb) for room in ROOMS if hasattr(room, verb))
    app.command(verb.replace("_", "-"))(on_command_line(function))
app.add_typer(runs.app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medseg-diff {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Warnings and errors only.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more.")] = 0,
    progress: Annotated[bool, typer.Option(help="Progress bars, on a terminal.")] = True,
    debug: Annotated[bool, typer.Option(help="Show a traceback for an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    from medseg_diff import console

    console.configure(verbosity=-1 if quiet else verbose, progress=progress)
    if debug:
        logging.getLogger("medseg_diff").setLevel(logging.DEBUG)


def main() -> None:
    """Run the command line and turn every error into its line and its exit code."""
    debug = "--debug" in sys.argv
    try:
        code = app(_global_words_first(sys.argv[1:]), standalone_mode=False)
    except MedsegError as error:
        if debug:
            raise
        code = ending.report(error)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        if debug:
            raise
        code = ending.report_other(error)
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)


def _global_words_first(words: list[str]) -> list[str]:
    """-q, -v, --debug, --no-progress and --version may stand anywhere, also behind the verb."""
    everywhere = {"-q", "--quiet", "-v", "-vv", "--verbose", "--debug", "--progress", "--no-progress", "--version"}
    return [word for word in words if word in everywhere] + [word for word in words if word not in everywhere]
