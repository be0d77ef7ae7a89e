"""How groups of options become plain keywords of a verb, and back: for Python, and for the command line."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

Answer = TypeVar("Answer")


def option(default: Any, text: str, *, usual: str | None = None, **cli: Any) -> Any:
    """A field of a group: its default (`...`: it must be given), its line of help, `usual` where None or nothing stands for
    something that the default does not say, and what the command line needs to know besides.

    That is `min`, `names`, `metavar`, `choices` (words for help and completion; whoever takes them checks them), `complete`
    (what a shell completes it with), `panel` (where it stands in the help, if not with its group), `words` (the form of
    free words), or `parse`, which turns a word into the value."""
    return field(default=MISSING if default is ... else default, metadata={"help": text, "usual": usual} | cli)


def with_default(text: str, usual: object) -> str:
    """A line of help in the one notation of what holds unless something else is given; None where nothing does."""
    return text if usual is None else f"{text} [default: {usual}]"


def groups_of(verb: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a verb that are groups: name → class."""
    return {name: kind for name, kind in get_type_hints(verb).items() if is_dataclass(kind) and name != "return"}


def written_out(verb: Callable[..., Any], parameters_of: Callable[[Any], Iterator[Parameter]]) -> inspect.Signature:
    """The verb's signature with each group replaced by its fields, those without a default first."""
    groups = groups_of(verb)
    listed = [
        part
        for name, parameter in inspect.signature(verb).parameters.items()
        for part in (parameters_of(groups[name]) if name in groups else [_without_meaning(parameter)])
    ]
    listed.sort(key=lambda each: (each.kind, each.default is not Parameter.empty))
    return inspect.Signature(listed)


def _without_meaning(parameter: Parameter) -> Parameter:
    """A parameter that is `Annotated` with what it means, as its type alone."""
    kind = parameter.annotation
    meant = get_origin(kind) is Annotated and isinstance(get_args(kind)[1], str)
    return parameter.replace(annotation=get_args(kind)[0]) if meant else parameter


def gathered(verb: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Plain keywords as the verb takes them: fields in their groups, everything else as it is. Paths may be text."""
    parts, known = {}, dict(options)
    for name, kind in groups_of(verb).items():
        types = get_type_hints(kind)
        given = [each for each in fields(kind) if each.name in known]
        parts[name] = kind(
            **{
                each.name: _as_declared(known.pop(each.name), types[each.name], each.metadata.get("parse"))
                for each in given
            }
        )
    return known | parts


def _as_declared(value: Any, kind: Any, parse: Callable[[str], Any] | None) -> Any:
    """Text as the command line would read it, a path among it, and a single path where several words belong."""
    if isinstance(value, str) and parse is not None:
        return parse(value)
    if isinstance(value, str) and kind in (Path, Path | None):
        return Path(value)
    if kind == Sequence[str] and isinstance(value, str | Path | Sequence):
        return tuple(map(str, [value] if isinstance(value, str | Path) else value))
    return value


def with_plain_keywords(verb: Callable[..., Answer]) -> Callable[..., Answer]:
    """The verb as a person calls it, `segment(data=…, out=…, device="cpu")`; all of its groups whole are taken as well. Its
    docstring ends with what each keyword means: the group's line of help, or what a parameter is `Annotated` with."""
    groups, first = groups_of(verb), next(iter(inspect.signature(verb).parameters))

    def keywords(kind: Any) -> Iterator[Parameter]:
        for each in fields(kind):
            leads = each.name == "volumes" and first in groups
            place = Parameter.POSITIONAL_OR_KEYWORD if leads else Parameter.KEYWORD_ONLY
            default = Parameter.empty if each.default is MISSING else each.default
            yield Parameter(each.name, place, default=default, annotation=each.type)

    @functools.wraps(verb)
    def call(*words: Any, **options: Any) -> Answer:
        whole = {name: options.pop(name) for name, kind in groups.items() if isinstance(options.get(name), kind)}
        if whole:
            return verb(*words, **whole, **options)
        return verb(**gathered(verb, signature.bind(*words, **options).arguments))

    answer = get_type_hints(verb).get("return", Parameter.empty)
    signature = written_out(verb, keywords).replace(return_annotation=answer)
    call.__signature__ = signature  # type: ignore[attr-defined]
    said = "\n".join(f"        {name}: {meaning}" for name, meaning in meanings_of(verb).items())
    call.__doc__ = f"{(verb.__doc__ or '').rstrip()}\n\n    Args:\n{said}\n    "
    return call


def meanings_of(verb: Callable[..., Any]) -> dict[str, str]:
    """What each keyword of a verb means, in the order of its signature, as far as that is said."""
    meanings: dict[str, str] = {}
    groups = groups_of(verb)
    for name, kind in get_type_hints(verb, include_extras=True).items():
        if name in groups:
            meanings |= {each.name: _meaning(each) for each in fields(groups[name])}
        elif name != "return" and get_origin(kind) is Annotated:
            meanings[name] = next(each for each in get_args(kind) if isinstance(each, str))
    return meanings


def _meaning(each: "Field[Any]") -> str:
    return with_default(each.metadata["help"], each.metadata["usual"])
