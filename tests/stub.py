"""What type checkers and editors see of the package, medseg_diff/__init__.pyi, made of the options of its verbs.

python -m tests.stub writes it anew after an option has changed.
"""

import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import medseg_diff
from medseg_diff.tasks.keywords import groups_of

STUB = Path(__file__).parents[1] / "medseg_diff" / "__init__.pyi"
TRAIN = ("train_seg", "train_anomaly", "train_synth", "train_enhance")
GROUPED = ("segment", "anomaly", *TRAIN, "synthesise", "enhance", "audit", "prepare", "tune")
RESULTS = {"segment": "SegmentationResult", "anomaly": "AnomalyResult"}
OVERLOADED = ("volumes", "data")  # a single scan's words, and what gives a list

HEAD = '''\
"""Made of the options of the verbs by `python -m tests.stub`: what type checkers and editors see of the package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

from medseg_diff.api.models import LoadedModel as LoadedModel
from medseg_diff.api.models import load_model as load_model
from medseg_diff.api.results import AnomalyResult as AnomalyResult
from medseg_diff.api.results import SegmentationResult as SegmentationResult
from medseg_diff.api.volumes import Volume
from medseg_diff.recipes.tuned import Tuned
from medseg_diff.run import Run
from medseg_diff.studies import FoldStudy
'''
TAIL = """
VERBS: dict[str, str]
NOUNS: dict[str, str]
__version__: str
"""


def stub() -> str:
    """The whole file."""
    plain = sorted(name for name in medseg_diff.VERBS if name not in GROUPED)
    lines = [HEAD.rstrip()]
    lines += [f"from {medseg_diff.VERBS[name]} import {name} as {name}" for name in plain]
    lines.append(TAIL.rstrip())
    for name in GROUPED:
        verb = getattr(medseg_diff, name)
        lines += overloads(name, verb) if name in RESULTS else explicit(name, verb)
    return "\n".join(lines) + "\n"


def explicit(name: str, verb: Callable[..., Any]) -> Iterator[str]:
    """One signature with every keyword."""
    yield f"\ndef {name}("
    star = False
    for each, (kind, required) in options_of(verb).items():
        if inspect.signature(verb).parameters[each].kind is inspect.Parameter.KEYWORD_ONLY and not star:
            star = True
            yield "    *,"
        yield f"    {each}: {kind}{'' if required else ' = ...'},"
    yield f") -> {words_of(inspect.signature(verb).return_annotation)}:"
    yield from doc(verb)


def overloads(name: str, verb: Callable[..., Any]) -> Iterator[str]:
    """A scan gives one result; a list, a tuple or a table gives a list of them."""
    typed = f"{name.capitalize()}Options"
    yield f"\nclass {typed}(TypedDict, total=False):"
    for each, (kind, _) in options_of(verb).items():
        if each not in ("volume", *OVERLOADED):
            yield f"    {each}: {kind}"
    one, options = RESULTS[name], f"**options: Unpack[{typed}]"
    yield f"\n@overload\ndef {name}(  # type: ignore[overload-overlap]  # a path is a sequence too"
    yield f"    volume: Volume, {options}\n) -> {one}:"
    yield from doc(verb)
    for first in ("volume: Sequence[Volume]", "*, data: str | Path"):
        yield f"\n@overload\ndef {name}({first}, {options}) -> list[{one}]: ..."
    yield f"\n@overload\ndef {name}(*, volumes: Sequence[str], {options}) -> {one}: ..."


def options_of(verb: Callable[..., Any]) -> dict[str, tuple[str, bool]]:
    """Each keyword in the order of the signature: its type in words, and whether it must be given."""
    parsed = {each.name for kind in groups_of(verb).values() for each in fields(kind) if "parse" in each.metadata}
    hints = get_type_hints(verb)
    for kind in groups_of(verb).values():
        hints |= get_type_hints(kind)
    found = {}
    for name, parameter in inspect.signature(verb).parameters.items():
        words = words_of(hints[name])
        text = "str | " if name in parsed and "str" not in words.split(" | ") else ""
        found[name] = (text + words, parameter.default in (inspect.Parameter.empty, MISSING))
    return found


def words_of(kind: Any) -> str:
    """A type as one writes it; a path may be text."""
    if get_origin(kind) in (types.UnionType, Union):
        return " | ".join(dict.fromkeys(word for each in get_args(kind) for word in words_of(each).split(" | ")))
    if get_origin(kind) is Literal:
        return f"Literal[{', '.join(repr(each) for each in get_args(kind))}]".replace("'", '"')
    if get_origin(kind):
        return f"{get_origin(kind).__name__}[{', '.join(map(words_of, get_args(kind)))}]"
    if kind is type(None) or kind is None:
        return "None"
    return "str | Path" if kind is Path else kind.__name__


def doc(verb: Callable[..., Any]) -> Iterator[str]:
    """Its docstring, each option in a line."""
    text = inspect.getdoc(verb) or ""
    yield textwrap.indent(f'"""{text}\n"""', "    ")


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8")
