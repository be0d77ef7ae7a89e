"""Groups of options as words on the command line, and the few options that stand alone."""

import copy
import functools
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, fields
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.models import OptionInfo

from medseg_diff.cli.completion import completion_of
from medseg_diff.cluster import Cluster
from medseg_diff.data.tables.case import SPLITS
from medseg_diff.tasks.keywords import gathered, groups_of, with_default, written_out
from medseg_diff.tasks.options import DEVICES, ON_DEVICE

METAVARS = {Path: "PATH", int: "N", float: "X", str: "NAME"}  # where an option has none of its own


def said(
    panel: str, text: str, *names: str, usual: str | None = None, complete: str | Sequence[str] = (), **settings: Any
) -> Any:
    """An option that stands alone: its section of the help, its line there, and what a shell completes it with; `usual`
    where the default does not say what holds."""
    return typer.Option(
        *names,
        help=text,
        rich_help_panel=panel,
        show_default=usual or True,
        autocompletion=completion_of(complete),
        **settings,
    )


Data = Annotated[Path, said("Source", "Table of cases.", metavar="CSV")]
DataRoot = Annotated[
    Path | None,
    said("Source", "Folder that paths in the table are relative to.", metavar="FOLDER", usual="the table's"),
]
Split = Annotated[
    str | None,
    said("Source", "Only cases of this split.", metavar="|".join(SPLITS), complete=SPLITS),
]
Device = Annotated[
    str,
    said("Compute", ON_DEVICE, metavar="DEVICE", complete=DEVICES),
]
AsJson = Annotated[bool, said("Result", "Print the answer as JSON.", "--json")]
Overwrite = Annotated[bool, said("Result", "Redo existing results.", "--overwrite")]
ClusterName = Annotated[Cluster, said("Compute", "ray: share cases among processes; see `segment`.")]
Workers = Annotated[
    int | None,
    said("Compute", "Processes of --cluster.", min=1, usual="one a CPU"),
]
Runs = Annotated[Path, typer.Option(help="Folder of runs, cache and MLflow store.", metavar="FOLDER")]


def root_of(data_root: Path | None) -> str:
    """How a printed command says where the images of its table lie."""
    return f" --data-root {shlex.quote(str(data_root))}" if data_root else ""


def on_command_line(function: Callable[..., None]) -> Callable[..., None]:
    """The function with each of its groups of options as options of the command; what is not given keeps its default."""

    @functools.wraps(function)
    def command(**words: Any) -> None:
        function(**gathered(function, {name: value for name, value in words.items() if value not in (None, [])}))

    of_groups = {name for kind in groups_of(function).values() for name in (each.name for each in fields(kind))}
    signature = written_out(function, _options)
    parameters = [each if name in of_groups else _in_our_notation(each) for name, each in signature.parameters.items()]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _in_our_notation(parameter: Parameter) -> Parameter:
    """A parameter that stands alone, its help as that of the groups: a metavar, and its default in the one notation."""
    annotated = get_origin(parameter.annotation) is Annotated
    kind, info = get_args(parameter.annotation)[:2] if annotated else (parameter.annotation, typer.Option())
    info, default = copy.copy(info), parameter.default
    usual = info.show_default if isinstance(info.show_default, str) else _in_words(default, parameter.name)
    info.show_default, info.metavar = False, info.metavar or _metavar(kind)
    required = default is Parameter.empty and isinstance(info, OptionInfo)
    info.help = f"{info.help or ''} [required]".strip() if required else with_default(info.help or "", usual).strip()
    return parameter.replace(annotation=Annotated[kind, info])


def _in_words(default: Any, name: str) -> str | None:
    """A default as one would write it; None where there is none to be told: of what is off unless one asks for it."""
    if default is False or default in (Parameter.empty, None, ()):
        return None
    if default is True:
        return f"--{name.replace('_', '-')}"
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _metavar(kind: Any) -> str | None:
    """What stands for a value of a type: N for a number of things; of a few words these."""
    kinds = [each for each in get_args(kind) if each is not type(None)] if get_origin(kind) is not Literal else []
    kind = kinds[0] if len(kinds) == 1 else kind
    return "|".join(get_args(kind)) if get_origin(kind) is Literal else METAVARS.get(kind)


def _options(kind: Any) -> Iterator[Parameter]:
    """Every field of a group that has a name on the command line."""
    for each in fields(kind):
        if each.metadata.get("names") != ():
            required = each.default is MISSING
            default = Parameter.empty if required else each.default if isinstance(each.default, bool) else None
            annotation = _annotation(each, panel=each.metadata.get("panel", kind.panel))
            yield Parameter(each.name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


def _annotation(each: "Field[Any]", *, panel: str) -> Any:
    """The type that typer reads, with its line of help."""
    facts = each.metadata
    kind: Any = each.type
    if "words" in facts:
        return Annotated[list[str] | None, typer.Argument(metavar=facts["words"], help=facts["help"])]
    names = facts.get("names") or ((f"--{each.name.replace('_', '-')}",) if each.default is False else ())
    required = each.default is MISSING
    usual = facts["usual"] or (None if required else _in_words(each.default, each.name))
    choices = facts.get("choices", ())
    settings: dict[str, Any] = {
        "help": f"{facts['help']} [required]" if required else with_default(facts["help"], usual),
        "metavar": facts.get("metavar") or "|".join(choices) or _metavar(kind),
        "autocompletion": completion_of(facts.get("complete") or choices),
        "show_default": False,
        "rich_help_panel": panel,
    }
    if "parse" in facts:
        return Annotated[Any, typer.Option(*names, parser=_parser(facts["parse"]), **settings)]
    kind = list[str] | None if each.name == "volumes" else kind
    if not isinstance(each.default, bool) and each.default not in (MISSING, None, ()):
        kind = kind | None
    return Annotated[kind, typer.Option(*names, min=facts.get("min"), **settings)]


def _parser(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parsed(word: str) -> Any:
        try:
            return parse(word)
        except ValueError:
            raise typer.BadParameter(f"write it as {(parse.__doc__ or '').rstrip('.')}") from None

    return parsed
