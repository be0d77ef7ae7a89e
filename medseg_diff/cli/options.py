"""Groups of options as words on the command line, and the few options that stand alone."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg_diff.cluster import Cluster
from medseg_diff.tasks.keywords import gathered, written_out

Data = Annotated[Path, typer.Option(help="Table of cases (CSV).")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder that paths in the table are relative to [the table's].")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Split = Annotated[str | None, typer.Option(help="Only train, val or test.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Redo what is there.")]
ClusterName = Annotated[Cluster, typer.Option(help="ray: share the cases among processes; see `segment`.")]
Workers = Annotated[int | None, typer.Option(min=1, help="How many, with --cluster [one a CPU].")]
Runs = Annotated[Path, typer.Option(help="Folder of runs, cache and MLflow store.")]


def on_command_line(function: Callable[..., None]) -> Callable[..., None]:
    """The function with each of its groups of options as options of the command; what is not given keeps its default."""

    @functools.wraps(function)
    def command(**words: Any) -> None:
        function(**gathered(function, {name: value for name, value in words.items() if value not in (None, [])}))

    signature = written_out(function, _options)
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    return command


def _options(kind: Any) -> Iterator[Parameter]:
    """Every field of a group that has a name on the command line."""
    for each in fields(kind):
        if each.metadata.get("names") != ():
            required = each.default is MISSING
            default = Parameter.empty if required else each.default if isinstance(each.default, bool) else None
            yield Parameter(each.name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=_annotation(each))


def _annotation(each: "Field[Any]") -> Any:
    """The type that typer reads, with its line of help."""
    facts = each.metadata
    if "words" in facts:
        return Annotated[list[str] | None, typer.Argument(metavar=facts["words"], help=facts["help"])]
    names = facts.get("names") or ((f"--{each.name.replace('_', '-')}",) if each.default is False else ())
    if "parse" in facts:
        return Annotated[Any, typer.Option(*names, help=facts["help"], parser=_parser(facts["parse"]), metavar="TEXT")]
    kind: Any = list[str] | None if each.name == "volumes" else each.type
    if not isinstance(each.default, bool) and each.default not in (MISSING, None, ()):
        kind = kind | None
    return Annotated[kind, typer.Option(*names, help=facts["help"], min=facts.get("min"))]


def _parser(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parsed(word: str) -> Any:
        try:
            return parse(word)
        except ValueError:
            raise typer.BadParameter(f"write it as {(parse.__doc__ or '').rstrip('.')}") from None

    return parsed
